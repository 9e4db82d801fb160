"""Whether a condition pays, by description length: what a denoiser gains from it, less what it costs to tell it.

For a denoiser with squared error e(σ) on images with noise of σ, ∫ e(σ) σ⁻² d ln σ is an information in nats (the
I-MMSE relation, Guo, Shamai and Verdú, arXiv cs/0412108). So what the ideal denoiser with a condition c saves over the
one without, integrated down to the noise level σ_lo, is the mutual information of c and the image with noise of σ_lo;
for a cluster that is a function of the image it tends to H(c) as σ_lo goes to 0. For networks it is what these networks
gain.
"""

import torch
from torch import Tensor

from metrics.denoising_errors import DenoisingErrors, Estimate, mean_of


def gain(without: Tensor, errors: Tensor, sigmas: Tensor, widths: Tensor, lowest: float) -> Estimate:
    """∫ (e_without − e) σ⁻² d ln σ over the noise levels above `lowest`, in nats: the mean over images, paired.

    Args:
        without, errors: squared errors [n, L] of a denoiser without the condition and of one with it, on the same
            images with the same noise.
        sigmas, widths: noise levels [L], and the width in ln σ that each stands for, [L].

    Examples:
        >>> without, errors = torch.tensor([[4.0, 9.0]] * 2), torch.tensor([[3.0, 9.0]] * 2)  # 2 images, 2 noise levels
        >>> gain(without, errors, sigmas=torch.tensor([1.0, 2.0]).double(), widths=torch.ones(2).double(), lowest=0.5)
        Estimate(value=1.0, error=0.0)
    """
    weights = torch.where(sigmas > lowest, widths / sigmas**2, 0.0)  # [L]
    return mean_of((without.double() - errors.double()) @ weights)


def gains(without: DenoisingErrors, errors: DenoisingErrors, lowest: float) -> tuple[Estimate, Estimate]:
    """The gain on images held out, and on training images, each over those that both models were measured on."""
    held_out = common(without.held_out_places, errors.held_out_places)
    training = common(without.training_places, errors.training_places)
    levels = errors.sigmas, errors.widths, lowest
    return (
        gain(without.held_out[held_out[0]], errors.held_out[held_out[1]], *levels),
        gain(without.training[training[0]], errors.training[training[1]], *levels),
    )


def common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of `a` and of `b`, both rising, at which the same values stand."""
    return torch.isin(a, b).nonzero().flatten(), torch.isin(b, a).nonzero().flatten()


def entropy(shares: Tensor) -> float:
    """H = −Σ p ln p in nats: what telling the cluster of an image costs, where p are the clusters' shares.

    Examples:
        >>> round(entropy(torch.tensor([0.5, 0.5])), 4)
        0.6931
    """
    return float(torch.special.entr(shares.double() / shares.double().sum()).sum())
