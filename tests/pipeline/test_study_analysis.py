"""What the numbers say, on numbers whose answer is known."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.studies.analysis import (
    block_tests,
    correlation,
    found_with_power,
    holm,
    images_saved,
    images_to_reach,
    spread,
    verdict,
    welch_test,
)

SAME = "not significantly different"


def p_of(a: list[float], b: list[float]) -> float | None:
    test = welch_test(a, b)
    return None if test is None else test.p


@pytest.mark.parametrize(
    ("values", "text"), [([2.0], "2"), ([5.8123, 5.9123, 5.8501], "5.858 ± 0.050"), ([100.0, 130.0], "115 ± 21")]
)
def test_spread(values: list[float], text: str) -> None:
    assert str(spread(values)) == text
    assert (spread(values).std is None) == (len(values) == 1)


LINE = [(40, 4), (10, 10), (30, 5), (20, 8)]  # in any order
NOISY = [(10, 9), (20, 6), (30, 8), (40, 2)]  # the best so far is what goes on to fall


@pytest.mark.parametrize(
    ("curve", "target", "text"),
    [
        *((LINE, target, text) for target, text in ((5.0, "30"), (8.0, "20"), (6.5, "25"), (4.0, "40"))),
        *((LINE, target, text) for target, text in ((10.0, "at most 10"), (11.0, "at most 10"), (3.9, "at least 40"))),
        (NOISY, 4.0, "35"),
    ],
)
def test_images_to_reach_a_distance(curve: list[tuple[float, float]], target: float, text: str) -> None:
    assert str(images_to_reach(curve, target)) == text


@pytest.mark.parametrize(
    ("base", "rival", "low", "high", "text"),
    [
        ([(10, 9), (20, 5), (30, 7)], [(10, 9), (20, 5), (30, 7)], 1, 1, "1"),  # the same, also where it rises again
        ([(10, 9), (20, 7), (40, 5)], [(10, 9), (20, 5), (40, 4)], 2, 2, "2"),
        ([(10, 9), (20, 7), (40, 5)], [(10, 4), (40, 3)], 4, math.inf, "at least 4"),
        ([(10, 9), (20, 7), (40, 5)], [(10, 9), (40, 6)], 0, 1, "at most 1"),
        ([(10, 5), (20, 7)], [(10, 9), (20, 1)], 0, 10 / 15, "at most 0.667"),
        ([(10, 5), (20, 7)], [(10, 5), (20, 7)], 0, math.inf, "unknown"),
    ],
)
def test_images_saved(base: list, rival: list, low: float, high: float, text: str) -> None:
    found = images_saved(base, rival)
    assert (found.low, found.high, str(found)) == (pytest.approx(low), pytest.approx(high), text)


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
    assert (found.pearson.low, found.pearson.high) == pytest.approx(tuple(fisher), abs=0.04)
    assert found.pearson.low < 0.6 < found.pearson.high
    few = correlation(x[:30], y[:30])
    assert few is not None
    assert few.p_value == pytest.approx(stats.spearmanr(x[:30], y[:30]).pvalue, abs=0.002)


@pytest.mark.parametrize(("n", "orders", "shown"), [(4, 24, False), (5, 120, True), (6, 720, True)])
def test_few_points_are_not_called_a_correlation(n: int, orders: int, shown: bool) -> None:
    """In perfect order: resampled pairs are sure of it, but 2 of all orders are as good."""
    found = correlation(range(n), [math.exp(-x) for x in range(n)])
    assert found is not None
    assert (found.spearman.value, found.spearman.high) == (pytest.approx(-1), pytest.approx(-1))
    assert (found.p_value, found.is_shown) == (pytest.approx(2 / orders), shown)
    assert abs(found.pearson.value) < 0.95


def test_where_nothing_can_be_said_or_shown() -> None:
    assert correlation([1, 2, 3], [1, 2, 3]) is None
    assert correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) is None
    noise = np.random.default_rng(1).standard_normal((2, 12))
    found = correlation(*noise)
    assert found is not None
    assert not found.is_shown


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([2.0, 2.1, 1.9], [5.0, 5.2, 4.9], "better"),
        ([5.0, 5.2, 4.9], [2.0, 2.1, 1.9], "worse"),
        ([2.0, 3.0, 1.0], [2.5, 1.5, 3.5], SAME),
        ([1.0], [9.0], "not tested"),  # one value has no spread to compare with
        ([1.0, 1.0], [2.0, 2.0], "better"),
        ([1.0, 1.0], [1.0, 1.0], SAME),
    ],
)
def test_verdicts(a: list[float], b: list[float], expected: str) -> None:
    assert verdict(a, b, p_of(a, b)) == expected


def test_pairs_tell_more() -> None:
    """Sampling seeds that move both models alike hide a difference from Welch's test, and not from that in blocks."""
    a, b = [2.0, 3.0, 4.0, 5.0], [2.1, 3.2, 4.1, 5.3]
    found = [test.p for test in block_tests([a, b], [(0, 1)])]
    assert found == pytest.approx([stats.ttest_rel(np.log(a), np.log(b)).pvalue])
    assert (verdict(a, b, found[0]), verdict(a, b, p_of(a, b))) == ("better", SAME)
    assert [test.p for test in block_tests([a, a], [(0, 1)])] == [1.0]


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    """The example of the method: 4, 3, 2 and 1 times the values in their order, never falling, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [holm(values) for values in ([0.9, 0.8], [0.03], [])] == [[1.0, 1.0], [0.03], []]


def test_models_without_a_difference_are_told_apart_as_often_as_promised() -> None:
    """And those with one more often than by themselves: many models know the noise that three sets do not."""
    rng = np.random.default_rng(0)
    false, seen, seen_alone = 0, 0, 0
    for _ in range(400):
        logs = rng.normal(0, 0.04, (15, 3)) + rng.normal(0, 0.1, (1, 3))  # every set moves all models alike
        logs[0] -= 0.15
        p = [test.p for test in block_tests(np.exp(logs), [(0, 1), (1, 2)])]
        seen += p[0] < 0.05 / 14
        seen_alone += stats.ttest_rel(logs[0], logs[1]).pvalue < 0.05 / 14
        false += p[1] < 0.05
    assert 0.03 < false / 400 < 0.08
    assert seen / 400 > 0.8 > 0.2 > seen_alone / 400


def test_what_would_be_missed_is_found_in_four_of_five_studies() -> None:
    """Of simulated studies with the true difference that the tests themselves name for the true noise."""
    draw, noise, count = np.random.default_rng(0), 0.1, 4000
    error, freedom = noise * math.sqrt(2 / 4), 6.0
    difference = found_with_power(freedom) * error
    found = [
        stats.ttest_ind(draw.normal(0, noise, 4), draw.normal(difference, noise, 4)).pvalue < 0.05 for _ in range(count)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)

    a, b = draw.normal(1, noise, 1000), draw.normal(2, noise, 1000)
    test = welch_test(a.tolist(), b.tolist())
    assert test is not None
    assert test.missed_below == pytest.approx((1.96 + 0.8416) * noise * math.sqrt(2 / 1000), rel=0.05)

    logs = np.log(0.3) + draw.normal(0, 0.05, (20, 1)) + draw.normal(0, noise, (20, 500))
    (missed,) = [test.missed_below for test in block_tests(np.exp(logs), [(0, 1)])]
    share = (1.96 + 0.8416) * noise * math.sqrt(2 / 500)
    assert missed == pytest.approx((1 - math.exp(-share)) * np.exp(logs[1]).mean(), rel=0.05)
