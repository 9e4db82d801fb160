"""Sliced Wasserstein distance, clipped density and coverage: against other algorithms and known answers."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import betaln, gammaln
from torch import Tensor

from metrics.clipped import clipped_scores, expected_coverage
from metrics.sliced import sliced_wasserstein


def by_assignment(x: Tensor, y: Tensor, num_directions: int, seed: int) -> float:
    """Each direction's optimal transport as an assignment problem, of images repeated until both sides have as many."""
    directions = torch.randn(num_directions, x.shape[1], generator=torch.Generator().manual_seed(seed)).numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    count = np.lcm(len(x), len(y))
    costs = []
    for direction in directions:
        ours, theirs = (np.repeat(side.numpy() @ direction, count // len(side)) for side in (x, y))
        cost = (ours[:, np.newaxis] - theirs) ** 2
        costs.append(cost[linear_sum_assignment(cost)].mean())
    return 3 * x.shape[1] * float(np.mean(costs))


@pytest.mark.parametrize("sizes", [(12, 12), (4, 6), (9, 12)])
def test_sliced_wasserstein_is_the_optimal_transport_of_each_direction(sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(size, 5) for size in sizes)
    expected = by_assignment(x, y, num_directions=7, seed=3)
    assert sliced_wasserstein(x, y, num_directions=7, seed=3).value == pytest.approx(expected, rel=1e-5)
    assert sliced_wasserstein(y, x, num_directions=7, seed=3).value == pytest.approx(expected, rel=1e-5)


def test_sliced_wasserstein_of_known_distributions() -> None:
    """3 |δ|² of a set moved by δ, 3 D (1 − s)² of one scaled by s, wherever both lie."""
    torch.manual_seed(0)
    y = torch.randn(2000, 8)
    moved = y + torch.tensor([0.5, -1.0, *[0.0] * 6])
    assert sliced_wasserstein(moved, y, 400).value == pytest.approx(3 * 1.25, rel=0.2)
    assert sliced_wasserstein(1.5 * torch.randn(2000, 8), y, 200).value == pytest.approx(3 * 8 * 0.25, rel=0.1)
    assert sliced_wasserstein(y, y.flip(0), 20).value == pytest.approx(0, abs=1e-12)
    far = sliced_wasserstein(moved.double() + 1e4, y.double() + 1e4, 20).value
    assert far == pytest.approx(sliced_wasserstein(moved, y, 20).value, rel=1e-4)


def test_the_error_of_sliced_wasserstein() -> None:
    """The deviation between independent sets, which one set tells of."""
    torch.manual_seed(0)
    reference = torch.randn(300, 6)
    sets = [sliced_wasserstein(torch.randn(200, 6) * 1.2 + 0.2, reference, 50) for _ in range(150)]
    assert np.mean([one.error for one in sets]) == pytest.approx(np.std([one.value for one in sets]), rel=0.2)


def clipped_by_hand(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float]:
    """Definitions of arXiv 2507.01761, image by image."""
    apart = np.linalg.norm(y[:, np.newaxis] - y, axis=2)
    radii = np.sort(apart, axis=1)[:, k]
    cut = np.minimum(radii, np.median(radii))
    cross = np.linalg.norm(x[:, np.newaxis] - y, axis=2)
    generated = np.minimum((cross <= cut).sum(axis=1) / k, 1).mean()
    real = np.minimum(((apart <= cut).sum(axis=1) - 1) / k, 1).mean()  # not counting each image's own ball
    covered = np.minimum((cross <= radii).sum(axis=0), k).mean() / k
    of_good = [0.0]
    for n in range(1, len(x) + 1):
        j = np.arange(n + 1)
        choose = gammaln(n + 1) - gammaln(j + 1) - gammaln(n - j + 1)
        chances = np.exp(choose + betaln(k + j, len(y) - k + n - j) - betaln(k, len(y) - k))
        of_good.append(float((np.minimum(j, k) * chances).sum() / k))
    np.testing.assert_allclose(expected_coverage(len(x), len(y), k), of_good, atol=1e-9)
    return min(1.0, generated / real), np.interp(covered, of_good, np.linspace(0, 1, len(x) + 1))


@pytest.mark.parametrize(("k", "num_real"), [(1, 30), (4, 31), (5, 40)])
def test_clipped_scores_equal_the_definitions(k: int, num_real: int) -> None:
    torch.manual_seed(k)
    y = torch.randn(num_real, 3)
    for x in (0.8 * torch.randn(25, 3) + 0.4, torch.cat([torch.randn(30, 3), y[:9] + 50])):
        expected = clipped_by_hand(x.double().numpy(), y.double().numpy(), k)
        assert min(expected) > 0
        for block_entries in (60, 1 << 20):
            found = clipped_scores(x, y, k, block_entries)
            assert (found.density, found.coverage) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="more than k real images"):
        clipped_scores(y, y[:k], k)


def test_clipped_scores_are_shares_of_good_images() -> None:
    """Linear in the share of bad ones, which real outliers hide from the density that they are cut from."""
    torch.manual_seed(0)
    real = torch.cat([torch.randn(1500, 8), 40 * torch.randn(30, 8)])
    for good in (0, 300, 600, 900, 1200):
        generated = torch.cat([torch.randn(good, 8), 20 * torch.randn(1200 - good, 8)])
        found = clipped_scores(generated, real)
        assert found.density == pytest.approx(good / 1200, abs=0.03)
        assert found.coverage == pytest.approx(good / 1200, abs=0.06)  # not cut, so outliers of both sides meet
