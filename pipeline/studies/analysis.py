"""What the numbers say: pure functions of measurements, each tested on data with a known answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

import numpy as np
from scipy import stats

RESAMPLES = 5000
LEVEL = 0.95

Verdict = Literal["lower", "higher", "undecided"]


@dataclass(frozen=True)
class Spread:
    """Mean of several measurements and their standard deviation; None of a single one."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        """Two digits of the deviation, and the mean to the same place."""
        if not self.std:
            return f"{self.mean:.3g}" if self.std is None else f"{self.mean:.3g} ± 0"
        places = max(0, 1 - math.floor(math.log10(self.std)))
        return f"{self.mean:.{places}f} ± {self.std:.{places}f}"


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (over n − 1)."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Crossing:
    """Where a curve reaches a value: at `kimg`, or somewhere before where its first point is below already."""

    kimg: float
    at_most: bool


def images_to_reach(curve: Sequence[tuple[float, float]], target: float) -> Crossing | None:
    """The first point at which a falling curve of (kimg, distance) is at or below `target`; None where it never is.

    Between two measured points the curve is taken as straight.
    """
    before: tuple[float, float] | None = None
    for kimg, distance in sorted(curve):
        if distance <= target:
            if before is None:
                return Crossing(kimg, at_most=True)
            share = (before[1] - target) / (before[1] - distance)
            return Crossing(before[0] + share * (kimg - before[0]), at_most=False)
        before = kimg, distance
    return None


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Correlation:
    """Pearson's r and Spearman's ρ of n pairs."""

    n: int
    pearson: Interval
    spearman: Interval


def correlation(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Correlation | None:
    """Pearson and Spearman with percentile intervals from resampled pairs; None where nothing can be said.

    That is for fewer than four pairs, or where one side is constant. Resamples in which a side is constant are left
    out.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values on one side, {len(b)} on the other")
    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    rows = np.random.default_rng(seed).integers(len(a), size=(RESAMPLES, len(a)))
    rows = rows[(np.ptp(a[rows], axis=1) > 0) & (np.ptp(b[rows], axis=1) > 0)]

    def interval(value: float, x: np.ndarray, y: np.ndarray) -> Interval:
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(stats.pearsonr(x, y, axis=1).statistic, [tail, 1 - tail])
        return Interval(float(value), float(low), float(high))

    return Correlation(
        n=len(a),
        pearson=interval(stats.pearsonr(a, b).statistic, a[rows], b[rows]),
        spearman=interval(
            stats.spearmanr(a, b).statistic, stats.rankdata(a[rows], axis=1), stats.rankdata(b[rows], axis=1)
        ),
    )


def compare(a: Sequence[float], b: Sequence[float]) -> Verdict:
    """Whether the values `a` are lower or higher than `b`: Welch's t-test at 5 %; undecided with one value on a side.

    The values are distances on several sets of sampling seeds, so that is what the verdict is sure of: the same two
    models, sampled again. It doesn't speak of models that were trained again from other seeds.
    """
    if min(len(a), len(b)) < 2:
        return "undecided"
    difference = mean(a) - mean(b)
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return "undecided" if difference == 0 else "lower" if difference < 0 else "higher"
    p_value = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    if math.isnan(p_value) or p_value >= 1 - LEVEL:
        return "undecided"
    return "lower" if difference < 0 else "higher"
