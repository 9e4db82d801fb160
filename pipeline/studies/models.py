"""What a study compares: models that differ in more than the seed, and which of two is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from pipeline.pictures.chart import name_of
from pipeline.studies.analysis import Spread, Verdict, block_p_values, holm, p_value, spread, verdict
from pipeline.studies.results import Result, Results

WITHOUT_C = ("none", "labels")  # conditions for which nobody chooses a number of clusters


@dataclass(frozen=True)
class Model:
    """Measured runs that differ in the seed of the training alone."""

    runs: tuple[Result, ...]

    @property
    def variant(self) -> str:
        return self.runs[0].variant

    @property
    def method(self) -> str:
        return self.runs[0].method

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

    @property
    def name(self) -> str:
        """The run's name, where it is a single one."""
        return self.runs[0].name if len(self.runs) == 1 else str(self)

    def __str__(self) -> str:
        """`TEMI with C = 40`, or `no condition`."""
        name = name_of(self.variant)
        return name if self.num_clusters is None else f"{name} with C = {self.num_clusters}"


def models_of(runs: Sequence[Result]) -> list[Model]:
    """The models of all runs that have a distance, in the runs' order."""
    found: dict[tuple[str, str, int | None], list[Result]] = {}
    for run in runs:
        if run.distances:
            found.setdefault((run.variant, run.method, run.num_clusters), []).append(run)
    return [Model(tuple(members)) for members in found.values()]


def clusterings(results: Results) -> list[Result]:
    return [run for run in results.runs if run.is_clustering]


def best(models: Sequence[Model]) -> Model:
    return min(models, key=lambda model: model.spread.mean)


def chances(pairs: Sequence[tuple[Model, Model]]) -> list[float | None]:
    """The p-values of the differences between the two of each pair; None where there are too few values for a test.

    Where all models were trained once and measured on as many sets, they tell together how much sets differ by chance.
    """
    sides: list[Model] = []
    for side in (side for pair in pairs for side in pair):
        if side not in sides:
            sides.append(side)
    sets = {len(side.values) for side in sides}
    together = all(len(side.runs) == 1 and min(side.values) > 0 for side in sides) and len(sets) == 1 and min(sets) > 1
    if not together:
        return [chance(*pair) for pair in pairs]
    rows = [(sides.index(model), sides.index(rival)) for model, rival in pairs]
    return list(block_p_values([side.values for side in sides], rows))


def chance(model: Model, rival: Model) -> float | None:
    """The p-value of the difference between two models by themselves; None where there are too few values for a test.

    Of models that were trained once, set i of the one is sampled from the same seeds as set i of the other.
    """
    single = [len(side.runs) == 1 for side in (model, rival)]
    if any(single) and not all(single):
        return None  # trainings on one side, sets of one training on the other
    return p_value(model.values, rival.values, paired=all(single) and len(model.values) == len(rival.values))


def verdicts(pairs: Sequence[tuple[Model, Model]]) -> list[Verdict]:
    """Whether the first of each pair is lower or higher than the second, with Holm's correction over all pairs."""
    found = chances(pairs)
    corrected = holm([1.0 if p is None else p for p in found])
    return [
        verdict(model.values, rival.values, None if p is None else true_p)
        for (model, rival), p, true_p in zip(pairs, found, corrected, strict=True)
    ]


def verdict_on_best(winner: Model, rival: Model, tried: Sequence[Model]) -> Verdict:
    """Whether the best of all that were tried is lower or higher than a rival.

    Of many, one looks good by chance; so it is judged as one of the comparisons of all with that rival.
    """
    others = [model for model in tried if model != rival]
    return verdicts([(model, rival) for model in others])[others.index(winner)]
