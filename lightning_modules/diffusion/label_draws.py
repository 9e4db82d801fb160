"""Which cluster each generated image is of: drawn from the clusters' frequencies, by the image's seed alone."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from storage import philox
from storage.philox import Stream

GOLDEN_RATIO_BITS = 0x9E3779B97F4A7C15 - 2**64  # 2⁶⁴ / golden ratio, rounded to an odd number, as a signed integer


def golden_ratio_points(seeds: Tensor) -> Tensor:
    """Points u_s = ((s·0x9E3779B97F4A7C15 + 2⁶³) mod 2⁶⁴) / 2⁶⁴ of [0, 1), float64 `[B]`, for seeds s (int64 `[B]`).

    The Kronecker sequence of the golden ratio (Niederreiter, "Random number generation and quasi-Monte Carlo methods",
    1992, section 3.1), in integers, so exact for every seed. Of any N consecutive seeds, an interval of length p gets
    N·p points but for O(log N). That holds for consecutive seeds alone: a stride can be arbitrarily bad, most of all
    a Fibonacci number, whose multiples stay in one place for long.
    """
    product = seeds * GOLDEN_RATIO_BITS  # modulo 2⁶⁴, since int64 wraps around, in [−2⁶³, 2⁶³)
    return ((product >> 11) + 2**52).to(torch.float64) * 2.0**-53  # the upper 53 bits: below 1, never rounded up to it


def independent_points(seeds: Tensor) -> Tensor:
    """Independent uniform points of [0, 1), float64 `[B]`, for seeds (int64 `[B]`)."""
    return philox.uniform(0, Stream.LABELS, seeds, dtype=torch.float64)


LABEL_DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "low_discrepancy": golden_ratio_points,
    "independent": independent_points,
}


def draw_labels(seeds: Tensor, frequencies: Tensor, draw: str = "low_discrepancy") -> Tensor:
    """Labels int64 `[B]` drawn in proportion to `frequencies` `[label_dim]`; each depends on its own seed alone.

    Equal frequencies draw uniformly. They need not sum to 1, and a label of frequency 0 is never drawn.

    Args:
        draw: One of `LABEL_DRAWS`. `low_discrepancy`: any run of consecutive seeds has each label in its share, as
            nearly as whole numbers can. `independent`: a set of N images has a multinomial number of each.

    Examples:
        >>> draw_labels(torch.arange(8), torch.tensor([0.25, 0.75])).bincount()
        tensor([2, 6])
    """
    cumulative = frequencies.to(seeds.device, torch.float64).cumsum(0)
    if not bool(frequencies.ge(0).all()) or not 0 < float(cumulative[-1]) < math.inf:
        raise ValueError(f"frequencies must be finite, not negative, and not all 0; got {frequencies.tolist()[:8]}")
    return torch.searchsorted(cumulative, LABEL_DRAWS[draw](seeds) * cumulative[-1], right=True)
