"""What the numbers say: pure functions of measurements, each tested on data with a known answer."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import mean, stdev
from typing import Literal

import numpy as np
from scipy import stats
from scipy.optimize import brentq

RESAMPLES = 5000
PERMUTATIONS = 9999  # all of them where there are no more: up to 7 pairs
LEVEL = 0.95
POWER = 0.8

Verdict = Literal["better", "worse", "not significantly different", "not tested"]  # of a distance
Curve = Sequence[Sequence[float]]  # of (kimg, distance)


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
class Between:
    """A number between `low` and `high`, which are equal where it is known; infinity: it may be anything above."""

    low: float
    high: float

    def __str__(self) -> str:
        """`2.2`, `at least 4`, `at most 0.7` or `unknown`."""
        if self.low == self.high:
            return f"{self.low:.3g}"
        if math.isinf(self.high):
            return f"at least {self.low:.3g}" if self.low else "unknown"
        return f"at most {self.high:.3g}"


def images_to_reach(curve: Curve, target: float) -> Between:
    """After how many kimg the running minimum of a curve of (kimg, distance) first is at or below `target`.

    The best so far is what a training has reached, whatever noise comes after. Between two measured points the curve
    is taken as straight. Where the first point is below already, it was reached somewhere before it; where none is,
    somewhere after the last.
    """
    last, best = 0.0, math.inf
    for kimg, distance in sorted(curve, key=itemgetter(0)):
        if distance <= target:
            if math.isinf(best):
                return Between(0.0, kimg)
            reached = last + (best - target) / (best - distance) * (kimg - last)
            return Between(reached, reached)
        last, best = kimg, min(best, distance)
    return Between(last, math.inf)


def images_saved(base: Curve, rival: Curve) -> Between:
    """How many times fewer images `rival` needs for the best that `base` reaches; both take their first crossing."""
    target = min(distance for _, distance in base)
    ours, theirs = images_to_reach(base, target), images_to_reach(rival, target)
    return Between(ours.low / theirs.high, ours.high / theirs.low if theirs.low else math.inf)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

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
        """Whether the ranks are shown to go together: resampled pairs alone are overconfident where they are few."""
        return self.spearman.low * self.spearman.high > 0 and self.p_value < 1 - LEVEL


def correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Pearson and Spearman with percentile intervals from resampled pairs; None where nothing can be said.

    That is for fewer than four pairs, or where one side is constant. Resamples in which a side is constant are left
    out. The p-value of ρ is two-sided: over all orders of the pairs where they are few, else over random ones.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    rows = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    rows = rows[(np.ptp(a[rows], axis=1) > 0) & (np.ptp(b[rows], axis=1) > 0)]
    tail = (1 - LEVEL) / 2

    def interval(value: float, x: np.ndarray, y: np.ndarray) -> Interval:
        low, high = np.quantile(stats.pearsonr(x, y, axis=1).statistic, [tail, 1 - tail])
        return Interval(float(value), float(low), float(high))

    ranks = stats.rankdata(a[rows], axis=1), stats.rankdata(b[rows], axis=1)
    orders = stats.PermutationMethod(n_resamples=PERMUTATIONS, rng=0)
    rho = stats.pearsonr(stats.rankdata(a), stats.rankdata(b), method=orders)
    pearson = interval(stats.pearsonr(a, b).statistic, a[rows], b[rows])
    return Correlation(len(a), pearson, interval(rho.statistic, *ranks), float(rho.pvalue))


@dataclass(frozen=True)
class Test:
    """A two-sided t-test of the difference between two means.

    Attributes:
        p: how often chance alone makes such a difference.
        missed_below: a true difference of this size is found at 5 % in four of five studies like this one; smaller
            ones are missed more often.
    """

    p: float
    missed_below: float


def welch_test(a: Sequence[float], b: Sequence[float]) -> Test | None:
    """Welch's test; None with one value on a side."""
    if min(len(a), len(b)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are all equal: p is 0 or NaN
        found = stats.ttest_ind(a, b, equal_var=False)
    if math.isnan(found.pvalue):
        return Test(1.0, 0.0)
    error = math.sqrt(float(np.var(a, ddof=1)) / len(a) + float(np.var(b, ddof=1)) / len(b))
    return Test(float(found.pvalue), found_with_power(float(found.df)) * error if error else 0.0)


def found_with_power(freedom: float) -> float:
    """The difference, in its standard errors, that a t-test with so many degrees of freedom finds with `POWER`.

    The root of the power function, from the noncentral t distribution; the far tail adds nothing there.
    """
    critical = float(stats.t.isf((1 - LEVEL) / 2, freedom))
    return float(brentq(lambda shift: stats.nct.sf(critical, freedom, shift) - POWER, 0, 100 + 10 * critical))


def block_tests(table: Sequence[Sequence[float]], pairs: Sequence[tuple[int, int]]) -> list[Test]:
    """Tests of differences between models that were all measured on the same sets of sampling seeds.

    Randomised blocks: log distance = model + set of seeds + noise, where the noise is of one size for all models, as
    distances vary by a share of themselves. What all models tell of it together makes up for the few sets of each. Of
    two models alone this is the paired t-test of their logarithms.

    Args:
        table: a row for each model, a column for each set; all above 0.
        pairs: which rows to compare; `missed_below` is how far the first may lie below the second.
    """
    logs = np.log(np.asarray(table, dtype=float))  # [models, sets]
    means = logs.mean(axis=1)
    noise = logs - means[:, np.newaxis] - logs.mean(axis=0) + logs.mean()
    freedom = (logs.shape[0] - 1) * (logs.shape[1] - 1)
    error = math.sqrt(2 * float((noise**2).sum()) / freedom / logs.shape[1])
    if error == 0:
        return [Test(1.0 if means[a] == means[b] else 0.0, 0.0) for a, b in pairs]
    share = 1 - math.exp(-found_with_power(freedom) * error)
    return [
        Test(2 * float(stats.t.sf(abs(means[a] - means[b]) / error, freedom)), share * mean(table[b])) for a, b in pairs
    ]


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
