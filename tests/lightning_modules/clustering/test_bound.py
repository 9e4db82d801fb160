"""The bound on measurements whose answer is known."""

import pytest

from lightning_modules.clustering.bound import Measurement, find_bound, mean_ratios, worth_training


def at(C: int, ratio: float, seed: int = 0, beta: float = 0.6) -> Measurement:
    return Measurement(C, beta, seed, num_used=round(C * ratio))


# Ratios are not monotone: 200 dips below the threshold, 300 is above it again.
DIPPING = [at(100, 1.0), at(200, 0.95), at(300, 0.97), at(400, 0.9)]


def test_the_largest_and_the_unbroken_rule() -> None:
    assert find_bound(DIPPING, threshold=0.96, rule="largest").upper_bound == 300
    assert find_bound(DIPPING, threshold=0.96, rule="unbroken").upper_bound == 100


def test_no_bound_where_no_ratio_reaches_the_threshold() -> None:
    result = find_bound([at(100, 0.5)], threshold=0.96)
    assert (result.upper_bound, result.worth_training) == (None, [])


def test_the_mean_over_seeds_decides_and_the_share_that_agrees_is_told() -> None:
    measurements = [at(100, 1.0, seed) for seed in range(3)]
    measurements += [at(200, ratio, seed) for seed, ratio in enumerate([1.0, 0.98, 0.93])]
    assert mean_ratios(measurements)[200] == pytest.approx((0.97, 0.036), abs=1e-3)
    result = find_bound(measurements, threshold=0.96)
    assert result.upper_bound == 200
    assert result.agreement == pytest.approx(2 / 3)  # the third seed by itself says 100


def test_the_coarse_end_is_the_median_used_at_beta_1_from_100_clusters_on() -> None:
    coarse = [Measurement(C, 1.0, 0, used) for C, used in [(50, 49), (100, 33), (500, 34), (1000, 40)]]
    assert find_bound([at(100, 1.0), *coarse]).coarse_end == 34
    small = [Measurement(C, 1.0, 0, used) for C, used in [(20, 15), (40, 17)]]
    assert find_bound([at(20, 1.0), *small]).coarse_end == 17  # the grid ends below 100
    assert find_bound([at(100, 1.0)]).coarse_end is None


def test_what_is_worth_training_lies_between_the_two_ends() -> None:
    grid = [10, 20, 40, 80, 160, 320, 640]
    assert worth_training(grid, coarse=30, bound=320) == [40, 80, 320]
    assert worth_training(grid, coarse=None, bound=40) == [10, 20, 40]
    assert worth_training(grid, coarse=27, bound=40) == [20, 40]  # 20 is nearer to 27 than 40 is
    assert worth_training(grid, coarse=100, bound=80) == [80]


def used(C: int, *counts: int) -> list[Measurement]:
    return [Measurement(C, 0.6, seed, count) for seed, count in enumerate(counts)]


@pytest.mark.parametrize(
    ("measurements", "expected"),
    [
        (used(20, 19), 20),  # 20 · 0.04 < 1: all of 20 used would be asked for, so one empty cluster is allowed
        (used(20, 18), None),
        (used(20, 18, 20, 19), 20),  # one on average
        (used(20, 18, 19, 19), None),  # 1 1/3 on average
        (used(24, 23), 24),
        (used(25, 24), 25),  # 25 · 0.04 = 1, and 0.96 is reached
        (used(25, 23, 24), None),
        (used(26, 25), 26),  # above 1: the threshold alone
        (used(49, 47), None),  # 0.959, two empty ones
        (used(50, 48), 50),  # 0.96 exactly
        (used(100, 96), 100),
        (used(2, 1, 2), 2),
        (used(2, 1, 1), None),  # all images in one cluster
        ([*used(10, 9), *used(100, 95)], 10),  # no C is dropped for being small
        ([*used(10, 8), *used(20, 20)], 20),
    ],
)
def test_one_empty_cluster_does_not_decide(measurements: list[Measurement], expected: int | None) -> None:
    assert find_bound(measurements, threshold=0.96).upper_bound == expected


def test_rounding_of_a_mean_does_not_decide() -> None:
    """135 of 150 are 0.9, but the mean of these ratios is below it in floating point."""
    measurements = used(50, 41, 47, 47)
    assert mean_ratios(measurements)[50][0] < 0.9
    assert find_bound(measurements, threshold=0.9).upper_bound == 50


def test_one_empty_cluster_under_the_unbroken_rule_and_for_each_seed() -> None:
    measurements = [*used(10, 9, 10), *used(100, 97, 99)]
    result = find_bound(measurements, threshold=0.96, rule="unbroken")
    assert (result.upper_bound, result.by_seed) == (100, {0: 100, 1: 100})


def test_the_bound_at_neighbouring_thresholds() -> None:
    measurements = [*used(100, 99), *used(200, 193), *used(400, 378)]  # 0.99, 0.965, 0.945
    assert find_bound(measurements, threshold=0.96).by_threshold == {
        0.94: 400,
        0.95: 200,
        0.96: 200,
        0.97: 100,
        0.98: 100,
    }
    assert list(find_bound(measurements, threshold=0.99).by_threshold) == [0.97, 0.98, 0.99, 1.0]
    assert list(find_bound(measurements, threshold=0.01).by_threshold) == [0.01, 0.02, 0.03]
