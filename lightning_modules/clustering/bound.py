"""How many clusters are worth having: the upper bound of arXiv 2403.00570, from utilization ratios alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

UPPER_BETA = 0.6  # spreads the images over all clusters as far as the data allow
COARSE_BETA = 1.0  # lets the number of clusters used saturate
COARSE_FROM = 100  # where it has saturated
MOST_WORTH_TRAINING = 3  # numbers of clusters to train diffusion models on
NEIGHBOURS = (-0.02, -0.01, 0.0, 0.01, 0.02)  # thresholds beside the one that was asked for
TOLERANCE = 1e-9  # of a number of empty clusters: 25 · (1 − 0.96) is 1, and a little more in floating point


@dataclass(frozen=True)
class Measurement:
    """One clustering: `num_used` of `num_clusters` clusters, trained with this β and seed."""

    num_clusters: int
    beta: float
    seed: int
    num_used: int

    @property
    def ratio(self) -> float:
        """The utilization ratio r_C."""
        return self.num_used / self.num_clusters


@dataclass(frozen=True)
class Bound:
    """What the measurements say.

    Attributes:
        upper_bound: the largest C worth trying; None where no C of the grid reaches the threshold.
        coarse_end: median number of clusters used at β = 1, the smallest C worth trying; None without any.
        worth_training: a few C of the grid between the two.
        by_seed: the upper bound that each seed gives by itself.
        by_threshold: the upper bound at the threshold and at its neighbours.
    """

    upper_bound: int | None
    coarse_end: float | None
    worth_training: list[int]
    by_seed: dict[int, int | None]
    by_threshold: dict[float, int | None]

    def may_lie_higher(self, measurements: Sequence[Measurement]) -> bool:
        """Whether the upper bound is the largest C that was tried."""
        tried = [m.num_clusters for m in measurements if m.beta == UPPER_BETA]
        return self.upper_bound is not None and self.upper_bound == max(tried)

    @property
    def agreement(self) -> float:
        """How sure the upper bound is: the share of the seeds that give the same one by themselves, from 0 to 1."""
        return list(self.by_seed.values()).count(self.upper_bound) / len(self.by_seed) if self.by_seed else 0.0


def mean_ratios(measurements: Sequence[Measurement], beta: float = UPPER_BETA) -> dict[int, tuple[float, float]]:
    """C → mean and standard deviation over the seeds of the utilization ratio at one β, in the order of C."""
    ratios: dict[int, list[float]] = {}
    for measurement in sorted(measurements, key=lambda m: m.num_clusters):
        if measurement.beta == beta:
            ratios.setdefault(measurement.num_clusters, []).append(measurement.ratio)
    return {C: (mean(values), stdev(values) if len(values) > 1 else 0.0) for C, values in ratios.items()}


def reaches(C: int, ratio: float, threshold: float) -> bool:
    """Whether the mean ratio of C clusters counts as at the threshold.

    Where C·(1 − threshold) < 1, a single empty cluster would decide. There C counts with one on average over the seeds,
    unless all images are in a single cluster, which is no clustering.
    """
    return C * ratio > 1 + TOLERANCE and C * (1 - ratio) <= max(1.0, C * (1 - threshold)) + TOLERANCE


def reaches_by_one(C: int, ratio: float, threshold: float) -> bool:
    """Whether C counts as at the threshold only because it may leave one cluster empty."""
    return reaches(C, ratio, threshold) and C * (1 - ratio) > C * (1 - threshold) + TOLERANCE


def upper_bound(measurements: Sequence[Measurement], threshold: float, rule: str) -> int | None:
    """The largest C whose mean ratio at β = 0.6 reaches the threshold; under `unbroken`, all smaller C must too."""
    best = None
    for C, (ratio, _) in mean_ratios(measurements).items():
        if reaches(C, ratio, threshold):
            best = C
        elif rule == "unbroken":
            break
    return best


def coarse_end(measurements: Sequence[Measurement]) -> float | None:
    """Median number of clusters used at β = 1 over all C ≥ 100; over the largest C where the grid ends below."""
    saturated = [m for m in measurements if m.beta == COARSE_BETA]
    if not saturated:
        return None
    least = min(COARSE_FROM, max(m.num_clusters for m in saturated))
    return median(m.num_used for m in saturated if m.num_clusters >= least)


def find_bound(measurements: Sequence[Measurement], threshold: float = 0.96, rule: str = "largest") -> Bound:
    """The upper bound under a rule, the coarse end, what lies between them, and what seeds and thresholds say."""
    bound, coarse = upper_bound(measurements, threshold, rule), coarse_end(measurements)
    seeds = sorted({m.seed for m in measurements if m.beta == UPPER_BETA})
    by_seed = {seed: upper_bound([m for m in measurements if m.seed == seed], threshold, rule) for seed in seeds}
    beside = [near for step in NEIGHBOURS if 0 < (near := round(threshold + step, 6)) <= 1]
    by_threshold = {near: upper_bound(measurements, near, rule) for near in beside}
    grid = list(mean_ratios(measurements))
    return Bound(bound, coarse, worth_training(grid, coarse, bound), by_seed, by_threshold)


def worth_training(grid: Sequence[int], coarse: float | None, bound: int | None) -> list[int]:
    """A few C of the grid, from the one nearest the coarse end to the bound, evenly spaced in log C."""
    if bound is None:
        return []
    start = min(grid, key=lambda C: abs(math.log(C / coarse))) if coarse else grid[0]
    candidates = [C for C in grid if start <= C <= bound] or [bound]
    low, high = math.log(candidates[0]), math.log(candidates[-1])
    wanted = [low + (high - low) * step / (MOST_WORTH_TRAINING - 1) for step in range(MOST_WORTH_TRAINING)]
    return sorted({min(candidates, key=lambda C: abs(math.log(C) - place)) for place in wanted})
