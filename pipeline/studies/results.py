"""What the jobs of a study found, gathered from their `summary.json` files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import mean
from typing import Any

from pipeline.pictures.chart import name_of
from pipeline.studies.analysis import Spread, spread
from pipeline.studies.distances import distances_in
from pipeline.studies.jobs import Plan, Run

SCORES = ("num_used", "utilization_ratio", "kl_from_uniform", "accuracy", "nmi", "ami", "ari")
CONTROLS = ("none", "labels", "random")  # what is not a clustering of the images
WITHOUT_C = ("none", "labels")  # conditions for which nobody chooses a number of clusters


@dataclass(frozen=True)
class Confidence:
    """How sure the clustering head is of generated images, over all sets of sampling seeds.

    Attributes:
        agreement: share of the candidates whose cluster is the one that was asked for.
        agreement_kept: the same among the most confident ones.
        keep: the share that was kept.
        deciles: (mean confidence, agreement) of each tenth of the candidates, the least confident first.
        distances_kept: the distance of the kept ones, a value for each set.
    """

    agreement: float
    agreement_kept: float
    keep: float
    deciles: list[tuple[float, float]]
    distances_kept: list[float]


@dataclass(frozen=True)
class Result:
    """One model of the study and what was measured of it.

    Attributes:
        name: `temi-40`, of the `group` `temi`.
        values: of the study's lists that do not set C, such as the backbone of this run.
        method: what it is conditioned on: temi, kmeans, labels, random, … or none.
        num_clusters: C that was asked for; None without condition.
        kimg: thousand training images seen.
        distances: of the final model, a value for each set of sampling seeds.
        curve: (kimg, distance) along the training, on one set of sampling seeds.
        scores: of the clustering, as `cedm score` names them.
        folder: of the training run.
    """

    name: str
    group: str
    method: str
    num_clusters: int | None
    backbone: str
    seed: int
    kimg: float
    distances: list[float]
    curve: list[tuple[float, float]]
    scores: dict[str, float] = field(default_factory=dict)
    confidence: Confidence | None = None
    folder: str = ""
    values: list[str] = field(default_factory=list)

    @property
    def is_clustering(self) -> bool:
        """Whether its groups were found in the images: not given, not random, not absent."""
        return self.method not in CONTROLS

    @property
    def variant(self) -> str:
        """What sets it apart from the other runs but for C and the seed: the group, and values of the study's lists."""
        return "-".join([self.group, *self.values])

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Result":
        """What `dataclasses.asdict` and JSON made of it."""
        found = data["confidence"]
        confidence = found and Confidence(**{**found, "deciles": [tuple(pair) for pair in found["deciles"]]})
        return cls(**{**data, "curve": [tuple(pair) for pair in data["curve"]], "confidence": confidence})


@dataclass(frozen=True)
class Model:
    """Measured runs that differ in the seed of the training alone."""

    runs: tuple[Result, ...]

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def variant(self) -> str:
        return self.runs[0].variant

    @property
    def is_clustering(self) -> bool:
        return self.runs[0].is_clustering

    @property
    def num_clusters(self) -> int | None:
        """C; None where nobody chose it."""
        return None if self.method in WITHOUT_C else self.runs[0].num_clusters

    @property
    def values(self) -> list[float]:
        """What it is judged by: the mean of each training, or of a single one the distance on each set of seeds.

        The sets of one training tell nothing of the next one, so they never stand for trainings.
        """
        return self.runs[0].distances if len(self.runs) == 1 else [mean(run.distances) for run in self.runs]

    @property
    def spread(self) -> Spread:
        return spread(self.values)

    def __str__(self) -> str:
        """`TEMI with C = 40`, or `no condition`."""
        name = name_of(self.runs[0].variant)
        return name if self.num_clusters is None else f"{name} with C = {self.num_clusters}"


@dataclass(frozen=True)
class Results:
    """All that a study found.

    Attributes:
        name: of the study.
        question: what it was to answer.
        dataset: name of the data set.
        metric: the distance's true name, such as `fid`; empty where none was measured.
        runs: the models.
        final: the best of them, trained for longer, where that was asked for.
        bound: the summary of `cedm bound`, where it was asked for.
        protocol: how the final distances were measured, and those along the training.
        missing: names of the runs that failed or lack a measurement.
        left_out: what was not run, and why.
    """

    name: str
    question: str
    dataset: str
    metric: str
    runs: list[Result]
    final: Result | None = None
    bound: dict[str, Any] | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def trained(self) -> list[Result]:
        """Every model, the final one last."""
        return [*self.runs, *([self.final] if self.final is not None else [])]

    @property
    def models(self) -> list[Model]:
        """The models of all runs that have a distance, in the runs' order."""
        found: dict[tuple[str, str, int | None], list[Result]] = {}
        for run in self.runs:
            if run.distances:
                found.setdefault((run.variant, run.method, run.num_clusters), []).append(run)
        return [Model(tuple(members)) for members in found.values()]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Results":
        """What `dataclasses.asdict` and JSON made of it; other keys are ignored."""
        runs, final = [Result.from_json(run) for run in data["runs"]], data["final"] and Result.from_json(data["final"])
        known = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        return cls(**{**known, "runs": runs, "final": final})


def gather(plan: Plan, name: str, question: str, dataset: str) -> Results:
    """The results of the jobs that have ended; a run whose training or distance is missing is named."""
    runs, missing, metrics, protocol = [], [], [], {}
    for run in [*plan.runs, *([plan.final] if plan.final is not None else [])]:
        trained, evaluated = summary_of(plan, f"train-{run.name}"), summary_of(plan, f"evaluate-{run.name}")
        if trained is None or (evaluated is None and plan.job(f"evaluate-{run.name}") is not None):
            missing.append(run.name)
        if trained is None:
            continue
        whose = f" of {run.name}" if run is plan.final else ""  # trained for longer, and judged in its own way
        along = trained.get("distances")
        if evaluated is not None:
            metric, _, protocol[f"final model{whose}"] = distances_in(evaluated)
            metrics.append(metric)
        if along:
            protocol[f"along the training{whose}"] = {
                key: along[key] for key in along if key not in ("kimg_and_distance", "name")
            }
            metrics.append(along["name"])
        runs.append(result_of(plan, run, trained, evaluated))
    final = runs.pop() if plan.final is not None and runs and runs[-1].name == plan.final.name else None
    bound = summary_of(plan, "bound")
    metric = metrics[0] if metrics else ""
    return Results(name, question, dataset, metric, runs, final, bound, protocol, missing, plan.left_out)


def result_of(plan: Plan, run: Run, trained: Mapping[str, Any], evaluated: Mapping[str, Any] | None) -> Result:
    """The numbers of one model.

    Its distances are those of `cedm evaluate`; the last one along the training stands in where the study asks for no
    others, and never where one failed: they are taken on other numbers of images, and can't be compared.
    """
    curve = [(float(kimg), float(value)) for kimg, value in trained.get("distances", {}).get("kimg_and_distance", [])]
    distances = [value for _, value in curve[-1:]] if plan.job(f"evaluate-{run.name}") is None else []
    train = plan.job(f"train-{run.name}")
    assert train is not None
    grouping = next((plan.job(name) for name in train.needs if name.startswith("cluster-")), None)
    clustered = (grouping.summary() if grouping is not None else None) or {}
    return Result(
        name=run.name,
        group=run.group,
        method=run.condition.method,
        num_clusters=clustered.get("num_clusters"),
        backbone=run.settings.backbone.name,
        seed=run.settings.seed,
        kimg=trained["nimg"] / 1000,
        distances=distances_in(evaluated)[1] if evaluated is not None else distances,
        curve=curve,
        scores={name: float(clustered[name]) for name in SCORES if clustered.get(name) is not None},
        confidence=confidence_of(plan, run),
        folder=str(train.folder),
        values=list(run.values),
    )


def summary_of(plan: Plan, job_name: str) -> dict[str, Any] | None:
    job = plan.job(job_name)
    return None if job is None else job.summary()


def confidence_of(plan: Plan, run: Run) -> Confidence | None:
    """The head's confidence over all sets of sampling seeds that are finished; None where it wasn't asked for."""
    jobs = [job for job in plan.jobs if job.name.startswith(f"generate-{run.name}-set")]
    sets = [summary["confidence"] for job in jobs if (summary := job.summary()) is not None]
    if not sets:
        return None
    evaluated = summary_of(plan, f"evaluate-{run.name}-confident")
    tenths = zip(*(found["deciles"] for found in sets), strict=True)
    return Confidence(
        agreement=mean(found["agreement"] for found in sets),
        agreement_kept=mean(found["agreement_kept"] for found in sets),
        keep=sets[0]["keep"],
        deciles=[(mean(sure for sure, _ in tenth), mean(agreed for _, agreed in tenth)) for tenth in tenths],
        distances_kept=distances_in(evaluated)[1] if evaluated is not None else [],
    )
