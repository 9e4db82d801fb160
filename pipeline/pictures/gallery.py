"""Real images of a cluster beside generated ones of the same cluster."""

import torch
from PIL import Image
from torch import Tensor

from callbacks.image_grid import image_grid
from callbacks.sample_grid import Generate, sample_rows
from datamodules.images.image_store import ImageStore
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.diffusion.denoiser import Denoiser

ROWS, COLUMNS = 12, 6


def gallery_of(
    denoiser: Denoiser, generate: Generate, images: ImageStore, labels: PseudoLabels | None
) -> dict[str, Image.Image]:
    """Caption → picture: real images of the largest clusters, and generated images of the same clusters.

    For a model without condition (`labels` None) only generated ones.
    """
    generated, names = sample_rows(denoiser, generate, ROWS, COLUMNS, batch_size=128)
    generated = generated.cpu()
    if labels is None:
        return {"Generated, without condition.": image_grid(generated)}
    clusters = [int(name.split()[1]) for name in names]  # cluster 7, and below it a name
    real = torch.stack([members_to_show(labels, cluster, images) for cluster in clusters])
    which = "the most confident" if labels.has_confidence else "randomly chosen"
    return {
        f"Real: {which} images of each of the largest clusters.": image_grid(real, names),
        "Generated: images of the same clusters, from the same seeds in every row.": image_grid(generated, names),
    }


def members_to_show(labels: PseudoLabels, cluster: int, store: ImageStore) -> Tensor:
    """Images of a cluster, [COLUMNS, C, H, W]; white where it has fewer.

    The most confident ones; random ones where all are equally confident, as labels and random groups are.
    """
    members = torch.nonzero(labels.cluster_ids == cluster).flatten()
    members = members[torch.randperm(len(members), generator=torch.Generator().manual_seed(cluster))]
    chosen = members[torch.argsort(labels.confidence[members], descending=True, stable=True)[:COLUMNS]]
    images = store.gather(chosen)
    blank = images.new_full((COLUMNS - len(images), *images.shape[1:]), 255)
    return torch.cat([images, blank])
