"""Inception score (arXiv 1606.03498)."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from metrics.kernel import MeanAndStd


def inception_score(logits: Tensor, num_splits: int = 10, seed: int = 2020) -> MeanAndStd:
    """exp of the mean KL divergence of each image's class probabilities from their mean, over parts of the images.

    The shuffle and the parts are those of torch-fidelity for the same seed.

    Args:
        logits: [N, classes], before the softmax.
        num_splits: parts; mean and standard deviation are over them.
        seed: of the shuffle.

    Raises:
        ValueError: there are fewer images than parts.

    Examples:
        >>> inception_score(100 * torch.eye(4).repeat(5, 1), num_splits=1).mean  # sure of each, and all four alike
        4.0
    """
    if len(logits) < num_splits:
        raise ValueError(f"{len(logits)} images can't be divided into {num_splits} parts")
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(logits))).to(logits.device)
    log_probs = logits[order].double().log_softmax(dim=1)
    bounds = [part * len(logits) // num_splits for part in range(num_splits + 1)]
    scores = []
    for first, last in pairwise(bounds):
        part = log_probs[first:last]
        mean_log_probs = part.logsumexp(dim=0) - np.log(len(part))
        divergence = (part.exp() * (part - mean_log_probs)).sum(dim=1).mean()
        scores.append(float(divergence.exp()))
    return MeanAndStd(float(np.mean(scores)), float(np.std(scores)))
