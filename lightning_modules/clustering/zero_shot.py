"""Clusters from class names: each image goes to the name whose text lies nearest to it (CLIP, arXiv 2103.00020)."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8192  # images at once


@torch.no_grad()
def zero_shot(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: float) -> tuple[Tensor, Tensor]:
    """The class with the largest logit, logit_scale · cos(image, text), and its softmax probability.

    Args:
        image_embeddings: [N, D], in the space that CLIP shares between images and text; any length.
        text_embeddings: [K, D], one per class; any length.
        logit_scale: CLIP's learned inverse temperature, 100 for the published models.

    Returns:
        Cluster ids in 0…K−1, int64 [N], and confidences, float32 [N].

    Raises:
        ValueError: the two kinds of embeddings are not of one space.
    """
    if image_embeddings.shape[1] != text_embeddings.shape[1]:
        raise ValueError(
            f"images have {image_embeddings.shape[1]} features, texts {text_embeddings.shape[1]}: not one space"
        )
    texts = F.normalize(text_embeddings.float(), dim=1)
    blocks = (logit_scale * F.normalize(block.float(), dim=1) @ texts.T for block in image_embeddings.split(BLOCK))
    best = [logits.softmax(dim=1).max(dim=1) for logits in blocks]  # of [b, K]
    return torch.cat([most.indices for most in best]), torch.cat([most.values for most in best])
