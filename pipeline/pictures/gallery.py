"""Real images of a cluster beside generated ones of the same cluster."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from callbacks.image_grid import image_grid
from callbacks.sample_grid import sample_rows
from datamodules.images.images import ImageStore
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.evaluation.sampling import Sampler
from pipeline.running.embedding import device_of
from pipeline.running.run_folder import read_summary
from pipeline.settings.inputs import denoiser_file, plain, pseudo_labels_of, source_of
from pipeline.studies.jobs import composed
from storage.errors import UserError

ROWS, COLUMNS = 12, 6


@dataclass(frozen=True)
class Gallery:
    """Pictures of one model, each with its caption."""

    title: str
    pictures: list[tuple[str, Image.Image]]


def gallery_of(train_folder: Path) -> Gallery:
    """Real images of the largest clusters, and generated images of the same clusters.

    For a model without condition only generated ones. Raises `UserError` where the run's images or its pseudo-labels
    are no longer to be had.
    """
    summary = read_summary(train_folder, "train")
    if summary is None:
        raise UserError(f"{train_folder}: no finished training run.")
    words = [text for text in summary["arguments"] if not text.startswith(("-", "run_dir=", "overwrite="))]
    cfg = composed("train", words, origin=f"{train_folder / 'summary.json'}")
    denoiser = Denoiser.from_pretrained(denoiser_file(train_folder, "run")).to(device_of("auto"))
    generated, names = sample_rows(denoiser, Sampler(**plain(cfg.sampler)), ROWS, COLUMNS, batch_size=128)
    generated = generated.cpu()
    if not denoiser.label_dim:
        return Gallery("Generated images", [("Generated, without condition.", image_grid(generated))])
    source = source_of(cfg)
    labels = pseudo_labels_of(cfg, source)
    assert labels is not None
    store = ImageStore(source, cfg.dataset.resolution, cfg.dataset.channels, memory_gb=0)
    clusters = [int(name.removeprefix("cluster ")) for name in names]
    real = torch.stack([members_to_show(labels, cluster, store) for cluster in clusters])
    which = "the most confident" if labels.has_confidence else "randomly chosen"
    return Gallery(
        "Clusters, real and generated",
        [
            (f"Real: {which} images of each of the largest clusters.", image_grid(real, names)),
            ("Generated: images of the same clusters, from the same seeds in every row.", image_grid(generated, names)),
        ],
    )


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
