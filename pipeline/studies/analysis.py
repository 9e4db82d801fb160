"""What the numbers say: pure functions of measurements, each tested on data with a known answer."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

import numpy as np
from scipy import stats

RESAMPLES = 5000
PERMUTATIONS = 9999  # all of them where there are no more: up to 7 pairs
LEVEL = 0.95

Verdict = Literal["better", "worse", "not significantly different", "not tested"]  # of a distance


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

    def __str__(self) -> str:
        return f"{'at most ' if self.at_most else ''}{self.kimg:.3g}"


def images_to_reach(curve: Sequence[tuple[float, float]], target: float) -> Crossing | None:
    """Where the running minimum of a curve of (kimg, distance) first is at or below `target`; None where it never is.

    The best so far is what a training has reached, whatever noise comes after. Between two measured points the curve
    is taken as straight.
    """
    before: tuple[float, float] | None = None
    for kimg, distance in sorted(curve):
        if distance <= target:
            if before is None:
                return Crossing(kimg, at_most=True)
            share = (before[1] - target) / (before[1] - distance)
            return Crossing(before[0] + share * (kimg - before[0]), at_most=False)
        before = kimg, distance if before is None else min(before[1], distance)
    return None


@dataclass(frozen=True)
class Saving:
    """How many times fewer images one curve needs than another: between `low` and `high`, which are equal if known."""

    low: float
    high: float

    def __str__(self) -> str:
        """`2.2`, `at least 4.0`, `at most 0.7` or `unknown`."""
        if self.low == self.high:
            return f"{self.low:.1f}"
        if math.isinf(self.high):
            return f"at least {self.low:.1f}" if self.low else "unknown"
        return f"at most {self.high:.1f}"


def images_saved(base: Sequence[tuple[float, float]], rival: Sequence[tuple[float, float]]) -> Saving:
    """How many times fewer images `rival` needs for the best that `base` reaches; both take their first crossing.

    Where a first point is at the target already, the crossing lies somewhere before it, and where the rival never gets
    there, somewhere after its end.
    """
    target = min(distance for _, distance in base)
    ours, theirs = images_to_reach(base, target), images_to_reach(rival, target)
    assert ours is not None
    if theirs is None:
        return Saving(0.0, ours.kimg / max(kimg for kimg, _ in rival))
    ratio = ours.kimg / theirs.kimg
    return Saving(0.0 if ours.at_most else ratio, math.inf if theirs.at_most else ratio)


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
    """Pearson's r and Spearman's ρ of n pairs; `p_value` of the latter, from permutations."""

    n: int
    pearson: Interval
    spearman: Interval
    p_value: float

    @property
    def is_shown(self) -> bool:
        """Whether the ranks go together: resampled pairs alone are overconfident where they are few."""
        return self.spearman.excludes_zero and self.p_value < 1 - LEVEL


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
        p_value=rank_p_value(a, b, seed),
    )


def rank_p_value(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of Spearman's ρ: over all orders of the pairs where they are few, else over random ones."""
    ours, theirs = stats.rankdata(x) - (len(x) + 1) / 2, stats.rankdata(y)
    found = stats.permutation_test(
        (ours,),
        lambda shuffled, axis: (shuffled * theirs).sum(axis=axis),  # ρ up to a factor that no order changes
        permutation_type="pairings",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=seed,
    )
    return float(found.pvalue)


def p_value(a: Sequence[float], b: Sequence[float], paired: bool) -> float | None:
    """How often chance alone makes such a difference of the means: a two-sided t-test, None with one value on a side.

    Args:
        paired: value i of one side has something in common with value i of the other, as two models sampled from the
            same seeds: a t-test of their differences; otherwise Welch's.
    """
    if min(len(a), len(b)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are all equal: p is 0 or NaN
        test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    return 1.0 if math.isnan(test.pvalue) else float(test.pvalue)


def block_p_values(table: Sequence[Sequence[float]], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """The p-values of differences between models that were all measured on the same sets of sampling seeds.

    Randomised blocks: log distance = model + set of seeds + noise, where the noise is of one size for all models, as
    distances vary by a share of themselves. What all models tell of it together makes up for the few sets of each. Of
    two models alone this is the paired t-test of their logarithms.

    Args:
        table: a row for each model, a column for each set; all above 0.
        pairs: which rows to compare.
    """
    logs = np.log(np.asarray(table, dtype=float))  # [models, sets]
    means = logs.mean(axis=1)
    noise = logs - means[:, np.newaxis] - logs.mean(axis=0) + logs.mean()
    freedom = (logs.shape[0] - 1) * (logs.shape[1] - 1)
    error = math.sqrt(2 * float((noise**2).sum()) / freedom / logs.shape[1])
    if error == 0:
        return [1.0 if means[a] == means[b] else 0.0 for a, b in pairs]
    return [2 * float(stats.t.sf(abs(means[a] - means[b]) / error, freedom)) for a, b in pairs]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, corrected for their number: 5 % is then the chance of any false verdict."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]), 1.0)
    return corrected.tolist()


def verdict(a: Sequence[float], b: Sequence[float], p: float | None) -> Verdict:
    """Whether the distances `a` are better (lower) or worse than `b`, at 5 %."""
    if p is None:
        return "not tested"
    if p >= 1 - LEVEL:
        return "not significantly different"
    return "better" if mean(a) < mean(b) else "worse"
