"""Real images of a cluster beside generated ones of the same cluster."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from callbacks.image_grid import image_grid
from callbacks.sample_grid import sample_rows
from datamodules.artifacts import UserError
from datamodules.images import ImageStore
from datamodules.pseudo_labels import PseudoLabels
from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.embedding import device_of
from pipeline.inputs import plain, pseudo_labels_of, source_of
from pipeline.run_folder import read_summary
from pipeline.sampling import Sampler
from pipeline.studies.jobs import composed

ROWS, COLUMNS = 12, 6


def galleries(train_folder: Path) -> list[tuple[str, Image.Image]]:
    """(caption, picture): the most confident real images of the largest clusters, and generated images of the same.

    For a model without condition only the generated ones. Raises `UserError` where the run's images or its
    pseudo-labels are no longer to be had.
    """
    summary = read_summary(train_folder, "train")
    if summary is None:
        raise UserError(f"{train_folder}: no finished training run.")
    words = [text for text in summary["arguments"] if not text.startswith(("-", "run_dir=", "overwrite="))]
    cfg = composed("train", words, origin=f"{train_folder / 'summary.json'}")
    denoiser = Denoiser.from_pretrained(train_folder / "denoiser.safetensors").to(device_of("auto"))
    generated, names = sample_rows(denoiser, Sampler(**plain(cfg.sampler)), ROWS, COLUMNS, batch_size=128)
    generated = generated.cpu()
    if not denoiser.label_dim:
        return [("Generated, without condition.", image_grid(generated))]
    source = source_of(cfg)
    labels = pseudo_labels_of(cfg, source)
    assert labels is not None
    store = ImageStore(source, cfg.dataset.resolution, cfg.dataset.channels, memory_gb=0)
    clusters = [int(name.removeprefix("cluster ")) for name in names]
    real = torch.stack([most_confident(labels, cluster, store) for cluster in clusters])
    return [
        ("Real: the most confident images of each of the largest clusters.", image_grid(real, names)),
        ("Generated: images of the same clusters, from the same seeds in every row.", image_grid(generated, names)),
    ]


def most_confident(labels: PseudoLabels, cluster: int, store: ImageStore) -> Tensor:
    """The most confident images of a cluster, [COLUMNS, C, H, W]; white where it has fewer."""
    members = torch.nonzero(labels.cluster_ids == cluster).flatten()
    chosen = members[torch.argsort(labels.confidence[members], descending=True, stable=True)[:COLUMNS]]
    images = store.gather(chosen)
    blank = images.new_full((COLUMNS - len(images), *images.shape[1:]), 255)
    return torch.cat([images, blank])
