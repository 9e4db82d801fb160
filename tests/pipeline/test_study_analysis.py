"""What the numbers say, on numbers whose answer is known."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.studies.analysis import (
    block_p_values,
    correlation,
    holm,
    images_saved,
    images_to_reach,
    p_value,
    spread,
    verdict,
)


def test_spread_of_one_value_has_no_deviation() -> None:
    assert spread([2.0]).std is None
    assert str(spread([2.0])) == "2"
    assert str(spread([5.8123, 5.9123, 5.8501])) == "5.858 ± 0.050"
    assert str(spread([100.0, 130.0])) == "115 ± 21"
    assert (spread([1.0, 3.0]).mean, spread([1.0, 3.0]).std) == (2.0, math.sqrt(2))


@pytest.mark.parametrize(
    ("target", "kimg", "at_most"),
    [(5.0, 30.0, False), (8.0, 20.0, False), (4.0, 40.0, False), (10.0, 10.0, True), (11.0, 10.0, True)],
)
def test_images_to_reach_a_distance(target: float, kimg: float, at_most: bool) -> None:
    """A straight line from (10, 10) to (20, 8), (30, 5), (40, 4), given in any order."""
    reached = images_to_reach([(40, 4), (10, 10), (30, 5), (20, 8)], target)
    assert reached is not None
    assert reached.kimg == pytest.approx(kimg)
    assert reached.at_most == at_most


def test_between_two_points_the_curve_is_straight() -> None:
    reached = images_to_reach([(10, 10), (20, 6)], 7)
    assert reached is not None
    assert reached.kimg == pytest.approx(17.5)
    assert images_to_reach([(10, 10), (20, 6)], 5.9) is None


def test_correlation_agrees_with_scipy_and_covers_the_truth() -> None:
    """Pairs of known correlation 0.6: scipy's own values, and an interval of the right place and width."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(200)
    y = 0.6 * x + 0.8 * rng.standard_normal(200)
    found = correlation(x, y)
    assert found is not None
    assert found.n == 200
    assert found.pearson.value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
    fisher = stats.pearsonr(x, y).confidence_interval(0.95)
    assert found.pearson.low == pytest.approx(fisher.low, abs=0.04)
    assert found.pearson.high == pytest.approx(fisher.high, abs=0.04)
    assert found.pearson.low < 0.6 < found.pearson.high


def test_a_monotone_curve_has_rank_correlation_one() -> None:
    found = correlation([1, 2, 3, 4, 5, 6], [math.exp(x) for x in (1, 2, 3, 4, 5, 6)])
    assert found is not None
    assert (found.spearman.value, found.spearman.low) == (pytest.approx(1), pytest.approx(1))
    assert found.pearson.value < 0.95
    assert found.spearman.excludes_zero


def test_noise_is_not_called_a_correlation() -> None:
    rng = np.random.default_rng(1)
    found = correlation(rng.standard_normal(12), rng.standard_normal(12))
    assert found is not None
    assert not found.pearson.excludes_zero


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])])
def test_where_nothing_can_be_said(x: list[float], y: list[float]) -> None:
    assert correlation(x, y) is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([2.0, 2.1, 1.9], [5.0, 5.2, 4.9], "better"),
        ([5.0, 5.2, 4.9], [2.0, 2.1, 1.9], "worse"),
        ([2.0, 3.0, 1.0], [2.5, 1.5, 3.5], "not significantly different"),
        ([1.0], [9.0], "not tested"),  # one value has no spread to compare with
        ([1.0, 1.0], [2.0, 2.0], "better"),
        ([1.0, 1.0], [1.0, 1.0], "not significantly different"),
    ],
)
@pytest.mark.parametrize("paired", [True, False])
def test_verdicts(a: list[float], b: list[float], expected: str, paired: bool) -> None:
    assert verdict(a, b, p_value(a, b, paired)) == expected


def test_p_values_agree_with_scipy_and_pairs_tell_more() -> None:
    """Sampling seeds that move both models alike hide a difference from Welch's test, and not from the paired one."""
    a, b = [2.0, 3.0, 4.0, 5.0], [2.1, 3.2, 4.1, 5.3]
    assert p_value(a, b, paired=True) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert p_value(a, b, paired=False) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert verdict(a, b, p_value(a, b, paired=True)) == "better"
    assert verdict(a, b, p_value(a, b, paired=False)) == "not significantly different"


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    """The example of the method: 4, 3, 2 and 1 times the values in their order, never falling, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("base", "rival", "low", "high"),
    [
        ([(10, 9), (20, 5), (30, 7)], [(10, 9), (20, 5), (30, 7)], 1, 1),  # the same curve, also where it rises again
        ([(10, 9), (20, 7), (40, 5)], [(10, 9), (20, 5), (40, 4)], 2, 2),
        ([(10, 9), (20, 7), (40, 5)], [(10, 4), (40, 3)], 4, math.inf),
        ([(10, 9), (20, 7), (40, 5)], [(10, 9), (40, 6)], 0, 1),
        ([(10, 5), (20, 7)], [(10, 9), (20, 1)], 0, 10 / 15),
        ([(10, 5), (20, 7)], [(10, 5), (20, 7)], 0, math.inf),
    ],
)
def test_images_saved(base: list, rival: list, low: float, high: float) -> None:
    found = images_saved(base, rival)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_what_was_reached_is_not_lost_to_noise() -> None:
    """Between (20, 6), where a worse point follows, and (40, 2): the best so far is what goes on to fall."""
    reached = images_to_reach([(10, 9), (20, 6), (30, 8), (40, 2)], 4)
    assert reached is not None
    assert reached.kimg == pytest.approx(35)


def test_few_points_are_not_called_a_correlation() -> None:
    """Four in perfect order: resampled pairs are sure of it, but 2 of the 24 orders are as good."""
    found = correlation([1, 2, 3, 4], [8, 6, 3, 1])
    assert found is not None
    assert found.spearman.excludes_zero
    assert found.p_value == pytest.approx(2 / 24)
    assert not found.is_shown
    five = correlation([1, 2, 3, 4, 5], [8, 6, 3, 1, 0])
    assert five is not None
    assert five.p_value == pytest.approx(2 / 120)
    assert five.is_shown


def test_many_points_have_the_p_value_of_theory() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(30)
    y = 0.4 * x + rng.standard_normal(30)
    found = correlation(x, y)
    assert found is not None
    assert found.p_value == pytest.approx(stats.spearmanr(x, y).pvalue, rel=0.3)


def test_in_blocks_two_models_are_paired() -> None:
    a, b = [0.31, 0.35, 0.28], [0.29, 0.34, 0.275]
    (p,) = block_p_values([a, b], [(0, 1)])
    assert p == pytest.approx(stats.ttest_rel(np.log(a), np.log(b)).pvalue)
    assert block_p_values([a, a], [(0, 1)]) == [1.0]


def test_models_without_a_difference_are_told_apart_as_often_as_promised() -> None:
    """And those with one more often than by themselves: many models know the noise that three sets do not."""
    rng = np.random.default_rng(0)
    false, seen, seen_alone = 0, 0, 0
    for _ in range(400):
        logs = rng.normal(0, 0.04, (15, 3)) + rng.normal(0, 0.1, (1, 3))  # every set moves all models alike
        logs[0] -= 0.15
        table = np.exp(logs)
        p = block_p_values(table, [(0, 1), (1, 2)])
        seen += p[0] < 0.05 / 14
        seen_alone += stats.ttest_rel(logs[0], logs[1]).pvalue < 0.05 / 14
        false += p[1] < 0.05
    assert 0.03 < false / 400 < 0.08
    assert seen / 400 > 0.8 > 0.2 > seen_alone / 400
