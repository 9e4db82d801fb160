"""Clusters without a trained head: k-means on the embeddings, random ones, and the nearest class names."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

MINIBATCH_ABOVE = 200_000  # images; beyond this a full pass per iteration takes minutes
BLOCK_ENTRIES = 2**25  # distances held at once: 256 MB


def kmeans(embeddings: Tensor, num_clusters: int, seed: int) -> tuple[Tensor, Tensor]:
    """Spherical k-means' usual stand-in: Euclidean k-means (k-means++) on L2-normalised raw embeddings.

    On the unit sphere |a − b|² = 2 − 2 cos(a, b), so clusters are by the cosine similarity that neighbours are found
    with. Standardising first would give dimensions of small variance, mostly noise, the weight of the large ones.

    Args:
        embeddings: [N, D], as the backbone gives them.
        num_clusters: C, at most N; more than 200,000 images go through mini-batches.
        seed: of the initial centres (and the mini-batches).

    Returns:
        Cluster ids in 0…C−1, int64 [N], and confidences, float32 [N]; see `simplified_silhouette`.
    """
    points = F.normalize(embeddings.float(), dim=1).cpu().numpy()
    if len(points) > MINIBATCH_ABOVE:
        points -= points.mean(axis=0, dtype=np.float64)  # as KMeans does itself: products of float32 cancel far away
        model = MiniBatchKMeans(num_clusters, batch_size=max(8192, 4 * num_clusters), n_init=1, random_state=seed)
    else:
        model = KMeans(num_clusters, n_init=1, random_state=seed)
    model.fit(points)
    cluster_ids = torch.from_numpy(model.labels_).long()
    return cluster_ids, simplified_silhouette(torch.from_numpy(points), torch.from_numpy(model.cluster_centers_))


def nearest_cluster(embeddings: Tensor, members: Tensor, cluster_ids: Tensor) -> Tensor:
    """The cluster of new images: the one whose mean is nearest, on the unit sphere as in `kmeans`; int64 [n].

    Args:
        embeddings: [n, D], of the new images.
        members: [N, D], of the images that were clustered.
        cluster_ids: their clusters, int64 [N].
    """
    points, known = (F.normalize(values.double(), dim=1) for values in (embeddings, members))
    used, places = cluster_ids.unique(return_inverse=True)
    sums = known.new_zeros(len(used), known.shape[1]).index_add_(0, places, known)
    means = sums / torch.bincount(places)[:, None]  # [used, D]
    blocks = points.split(max(1, BLOCK_ENTRIES // len(used)))
    return used[torch.cat([torch.cdist(block, means).argmin(dim=1) for block in blocks])]


def simplified_silhouette(points: Tensor, centres: Tensor) -> Tensor:
    """How clearly each point belongs to its nearest centre: 1 − d₁ / d₂, float32 [N], from 0 to 1.

    d₁ and d₂ are the distances to the nearest and the second nearest centre: 0 on the border between two clusters, 1 at
    a centre. It is the silhouette with distances to centres in place of mean distances to members (Hruschka, de Castro
    and Campello, "Evolutionary algorithms for clustering gene-expression data", 2004). All ones for a single centre.

    Args:
        points: [N, D].
        centres: [C, D].
    """
    if len(centres) == 1:
        return torch.ones(len(points))
    margins = []
    for block in points.split(max(1, BLOCK_ENTRIES // len(centres))):
        distances = torch.cdist(block.double(), centres.double())  # float32 cancels where all lie far from the origin
        nearest, second = distances.topk(2, largest=False).values.unbind(dim=1)
        margins.append(1 - nearest / second.clamp_min(torch.finfo(torch.float32).tiny))
    return torch.cat(margins).float()


def random_groups(num_images: int, num_clusters: int, seed: int) -> Tensor:
    """Random clusters whose sizes differ by at most one image: granularity without meaning. int64 [num_images]."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    return order % num_clusters


@torch.no_grad()
def zero_shot(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: float) -> tuple[Tensor, Tensor]:
    """The class with the largest logit, logit_scale · cos(image, text) (CLIP, arXiv 2103.00020), and its probability.

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
    blocks = (logit_scale * F.normalize(block.float(), dim=1) @ texts.T for block in image_embeddings.split(8192))
    best = [logits.softmax(dim=1).max(dim=1) for logits in blocks]  # of [b, K]
    return torch.cat([most.indices for most in best]), torch.cat([most.values for most in best])
