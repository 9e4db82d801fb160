"""Power-function averages of the weights, and any other length after the training (arXiv 2312.02696, section 3).

An average whose profile over the images t' seen so far is t'^γ has the relative width s, the standard deviation of the
profile as a share of the training: s² = (γ + 1) / ((γ + 2)² (γ + 3)). Two of them, stored from time to time, give any
other by least squares.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from lightning_modules.diffusion.ema import EMA

WIDTHS = (0.05, 0.10)  # of the two that are stored
WIDEST = 12**-0.5  # of the plain mean, γ = 0


def relative_width(exponent: float) -> float:
    """The relative width s of the profile t^γ."""
    return ((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))) ** 0.5


def exponent_of(width: float) -> float:
    """The exponent γ of a profile of this relative width.

    Raises:
        ValueError: no average has this width: they lie between 0 and 1/√12 = 0.2887.
    """
    if not 0 < width < WIDEST:
        raise ValueError(f"the relative width of an average lies between 0 and {WIDEST:.4f}, not at {width}")
    return float(brentq(lambda exponent: relative_width(exponent) - width, 0, 2 / width, xtol=1e-13, rtol=1e-13))


class PowerAverage(EMA):
    """An average with the profile t^γ of a relative width; after t images, the last Δt of them weigh 1 − β.

    β = ((t − Δt) / t)^(γ + 1), the share of the profile that lies before them.
    """

    def __init__(self, module: nn.Module, width: float) -> None:
        super().__init__(module)
        self.width, self.exponent = width, exponent_of(width)

    def beta(self, nimg: int, batch_size: int) -> float:
        return (nimg / (nimg + batch_size)) ** (self.exponent + 1)


def inner_products(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """∫ p_a p_b of the profiles p(t') = (γ + 1) t'^γ / t^(γ + 1) on [0, t], for all pairs: `[A, B]`.

    Both are above 0 up to the earlier end e of the two alone, so the integral is, with each power relative to its end,
    (γ_a + 1) (γ_b + 1) / (γ_a + γ_b + 1) · (e / t_a)^γ_a (e / t_b)^γ_b · e / (t_a t_b).
    """
    t_a, gamma_a = t_a[:, None], gamma_a[:, None]
    end = np.minimum(t_a, t_b)
    norm = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return norm * (end / t_a) ** gamma_a * (end / t_b) ** gamma_b * end / (t_a * t_b)


def coefficients(nimg: Sequence[float], widths: Sequence[float], at_nimg: float, width: float) -> Tensor:
    """Factors float64 `[N]` of N stored averages that give the one of another width, nearest in profile.

    Args:
        nimg, widths: Images seen and relative width of each stored average.
        at_nimg, width: The same of the one that is wanted.
    """
    t, gamma = np.asarray(nimg, dtype=np.float64), np.array([exponent_of(each) for each in widths])
    wanted = np.array([at_nimg], dtype=np.float64), np.array([exponent_of(width)])
    found = np.linalg.solve(inner_products(t, gamma, t, gamma), inner_products(t, gamma, *wanted))[:, 0]
    return torch.from_numpy(found / found.sum())
