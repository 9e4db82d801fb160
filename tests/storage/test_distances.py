"""Distances against those of differences in float64, for features whose float32 products cancel."""

import pytest
import torch
from torch import Tensor

from storage import distances
from storage.distances import SquaredDistances


def brute_force(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances from the differences of all pairs, float64 [N, M]."""
    return torch.stack([(row - b.double()).square().sum(dim=1) for row in a.double()])


def features(kind: str, count: int, dim: int = 24) -> Tensor:
    """Features whose distances are hard to take; two draws lie among each other."""
    noise = torch.randn(count, dim)
    far = torch.randn(4, dim, generator=torch.Generator().manual_seed(0))[torch.randint(4, (count,))]
    return {
        "plain": lambda: noise,
        "offset": lambda: 100 + 0.05 * noise,
        "two offsets": lambda: 100 * far + 0.05 * noise,
        "near-duplicates": lambda: 30 * far + 1e-6 * noise,
        "copies": lambda: noise[torch.arange(count) % max(2, count // 4)],
        "ties": lambda: torch.randint(3, (count, dim)).float(),
        "one point": lambda: torch.full((count, dim), 0.3),
        "half": lambda: (5 + noise).half(),
        "bfloat16": lambda: (5 + 0.1 * noise).bfloat16(),
        "double": lambda: 1e6 + 1e-6 * noise.double(),
        "huge": lambda: 1e25 * noise,
        "tiny": lambda: 1e-25 * noise,
        "an outlier": lambda: torch.cat([1e8 * noise[:1], noise[1:]]),
    }[kind]()


KINDS = (
    *("plain", "offset", "two offsets", "near-duplicates", "copies", "ties", "one point", "half", "bfloat16"),
    *("double", "huge", "tiny", "an outlier"),
)


@pytest.mark.parametrize("block_entries", [1, 500, 1 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_they_decide_like_differences_of_all_pairs(kind: str, block_entries: int) -> None:
    torch.manual_seed(1)
    a, b = features(kind, 40), features(kind, 60)
    a = torch.cat([a, b[::7]])  # exact copies
    expected = brute_force(a, b)
    squared, indices = SquaredDistances(a, b, block_entries).nearest(5)
    order = expected.sort(dim=1, stable=True)
    assert torch.equal(indices, order.indices[:, :5])
    torch.testing.assert_close(squared, order.values[:, :5], rtol=1e-14, atol=0)

    own = brute_force(b, b).fill_diagonal_(torch.inf).sort(dim=1, stable=True)
    squared, indices = SquaredDistances(b, block_entries=block_entries).nearest(3)
    assert torch.equal(indices, own.indices[:, :3])
    torch.testing.assert_close(squared, own.values[:, :3], rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_all_pairs_within_limits_and_no_others(kind: str) -> None:
    """Limits are distances that occur, so that ties decide."""
    torch.manual_seed(2)
    a, b = features(kind, 50), features(kind, 30)
    expected = brute_force(a, b)
    row_limits, column_limits = expected[:, 3].clone(), expected[11].clone()
    inside = (expected <= row_limits[:, None]) | (expected <= column_limits)
    found = torch.zeros_like(inside)
    for pairs in SquaredDistances(a, b, block_entries=400).within(row_limits, column_limits):
        for limits in (row_limits[pairs.rows], column_limits[pairs.columns]):
            assert torch.equal(pairs.squared <= limits, expected[pairs.rows, pairs.columns] <= limits)
        near = (pairs.squared <= row_limits[pairs.rows]) | (pairs.squared <= column_limits[pairs.columns])
        found[pairs.rows[near], pairs.columns[near]] = True
    assert torch.equal(found, inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    a, b = features(kind, 50, dim=500), features(kind, 70, dim=500)
    found = SquaredDistances(a, b)
    bounds, slack = found._bounds(0, dtype)
    expected = brute_force(a, b)
    assert (bounds.double() <= expected).all()
    high = bounds.double() + 2 * (slack[:, None] + found._slack(found.norms, bounds.dtype))
    assert (expected <= high).all()


def test_products_are_not_rounded_further_whatever_was_set() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.manual_seed(4)
        a, b = torch.randn(64, 2048), torch.randn(80, 2048)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = SquaredDistances(a, b)
            bounds, slack = found._bounds(0, torch.float32)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    expected = brute_force(a, b)
    assert (bounds.double() <= expected).all()
    assert (expected <= bounds.double() + 2 * (slack[:, None] + found._slack(found.norms, torch.float32))).all()


def test_few_differences_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of ordinary features, nor of those for which products in float32 say nothing."""
    taken: list[int] = []
    of = SquaredDistances.of
    monkeypatch.setattr(SquaredDistances, "of", lambda self, r, c: taken.append(len(r)) or of(self, r, c))
    monkeypatch.setattr(distances, "PAIRS_OF_A_ROW", 8)
    torch.manual_seed(5)
    for kind in ("plain", "offset", "two offsets"):
        taken.clear()
        SquaredDistances(features(kind, 3000, 256)).nearest(3)
        assert sum(taken) < 3000 * 14, kind


def test_values_that_are_not_finite_are_at_no_distance() -> None:
    with pytest.raises(ValueError, match="not finite"):
        SquaredDistances(torch.tensor([[1.0], [torch.nan]]))
