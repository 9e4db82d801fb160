"""Euclidean distances between the rows of two sets, decided in float64 at about the cost of a float32 product.

|a − b|² = |a|² + |b|² − 2 a·b takes one matrix product for all pairs, but cancels where a and b are near to each other
and far from the origin. So the product only bounds the distances, and wherever a bound does not decide, the difference
a − b does, in float64. Every answer is that of differences in float64 for all pairs.

**The bound.** Any centre may be subtracted; we take the mean of b, in float64, so that the relative error of each
centred value is 2⁻⁵³. Rounding to a type of precision u (2⁻²⁴ for float32) and summing D products in any order gives

    |fl(a·b) − a·b| ≤ (γ + 3u) |a| |b|   with   γ = D u / (1 − D u)

(Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, section 3.1), and 2 |a| |b| ≤ |a|² + |b|².
Adding the two norms costs at most 6u (|a|² + |b|²) more; the norms, and the differences that decide, have relative
errors of D 2⁻⁵³. With n = D + 16 and

    slack(x) = (n u / (1 − n u) + 4 n 2⁻⁵³) |x|² + underflow

the sum |a|² − slack(a) + |b|² − slack(b) − 2 a·b as it is computed is never above the squared distance, and never more
than 2 (slack(a) + slack(b)) below it.

Where more pairs are undecided than differences are worth, as among near-duplicates far from the mean, their block is
bounded again by products in float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ENTRIES = 1 << 25  # bounds that are held at once: 128 MB
GROUPS = 1024  # of columns, each of which offers its lowest bound as a near one
PAIRS_OF_A_ROW = 64  # differences for each row, beyond which products in float64 cost less
VALUES_AT_ONCE = {True: 1 << 19, False: 1 << 25}  # of differences, on a CPU and on a GPU
LARGEST_NORM = 1e30  # squares of larger values overflow in float32


class Pairs(NamedTuple):
    """Some pairs of rows of a and b, by row of a and then of b, and on which side of the limits they lie."""

    rows: Tensor  # int64 [P], of a
    columns: Tensor  # int64 [P], of b
    squared: Tensor  # float64 [P], squared distance; where no limit lies near it, a bound that decides alike


class SquaredDistances:
    """The squared distances between the rows of a and b.

    Args:
        a: [N, D].
        b: [M, D], on the same device; None: a with itself, where no row is paired with itself.
        block_entries: how many of the N × M bounds are held at once; at least a row of them.

    Raises:
        ValueError: a value is not finite.
    """

    def __init__(self, a: Tensor, b: Tensor | None = None, block_entries: int = BLOCK_ENTRIES) -> None:
        self.a, self.b, self.with_itself = a, a if b is None else b, b is None
        if not (a.isfinite().all() and self.b.isfinite().all()):
            raise ValueError("a feature is not finite: it is at no distance from others")
        self.block_rows = max(1, block_entries // len(self.b))
        self.centre = self.b.mean(dim=0, dtype=torch.float64)  # [D]
        self.norms = torch.cat([self.centred(part).square().sum(dim=1) for part in self.b.split(4096)])  # [M]
        fits = (a.shape[1] + 16) * 2**-24 < 1 / 8 and float(self.norms.max()) < LARGEST_NORM
        self.dtype = torch.float32 if fits else torch.float64
        self.columns = torch.cat([self.centred(part).to(self.dtype) for part in self.b.split(4096)])  # [M, D]

    def nearest(self, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest rows of b for each row of a, by rising distance, of equal ones the lower row first.

        Returns:
            Squared distances, float64 [N, k], and rows of b, int64 [N, k].
        """
        found = [self._nearest(start, k) for start in range(0, len(self.a), self.block_rows)]
        squared, indices = zip(*found, strict=True)
        return torch.cat(squared), torch.cat(indices)

    def within(self, row_limits: Tensor, column_limits: Tensor) -> Iterator[Pairs]:
        """All pairs whose squared distance is at most the limit of the row or of the column, block by block.

        Args:
            row_limits: float64 [N].
            column_limits: float64 [M].
        """
        for start in range(0, len(self.a), self.block_rows):
            own = row_limits[start : start + self.block_rows]
            for dtype in dict.fromkeys((self.dtype, torch.float64)):
                bounds, slack = self._bounds(start, dtype)
                limits = torch.maximum(upwards(own, dtype)[:, None], upwards(column_limits, dtype))  # [b, M]
                rows, columns = (bounds <= limits).nonzero(as_tuple=True)
                low = bounds[rows, columns].double()
                high = low + 2 * (slack[rows] + self._slack(self.norms, dtype)[columns])
                undecided = torch.zeros_like(rows, dtype=torch.bool)
                for limit in (own[rows], column_limits[columns]):
                    undecided |= (low <= limit) & (limit < high)
                if int(undecided.sum()) <= PAIRS_OF_A_ROW * len(own):
                    break
            low[undecided] = self.of(start + rows[undecided], columns[undecided])
            yield Pairs(start + rows, columns, low)

    def of(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The squared distances of pairs [P], from their differences, float64 [P]."""
        count = max(1, VALUES_AT_ONCE[self.a.device.type == "cpu"] // self.a.shape[1])
        parts = zip(rows.split(count), columns.split(count), strict=True)
        return torch.cat([(self.a[r].double() - self.b[c].double()).square().sum(dim=1) for r, c in parts])

    def centred(self, values: Tensor) -> Tensor:
        """Rows [n, D] from the centre, float64."""
        return values.double() - self.centre

    def _nearest(self, start: int, k: int) -> tuple[Tensor, Tensor]:
        """The same, of one block of rows: those whose bound is at most the k-th of some k distances."""
        for dtype in dict.fromkeys((self.dtype, torch.float64)):
            bounds, _ = self._bounds(start, dtype)
            limits = self._some_kth(start, bounds, k)
            rows, columns = (bounds <= upwards(limits, dtype)[:, None]).nonzero(as_tuple=True)
            if len(rows) <= (PAIRS_OF_A_ROW + 2 * k) * len(bounds):
                break
        squared = self.of(start + rows, columns)
        order = squared.argsort(stable=True)
        order = order[rows[order].argsort(stable=True)]  # by row, then by distance, then by column
        per_row = torch.bincount(rows, minlength=len(bounds))
        first = (per_row.cumsum(0) - per_row)[:, None] + torch.arange(k, device=rows.device)  # [b, k]
        return squared[order[first]], columns[order[first]]

    def _some_kth(self, start: int, bounds: Tensor, k: int) -> Tensor:
        """The largest of k distances of each row, [b], no less than its k-th smallest: each the nearest of a group."""
        size = max(1, bounds.shape[1] // max(GROUPS, k))
        groups = bounds[:, : bounds.shape[1] // size * size].unflatten(1, (size, -1))  # [b, size, groups]
        lowest, members = groups.min(dim=1)  # [b, groups] each
        nearest = lowest.topk(k, dim=1, largest=False).indices  # [b, k]
        columns = members.gather(1, nearest) * groups.shape[2] + nearest
        rows = torch.arange(len(bounds), device=bounds.device)[:, None].expand_as(columns)
        return self.of(start + rows.flatten(), columns.flatten()).view(-1, k).amax(dim=1)

    def _bounds(self, start: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Lower bounds [b, M] of the squared distances of a block of rows, and the rows' slack, float64 [b]."""
        own = self.centred(self.a[start : start + self.block_rows])  # [b, D]
        norms = own.square().sum(dim=1)  # [b]
        if dtype == torch.float32 and float(norms.max()) >= LARGEST_NORM:
            dtype = torch.float64
        slack = self._slack(norms, dtype)
        own = -2 * own.to(dtype)
        with exact_products(own.device.type):
            if dtype == self.columns.dtype:
                bounds = own @ self.columns.T
            else:
                bounds = torch.cat([own @ self.centred(part).T for part in self.b.split(4096)], dim=1)
        bounds += (self.norms - self._slack(self.norms, dtype)).to(dtype)
        bounds += (norms - slack).to(dtype)[:, None]
        if self.with_itself:
            rows = torch.arange(len(own), device=own.device)
            bounds[rows, start + rows] = torch.inf
        return bounds, slack

    def _slack(self, norms: Tensor, dtype: torch.dtype) -> Tensor:
        """How much a squared norm, float64, is lowered; see the top of this file."""
        dim, numbers = self.a.shape[1], torch.finfo(dtype)
        error = (dim + 16) * numbers.eps / 2
        return (error / (1 - error) + 4 * (dim + 16) * 2**-53) * norms + 2 * dim * numbers.tiny


def upwards(limits: Tensor, dtype: torch.dtype) -> Tensor:
    """Limits, float64, in another type, none of them lowered."""
    return torch.nextafter(limits.to(dtype), torch.tensor(torch.inf, dtype=dtype, device=limits.device))


@contextmanager
def exact_products(device_type: str) -> Iterator[None]:
    """Matrix products of float32 that are rounded to float32 at most, whatever was set before (TF32, bfloat16)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
