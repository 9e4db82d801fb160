"""From a study's YAML to its jobs: which commands with which settings, in which order, and where their results lie."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import DictConfig

from datamodules.images.sources import ImageSource
from lightning_modules.clustering.bound import MOST_WORTH_TRAINING
from lightning_modules.diffusion.sampler_settings import SamplerSettings
from pipeline.commands.cluster import head_file
from pipeline.commands.train import GROUPS
from pipeline.evaluation.measures import METRICS, check_sizes, plan_of
from pipeline.running.run_folder import run_settings
from pipeline.settings.inputs import identity_of, not_needed, plain, pseudo_labels_file
from pipeline.settings.words import key_of, quoted, word
from pipeline.studies.distances import distances_in
from pipeline.studies.grid import study_runs
from pipeline.studies.jobs import FINAL, Job, Plan, Run, composed
from storage.digests import file_digest
from storage.errors import UserError
from storage.fingerprints import fingerprint

MEASUREMENTS = ("distance", "confidence", "bound")
FRECHET = ("fid", "fdd", "fd")
FROM_THE_BOUND = "bound"  # in place of a list of C: those that `cedm bound` finds worth training


class Planner:
    """Makes the jobs of the runs; those that are the same for several runs are made once.

    Args:
        cfg: of the study.
        source: the images; its fingerprint goes into the folders' names.
        typed: the user's settings that every job gets.
    """

    def __init__(self, cfg: DictConfig, source: ImageSource, typed: Sequence[str]) -> None:
        self.cfg, self.source, self.typed = cfg, source, list(typed)
        self.jobs: dict[str, Job] = {}
        self.num_images = cfg.study.num_images or cfg.evaluation.num_final

    def add(
        self, name: str, command: str, words: Sequence[str], needs: Sequence[str], identity: object, images: float = 0
    ) -> str:
        """One more job, unless there is one of this name; its name.

        `identity` is all that decides what it finds: settings as composed, and fingerprints of what they name. A folder
        of the same identity is taken whatever it is called, as after `study.seeds=[0]` became `study.seeds=[0,1]`.
        """
        if name not in self.jobs:
            known = fingerprint({"command": command, "identity": identity, "source": self.source.fingerprint})[:8]
            parent = Path(self.cfg.study.jobs_dir)
            folder = next(iter(sorted(parent.glob(f"{command}-*{known}"))), parent / f"{name}-{known}")
            self.jobs[name] = Job(name, command, tuple(words), folder, tuple(needs), round(images))
        return name

    def groups(self, run: Run) -> list[str]:
        """The jobs that make the pseudo-labels of a run: embeddings where they are needed, then the clustering."""
        cfg = run.cfg
        if run.method == "none" or cfg.assignments is not None:
            return []
        needs = []
        if not_needed(cfg, "embed") is None:
            neighbours = cfg.clustering.num_neighbours if run.method == "temi" else 0
            identity = {"backbone": identity_of(cfg), "neighbours": neighbours}
            name = f"embed-{cfg.backbone.name}" + (f"-{neighbours}-neighbours" if neighbours else "")
            needs = [self.add(name, "embed", run.words, [], identity)]
        path = pseudo_labels_file(cfg, self.source)
        same = next((job.name for job in self.jobs.values() if job.folder.name.endswith(clustering_mark(path))), None)
        if same is not None:
            return [same]
        name = f"cluster-{run.name}"
        folder = Path(self.cfg.study.jobs_dir) / f"{name}{clustering_mark(path)}"
        self.jobs[name] = Job(name, "cluster", run.words, folder, tuple(needs))
        return [name]

    def train(self, run: Run) -> str:
        """The diffusion model of a run, after what it needs; the job's name."""
        images = training_images(run.cfg)
        return self.add(f"train-{run.name}", "train", run.words, self.groups(run), self.identity(run), images)

    def identity(self, run: Run) -> dict[str, Any]:
        """All that decides what becomes of a run: its settings, and the content of the files that they name."""
        cfg, files = run.cfg, {}
        if run.method != "none" and cfg.assignments is None:
            files["pseudo_labels"] = pseudo_labels_file(cfg, self.source).name  # holds their fingerprint
        for key in ("assignments", "init_from"):
            path = Path(str(cfg[key]).split("::")[0])
            if cfg[key] is not None and path.is_file():
                files[key] = file_digest(path, cfg.cache_dir)
        return {"settings": run_settings(cfg, files, GROUPS), "assignments": cfg.assignments}

    def distance(self, run: Run, train: str) -> str:
        """The final model's distance on several sets of sampling seeds."""
        study = self.cfg.study
        words = [
            *run.words,
            word("generated", self.jobs[train].folder),
            *self.measured(),
            f"sets={study.sampling_sets}",
        ]
        images = self.distance_images(run.cfg)
        identity = [self.identity(run), *self.measured(), study.sampling_sets]
        return self.add(f"evaluate-{run.name}", "evaluate", words, [train], identity, images)

    def distance_images(self, cfg: DictConfig) -> float:
        """What the distance of one model costs, in training images."""
        return self.cfg.study.sampling_sets * sampling_images(cfg, self.num_images)

    def measured(self) -> list[str]:
        """What `cedm evaluate` is to measure, and on how many images of a set."""
        return [f"metrics=[{','.join(self.cfg.study.metrics)}]", f"num={self.num_images}", "memorisation=false"]

    def confidence(self, run: Run, train: str) -> None:
        """The most confident share of generated images on each set of sampling seeds, and the distance of these."""
        study, made = self.cfg.study, []
        candidates = round(self.num_images / study.keep)
        head = head_file(pseudo_labels_file(run.cfg, self.source))
        for number in range(study.sampling_sets):
            words = [
                *run.words,
                word("ckpt", self.jobs[train].folder),
                word("head", head),
                f"keep={study.keep}",
                f"num={self.num_images}",
                f"first_seed={number * candidates}",
            ]
            images = sampling_images(run.cfg, candidates)
            identity = [self.identity(run), head.name, study.keep, self.num_images, number]
            made.append(self.add(f"generate-{run.name}-set{number}", "generate", words, [train], identity, images))
        folders = ",".join(quoted(self.jobs[name].folder / "images") for name in made)
        words = [*run.words, f"generated=[{folders}]", *self.measured()]
        identity = [self.identity(run), *self.measured(), study.sampling_sets, study.keep]
        self.add(f"evaluate-{run.name}-confident", "evaluate", words, made, identity)

    def final(self, runs: Sequence[Run]) -> Run | None:
        """The best run once more, for `study.final_kimg`; None as long as the distance of one of them is unknown."""
        found = {}
        for run in runs:
            summary = self.jobs[self.distance(run, self.train(run))].summary()
            if summary is None:
                return None
            found[run.name] = mean(distances_in(summary)[1])
        best = min(runs, key=lambda run: found[run.name])
        words = self.longer(best.words)
        cfg = composed("train", words, origin="study.final_kimg")
        final = Run(f"{best.name}{FINAL}", best.group, tuple(words), cfg, best.values)
        self.distance(final, self.train(final))
        return final

    def longer(self, words: Sequence[str]) -> list[str]:
        """The settings of a run with the duration of the final training."""
        kept = [text for text in words if key_of(text) != "training.duration_kimg"]
        return [*kept, f"training.duration_kimg={float(self.cfg.study.final_kimg):g}"]

    def final_images(self) -> int:
        """What the final training and its distance cost, whichever run is the best."""
        if self.cfg.study.final_kimg is None:
            return 0
        cfg = composed("train", self.longer([*self.typed, "clustering=temi"]), origin="study.final_kimg")
        return round(training_images(cfg) + self.distance_images(cfg))

    def after_the_bound(self) -> tuple[str, int]:
        """What follows when the bound is known, and the most that it costs: one run for each C that it can give."""
        possible = self.cfg.copy()
        possible.study.clusters = list(range(2, 2 + MOST_WORTH_TRAINING))
        runs, _ = study_runs(possible, self.source, self.typed)
        measured = self.distance_images if "distance" in self.cfg.study.measure else lambda cfg: 0.0
        images = sum(training_images(run.cfg) + measured(run.cfg) for run in runs)
        told = f"at most {len(runs)} trainings of {runs[0].cfg.training.duration_kimg:g} kimg, as the bound tells"
        final = self.cfg.study.final_kimg
        return told + (f", then one of {final:g} kimg" if final else ""), round(images) + self.final_images()

    def bound(self, grid: Sequence[int], needs: Sequence[str]) -> str:
        """The upper bound on C from utilization ratios."""
        settings = [f"bound.{key}={value}" for key, value in self.cfg.bound.items() if key != "grid"]
        typed = [text for text in self.typed if key_of(text) != "clustering.beta"]  # which the bound itself chooses
        words = [*typed, "clustering=temi", *settings, f"bound.grid=[{','.join(map(str, grid))}]"]
        cfg = composed("bound", words, origin="study.measure=[bound]")
        identity = [run_settings(cfg, {}, ("bound", "dataset", "clustering", "seed")), identity_of(cfg)]
        return self.add("bound", "bound", words, needs, identity)

    def first_bound(self) -> str:
        """The bound before there is any run, on the C of its grid that the data set is large enough for."""
        cfg = composed("bound", [*self.typed, "clustering=temi"], origin="study.clusters=bound")
        grid = [C for C in self.cfg.bound.grid or cfg.bound.grid if len(self.source) >= 2 * C]
        if not grid:
            raise UserError(f"bound.grid: {self.source.name!r} has {len(self.source)} images, too few for any C of it.")
        neighbours = cfg.clustering.num_neighbours
        identity = {"backbone": identity_of(cfg), "neighbours": neighbours}
        words = [*self.typed, "clustering=temi"]
        name = f"embed-{cfg.backbone.name}-{neighbours}-neighbours"
        return self.bound(grid, [self.add(name, "embed", words, [], identity)])

    def bound_of(self, runs: Sequence[Run]) -> None:
        """The bound on the C of the TEMI runs, whose clusterings it takes from the cache."""
        temi = [run for run in runs if run.method == "temi"]
        grid = self.cfg.bound.grid or sorted({run.cfg.clustering.num_clusters for run in temi})
        if grid:
            self.bound(grid, [name for run in temi for name in self.groups(run)])


def clustering_mark(path: Path) -> str:
    """What the folder of the job ends in that makes these pseudo-labels."""
    return f"-{fingerprint(path.name)[:8]}"


def training_images(cfg: DictConfig) -> float:
    """What a training costs with the distances along it, the one at its end among them, in training images."""
    kimg, evaluation = cfg.training.duration_kimg, cfg.evaluation
    looks = math.ceil(round(kimg / evaluation.every_kimg, 6)) if evaluation.backbone else 0
    return 1000 * kimg + looks * sampling_images(cfg, evaluation.num_images)


def sampling_images(cfg: DictConfig, num_images: int) -> float:
    """Generating counted in training images: 2·steps − 1 forward passes, where training takes one and a backward."""
    steps = SamplerSettings(**plain(cfg.sampler)).num_steps(cfg.dataset.resolution)
    return num_images * (2 * steps - 1) / 3


def make_plan(cfg: DictConfig, source: ImageSource, typed: Sequence[str]) -> Plan:
    """The jobs of a study as far as they can be told now.

    Where `study.clusters` is `bound`, that is the bound alone until it is known, and where there is a
    `study.final_kimg`, the final training follows from the distances. Planning again then gives the rest.
    """
    study = cfg.study
    unknown = [name for name in study.measure if name not in MEASUREMENTS]
    if unknown:
        raise UserError(f"study.measure={list(study.measure)}: there are {', '.join(MEASUREMENTS)}, not {unknown[0]}.")
    check_metrics(study)
    planner = Planner(cfg, source, typed)
    if study.clusters == FROM_THE_BOUND:
        bound = planner.jobs[planner.first_bound()]
        found = bound.summary()
        check_evaluation(planner, [*typed, "clustering=temi"])
        if found is None:
            left_out = ["The other jobs follow from the bound."]
            return Plan([], list(planner.jobs.values()), left_out, later=planner.after_the_bound())
        if not found["worth_training"]:
            raise UserError(
                f"{bound.folder}: no number of clusters reaches the threshold {found['threshold']}. "
                "Type study.clusters=[2,5,10], or a lower bound.threshold."
            )
        cfg = cfg.copy()
        cfg.study.clusters = found["worth_training"]
    runs, left_out = study_runs(cfg, source, typed)
    for run in runs:
        train = planner.train(run)
        if "distance" in study.measure:
            planner.distance(run, train)
        if "confidence" in study.measure and run.method == "temi":
            planner.confidence(run, train)
    if "bound" in study.measure:
        planner.bound_of(runs)
    check_evaluation(planner, runs[0].words)
    final, later = None, ("", 0)
    if study.final_kimg is not None:
        final = planner.final(runs)
    if study.final_kimg is not None and final is None:
        left_out.append("The final training follows from the distances.")
        later = f"the best once more, for {study.final_kimg:g} kimg", planner.final_images()
    return Plan(runs, list(planner.jobs.values()), left_out, final, later)


def check_metrics(study: DictConfig) -> None:
    """Raise a `UserError` where the models could not be compared, hours later."""
    wanted = list(study.metrics)
    unknown = [name for name in wanted if name not in METRICS]
    if unknown:
        raise UserError(f"study.metrics={wanted}: there is no {unknown[0]}. There are: {', '.join(METRICS)}.")
    if not set(wanted) & set(FRECHET):
        raise UserError(
            f"study.metrics={wanted}: a study compares its models by a Fréchet distance. "
            f"Type study.metrics=[{','.join(['fd', *wanted])}], or with {' or '.join(FRECHET[:-1])}."
        )


def check_evaluation(planner: Planner, words: Sequence[str]) -> None:
    """Refuse what `cedm evaluate` would refuse after all trainings: a metric without its backbone, too few images."""
    if not {"distance", "confidence"} & set(planner.cfg.study.measure):
        return
    cfg = composed("evaluate", [*words, *planner.measured()], origin="study.metrics")
    check_sizes(
        cfg, plan_of(cfg), planner.num_images, len(planner.source), f"a set of study.num_images={planner.num_images}"
    )
