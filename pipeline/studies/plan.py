"""From a study's YAML to its jobs: which commands with which settings, in which order, and where their results lie."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from datamodules.images.sources import ImageSource
from lightning_modules.clustering.bound import MOST_WORTH_TRAINING
from lightning_modules.clustering.bound_settings import BoundSettings
from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.diffusion.denoising_error import noise_levels
from pipeline.evaluation.evaluate_settings import EvaluateSettings, check_metrics
from pipeline.evaluation.measures import check_sizes, plan_of
from pipeline.evaluation.metrics_table import FRECHET
from pipeline.running.automatic import as_in_study
from pipeline.running.bound_grid import grid_of
from pipeline.running.condition import Condition
from pipeline.running.held_out import MOST_IMAGES
from pipeline.running.jobs import Job
from pipeline.running.own_images import composed
from pipeline.running.run_folder import TRAINING_IDENTITY, run_settings
from pipeline.settings.schemas import SharedSettings, StudyCommandSettings
from pipeline.settings.words import key_of, quoted, word
from pipeline.studies.grid import study_runs
from pipeline.studies.jobs import FINAL, Plan, Run
from pipeline.studies.results import distances_in
from pipeline.studies.study_settings import FROM_THE_BOUND, StudySettings
from storage.digests import file_digest
from storage.errors import UserError
from storage.fingerprints import fingerprint

MARK = 8  # hexadecimal digits of a job's fingerprint, which its folder's name ends in


class Planner:
    """Makes the jobs of the runs; those that are the same for several runs are made once.

    Args:
        settings: those of the study, with what trainings leave at `auto` decided.
        source: the images; its fingerprint goes into the folders' names.
        typed: the user's settings that every job gets.
    """

    def __init__(self, settings: StudyCommandSettings, source: ImageSource, typed: Sequence[str]) -> None:
        self.settings, self.study, self.bound = settings, settings.study, settings.bound
        self.source, self.typed = source, list(typed)
        self.jobs: dict[str, Job] = {}
        self.clusterings: dict[str, str] = {}  # file of pseudo-labels → job
        usual = composed("train", self.typed, origin="study")
        self.full_kimg, self.first_seed = usual.training.duration_kimg, usual.seed
        self.num_images = self.study.num_images or usual.evaluation.num_final
        self.parent = Path(self.study.jobs_dir)
        self.num_held_out = 0 if source.held_out is None else len(source.held_out)

    def add(
        self, name: str, command: str, words: Sequence[str], needs: Sequence[Job], identity: object, images: float = 0
    ) -> Job:
        """One more job, or the one of this name.

        `identity` is what decides what it finds, beside the jobs that it needs: settings as composed, and fingerprints
        of what they name. A folder of the same identity is taken whatever it is called, as after `study.seeds=[0]`
        became `study.seeds=[0,1]`.
        """
        if name not in self.jobs:
            marks = [job.folder.name[-MARK:] for job in needs]
            known = fingerprint([command, identity, marks, self.source.fingerprint])[:MARK]
            folder = next(iter(sorted(self.parent.glob(f"{command}-*{known}"))), self.parent / f"{name}-{known}")
            self.jobs[name] = Job(name, command, tuple(words), folder, tuple(job.name for job in needs), round(images))
        return self.jobs[name]

    def embed(self, condition: Condition, words: Sequence[str]) -> Job:
        """The embeddings that a clustering needs, and for TEMI the neighbours."""
        clustering = condition.clustering
        neighbours = clustering.num_neighbours if isinstance(clustering, TEMISettings) else 0
        name = f"embed-{condition.backbone.name}" + (f"-{neighbours}-neighbours" if neighbours else "")
        return self.add(name, "embed", words, [], [condition.backbone_identity, neighbours])

    def cluster(self, name: str, condition: Condition, words: Sequence[str]) -> Job:
        """The pseudo-labels of a condition, after the embeddings where they are needed."""
        needs = [self.embed(condition, words)] if condition.needs_no("embed") is None else []
        file = condition.pseudo_labels_path(self.source).name  # holds the fingerprint of all that decides them
        return self.add(self.clusterings.setdefault(file, name), "cluster", words, needs, file)

    def train(self, run: Run) -> Job:
        """The diffusion model of a run, after what it needs; known by its settings and the files that they name."""
        clusters = run.condition.needs_no("cluster") is None
        needs = [self.cluster(f"cluster-{run.name}", run.condition, run.words)] if clusters else []
        settings, words = as_in_study(run.settings, self.settings)
        files = {}
        for key in ("assignments", "init_from"):
            path = getattr(settings, key) and Path(getattr(settings, key).split("::")[0])
            if path and path.is_file():
                files[key] = file_digest(path, settings.cache_dir)
        identity = [run_settings(settings, files, TRAINING_IDENTITY), settings.assignments]
        images = training_images(settings, self.num_held_out)
        return self.add(f"train-{run.name}", "train", [*run.words, *words], needs, identity, images)

    def distance(self, run: Run) -> Job:
        """The final model's distance on several sets of sampling seeds."""
        train, measured = self.train(run), [*self.measured(), f"sets={self.study.sampling_sets}"]
        words = [*run.words, word("generated", train.folder), *measured]
        images = self.distance_images(run.settings)
        return self.add(f"evaluate-{run.name}", "evaluate", words, [train], measured, images)

    def distance_images(self, settings: SharedSettings) -> float:
        """What the distance of one model costs, in training images."""
        return self.study.sampling_sets * sampling_images(settings, self.num_images)

    def measured(self) -> list[str]:
        """What `cedm evaluate` is to measure, and on how many images of a set."""
        return [f"metrics=[{','.join(self.study.metrics)}]", f"num={self.num_images}", "memorisation=false"]

    def confidence(self, run: Run) -> None:
        """The most confident share of generated images on each set of sampling seeds, and the distance of these."""
        train, made = self.train(run), []
        candidates = round(self.num_images / self.study.keep)
        given = [*run.words, word("ckpt", train.folder), word("head", run.condition.head_path(self.source))]
        for number in range(self.study.sampling_sets):
            own = [f"keep={self.study.keep}", f"num={self.num_images}", f"first_seed={number * candidates}"]
            images, name = sampling_images(run.settings, candidates), f"generate-{run.name}-set{number}"
            made.append(self.add(name, "generate", [*given, *own], [train], own, images))
        folders = ",".join(quoted(job.folder / "images") for job in made)
        words = [*run.words, f"generated=[{folders}]", *self.measured()]
        self.add(f"evaluate-{run.name}-confident", "evaluate", words, made, self.measured())

    def final(self, runs: Sequence[Run]) -> Run | None:
        """The best run once more, for `study.final_kimg`; None as long as the distance of one of them is unknown."""
        found = [self.distance(run).summary() for run in runs]
        distances = [mean(distances_in(summary)[1]) for summary in found if summary is not None]
        if len(distances) < len(runs):
            return None
        best = runs[distances.index(min(distances))]
        words = self.longer(best.words)
        settings = composed("train", words, origin="study.final_kimg")
        final = Run(f"{best.name}{FINAL}", best.group, tuple(words), settings, best.values)
        self.distance(final)
        return final

    def longer(self, words: Sequence[str]) -> list[str]:
        """The settings of a run with the duration of the final training."""
        kept = [text for text in words if key_of(text) != "training.duration_kimg"]
        return [*kept, f"training.duration_kimg={self.study.final_kimg:g}"]

    def final_images(self) -> int:
        """What the final training and its distance cost, whichever run is the best."""
        if self.study.final_kimg is None:
            return 0
        settings = composed("train", self.longer([*self.typed, "clustering=temi"]), origin="study.final_kimg")
        return round(training_images(settings, self.num_held_out) + self.distance_images(settings))

    def after_the_bound(self) -> tuple[str, int]:
        """What follows when the bound is known, and the most that it costs: one run for each C that it can give."""
        possible = replace(self.study, clusters=list(range(2, 2 + MOST_WORTH_TRAINING)))
        runs, _ = study_runs(possible, self.full_kimg, self.source, self.typed)
        measured = self.distance_images if "distance" in self.study.measure else lambda settings: 0.0
        images = sum(training_images(run.settings, self.num_held_out) + measured(run.settings) for run in runs)
        told = f"at most {len(runs)} trainings of {runs[0].settings.training.duration_kimg:g} kimg, as the bound tells"
        final = self.study.final_kimg
        return told + (f", then one of {final:g} kimg" if final else ""), round(images) + self.final_images()

    def bound_job(self, grid: Sequence[int]) -> Job:
        """The upper bound on C from utilization ratios, after the clusterings of its grid."""
        bound = self.bound
        typed = [text for text in self.typed if key_of(text) != "clustering.beta"]  # which the bound itself chooses
        given = [*typed, "clustering=temi"]
        points = grid_of(grid, bound.num_seeds, self.first_seed, self.source, given)
        needs = [self.cluster(f"cluster-temi-{one.name}", one.condition, one.words) for one in points]
        settings = [f"bound.{key}={value}" for key, value in bound.identity().items() if key != "grid"]
        words = [*given, *settings, f"bound.grid=[{','.join(map(str, grid))}]"]
        asked = composed("bound", words, origin="study.measure=[bound]")
        return self.add(
            "bound", "bound", words, needs, run_settings(asked, {}, ("bound", "dataset", "clustering", "seed"))
        )


def training_images(settings: SharedSettings, num_held_out: int = 0) -> float:
    """What a training costs, in training images, with the looks along it, the one at its end among them.

    Each look is a distance, and the loss on images held out and on as many others, a forward pass at each noise level.
    """
    kimg, evaluation = settings.training.duration_kimg, settings.evaluation
    distance = sampling_images(settings, evaluation.num_images) if evaluation.backbone else 0.0
    losses = 2 * min(num_held_out, MOST_IMAGES) * len(noise_levels()[0]) / 3
    return 1000 * kimg + math.ceil(round(kimg / evaluation.every_kimg, 6)) * (distance + losses)


def sampling_images(settings: SharedSettings, num_images: int) -> float:
    """Generating counted in training images: 2·steps − 1 forward passes, where training takes one and a backward."""
    return num_images * (2 * settings.sampler.num_steps(settings.dataset.resolution) - 1) / 3


def make_plan(settings: StudyCommandSettings, source: ImageSource, typed: Sequence[str]) -> Plan:
    """The jobs of a study as far as they can be told now.

    Where `study.clusters` is `bound`, that is the bound alone until it is known, and where there is a
    `study.final_kimg`, the final training follows from the distances. Planning again then gives the rest.
    """
    study, bound = settings.study, settings.bound
    check_comparable(study)
    planner = Planner(settings, source, typed)
    if study.clusters == FROM_THE_BOUND:
        grid = [C for C in bound.grid or BoundSettings().grid or [] if len(source) >= 2 * C]
        if not grid:
            raise UserError(f"bound.grid: {source.name!r} has {len(source)} images, too few for any C of it.")
        job = planner.bound_job(grid)
        found = job.summary()
        check_evaluation(planner, [*typed, "clustering=temi"])
        if found is None:
            left_out = ["The other jobs follow from the bound."]
            return Plan([], list(planner.jobs.values()), left_out, later=planner.after_the_bound())
        if not found["worth_training"]:
            raise UserError(
                f"{job.folder}: no number of clusters reaches the threshold {found['threshold']}. "
                "Set study.clusters=[2,5,10], or a lower bound.threshold."
            )
        study = replace(study, clusters=found["worth_training"])
    runs, left_out = study_runs(study, planner.full_kimg, source, typed)
    for run in runs:
        planner.train(run)
        if "distance" in study.measure:
            planner.distance(run)
        if "confidence" in study.measure and run.condition.method == "temi":
            planner.confidence(run)
    if "bound" in study.measure:
        clusterings = [run.condition.clustering for run in runs if run.condition.method == "temi"]
        grid = bound.grid or sorted({one.num_clusters for one in clusterings if one.num_clusters is not None})
        if grid:
            planner.bound_job(grid)
    check_evaluation(planner, runs[0].words)
    final, later = None, ("", 0)
    if study.final_kimg is not None:
        final = planner.final(runs)
        if final is None:
            left_out.append("The final training follows from the distances.")
            later = f"the best once more, for {study.final_kimg:g} kimg", planner.final_images()
    return Plan(runs, list(planner.jobs.values()), left_out, final, later)


def check_comparable(study: StudySettings) -> None:
    """Raise a `UserError` where the models could not be compared, hours later."""
    wanted = study.metrics
    check_metrics("study.metrics", wanted)
    if not set(wanted) & set(FRECHET):
        raise UserError(
            f"study.metrics={wanted}: a study compares its models by a Fréchet distance. "
            f"Set study.metrics=[{','.join(['fd', *wanted])}], or with {' or '.join(FRECHET[:-1])}."
        )


def check_evaluation(planner: Planner, words: Sequence[str]) -> None:
    """Refuse what `cedm evaluate` would refuse after all trainings: a metric without its backbone, too few images."""
    if not {"distance", "confidence"} & set(planner.study.measure):
        return
    asked = composed("evaluate", [*words, *planner.measured(), "generated=later"], origin="study.metrics")
    assert isinstance(asked, EvaluateSettings)
    where = f"a set of study.num_images={planner.num_images}", asked.dataset.name
    check_sizes(plan_of(asked, asked.evaluation.backbone), planner.num_images, len(planner.source), *where)
