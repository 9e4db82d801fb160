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
