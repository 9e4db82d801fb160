"""What the jobs of a study found, gathered from their `summary.json` files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import mean
from typing import Any

from pipeline.pictures.chart import name_of
from pipeline.studies.analysis import Spread, spread
from pipeline.studies.gains import DescriptionLength, description_length_of
from pipeline.studies.jobs import Plan, Run

SCORES = ("num_used", "utilization_ratio", "kl_from_uniform", "accuracy", "nmi", "ami", "ari")
CONTROLS = ("none", "labels", "random")  # what is not a clustering of the images: given, random or absent
WITHOUT_C = ("none", "labels")  # conditions for which nobody chooses a number of clusters
OF_ONE_MODEL = ("path", "sha256", "fingerprint", "labels")  # of the protocol: its model's own, not its study's


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
    deciles: Sequence[Sequence[float]]
    distances_kept: list[float]


@dataclass(frozen=True)
class Result:
    """One model of the study and what was measured of it.

    Attributes:
        name: `temi-40`, of the `group` `temi`.
        method: what it is conditioned on: temi, kmeans, labels, random, … or none.
        num_clusters: C that was asked for; None without condition.
        kimg: thousand training images seen.
        distances: of the final model, a value for each set of sampling seeds.
        curve: (kimg, distance) along the training, on one set of sampling seeds.
        scores: of the clustering, as `cedm score` names them.
        folder: of the training run.
        values: of the study's lists that do not set C, such as the backbone of this run.
        length: gain and price of the condition, where images were held out.
    """

    name: str
    group: str
    method: str
    num_clusters: int | None
    backbone: str
    seed: int
    kimg: float
    distances: list[float]
    curve: Sequence[Sequence[float]]
    scores: dict[str, float] = field(default_factory=dict)
    confidence: Confidence | None = None
    folder: str = ""
    values: list[str] = field(default_factory=list)
    length: DescriptionLength | None = None

    @property
    def variant(self) -> str:
        """What sets it apart from the other runs but for C and the seed: the group, and values of the study's lists."""
        return "-".join([self.group, *self.values])

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Result":
        """What `dataclasses.asdict` and JSON made of it."""
        found = {"confidence": data["confidence"] and Confidence(**data["confidence"])}
        return cls(**{**data, **found, "length": data.get("length") and DescriptionLength.from_json(data["length"])})


@dataclass(frozen=True)
class Model:
    """Measured runs that differ in the seed of the training alone; `num_clusters` is None where nobody chose it."""

    variant: str
    method: str
    num_clusters: int | None
    runs: tuple[Result, ...]

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
        name = name_of(self.variant)
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
        return self.runs if self.final is None else [*self.runs, self.final]

    @property
    def models(self) -> list[Model]:
        """The models of all runs that have a distance, in the runs' order."""
        found: dict[tuple[str, str, int | None], list[Result]] = {}
        for run in [run for run in self.runs if run.distances]:
            num_clusters = None if run.method in WITHOUT_C else run.num_clusters
            found.setdefault((run.variant, run.method, num_clusters), []).append(run)
        return [Model(*key, tuple(members)) for key, members in found.items()]

    @property
    def metric_axis(self) -> str:
        """The name of an axis of distances."""
        return f"{self.metric} (lower is better)"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Results":
        """What `dataclasses.asdict` and JSON made of it; other keys are ignored."""
        runs, final = [Result.from_json(run) for run in data["runs"]], data["final"] and Result.from_json(data["final"])
        return cls(**{**{own.name: data[own.name] for own in fields(cls)}, "runs": runs, "final": final})


def gather(plan: Plan, name: str, question: str, dataset: str) -> Results:
    """The results of the jobs that have ended; a run whose training or distance is missing is named."""
    runs, missing, metrics, protocol = {}, [], [], {}
    for run in [*plan.runs, *([plan.final] if plan.final is not None else [])]:
        trained, evaluated = plan.summary(f"train-{run.name}"), plan.summary(f"evaluate-{run.name}")
        if trained is None or (evaluated is None and plan.job(f"evaluate-{run.name}") is not None):
            missing.append(run.name)
        if trained is None:
            continue
        whose = f" of {run.name}" if run is plan.final else ""  # trained for longer, and judged in its own way
        if evaluated is not None:
            metric, _, protocol[f"final model{whose}"] = distances_in(evaluated)
            metrics.append(metric)
        if along := dict(trained.get("distances") or {}):
            metrics.append(along.pop("name"))
            del along["kimg_and_distance"]
            protocol[f"along the training{whose}"] = along
        runs[run.name] = result_of(plan, run, trained, evaluated)
    final = runs.pop(plan.final.name, None) if plan.final is not None else None
    metric, bound = next(iter(metrics), ""), plan.summary("bound")
    return Results(name, question, dataset, metric, list(runs.values()), final, bound, protocol, missing, plan.left_out)


def result_of(plan: Plan, run: Run, trained: Mapping[str, Any], evaluated: Mapping[str, Any] | None) -> Result:
    """The numbers of one model.

    Its distances are those of `cedm evaluate`; the last one along the training stands in where the study asks for no
    others, and never where one failed: they are taken on other numbers of images, and can't be compared.
    """
    curve = (trained.get("distances") or {}).get("kimg_and_distance", [])
    train = plan.job(f"train-{run.name}")
    assert train is not None
    clustered = next((plan.summary(name) for name in train.needs if name.startswith("cluster-")), None) or {}
    if evaluated is not None:
        _, distances, _ = distances_in(evaluated)
    else:
        distances = [value for _, value in curve[-1:]] if plan.job(f"evaluate-{run.name}") is None else []
    return Result(
        name=run.name,
        group=run.group,
        method=run.condition.method,
        num_clusters=clustered.get("num_clusters"),
        backbone=run.settings.backbone.name,
        seed=run.settings.seed,
        kimg=trained["nimg"] / 1000,
        distances=distances,
        curve=curve,
        scores={name: float(clustered[name]) for name in SCORES if clustered.get(name) is not None},
        confidence=confidence_of(plan, run),
        folder=str(train.folder),
        values=list(run.values),
        length=description_length_of(plan, run),
    )


def confidence_of(plan: Plan, run: Run) -> Confidence | None:
    """The head's confidence over all sets of sampling seeds that are finished; None where it wasn't asked for."""
    jobs = [job for job in plan.jobs if job.name.startswith(f"generate-{run.name}-set")]
    sets = [summary["confidence"] for job in jobs if (summary := job.summary()) is not None]
    if not sets:
        return None
    evaluated = plan.summary(f"evaluate-{run.name}-confident")
    tenths = zip(*(found["deciles"] for found in sets), strict=True)
    return Confidence(
        agreement=mean(found["agreement"] for found in sets),
        agreement_kept=mean(found["agreement_kept"] for found in sets),
        keep=sets[0]["keep"],
        deciles=[[mean(values) for values in zip(*tenth, strict=True)] for tenth in tenths],
        distances_kept=distances_in(evaluated)[1] if evaluated is not None else [],
    )


def distances_in(summary: Mapping[str, Any]) -> tuple[str, list[float], dict[str, Any]]:
    """Of a summary of `cedm evaluate`: the first Fréchet distance that was measured.

    Returns:
        Its name, a value for each set of sampling seeds, and its protocol without what is its model's own.
    """
    name = next(name for name in summary["scores"] if name.startswith(("fid", "fd")))
    score = summary["scores"][name]
    generated = {key: value for key, value in as_one(score["protocol"]["generated"]).items() if key not in OF_ONE_MODEL}
    return name, [float(value) for value in score["sets"]], {**score["protocol"], "generated": generated}


def as_one(parts: Sequence[Mapping[str, Any]], differing: bool = True) -> dict[str, Any]:
    """All descriptions in one: a value that differs from one to another is a list, or is left out."""
    values = {key: [one.get(key) for one in parts] for key in parts[0]}
    same = {key: all(value == found[0] for value in found) for key, found in values.items()}
    return {key: found[0] if same[key] else found for key, found in values.items() if differing or same[key]}
