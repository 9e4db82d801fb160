"""Generated images from fixed seeds, a row per cluster, while the model trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.image_grid import image_grid, row_name
from callbacks.loggers import log_image
from callbacks.schedule import EveryKimg
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.edm_module import EDMModule
from storage.files import atomic_path

ROWS, COLUMNS = 20, 10  # of a grid, the rows at most
# (denoiser, seeds [B], label indices [B] or None) → uint8 images [B, C, H, W]
Generate = Callable[[Denoiser, Tensor, Tensor | None], Tensor]


def sample_rows(
    denoiser: Denoiser,
    generate: Generate,
    max_rows: int,
    columns: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    all_gather: Callable[[Tensor], Tensor] = lambda own: own,
) -> tuple[Tensor, list[str]]:
    """Images [rows, columns, C, H, W] of seeds 0, 1, … with the EMA weights, and the rows' names.

    Conditional models: a row for each of the most frequent clusters, the same seeds in every row. Unconditional ones:
    eight rows. Several processes make a share each; `all_gather` stacks [n, …] of each to [world_size, n, …].
    """
    if denoiser.label_dim:
        assert denoiser.cluster_frequencies is not None
        assert denoiser.cluster_ids is not None
        rows = denoiser.cluster_frequencies.argsort(descending=True, stable=True)[:max_rows].tolist()
        labels = torch.tensor(rows).repeat_interleave(columns)
        seeds = torch.arange(columns).repeat(len(rows))
        names = [row_name(int(denoiser.cluster_ids[row]), denoiser.cluster_names) for row in rows]
    else:
        labels, seeds, names = None, torch.arange(8 * columns), []
    share = -(-len(seeds) // world_size)
    own = (rank + world_size * torch.arange(share)) % len(seeds)  # equally many for all: some images are made twice
    parts = [
        generate(denoiser, seeds[part], None if labels is None else labels[part]) for part in own.split(batch_size)
    ]
    everyones = all_gather(torch.cat(parts)).reshape(world_size, share, *parts[0].shape[1:])
    images = everyones.transpose(0, 1).flatten(0, 1)[: len(seeds)]  # rank r made r, r + world_size, …
    return images.unflatten(0, (-1, columns)), names


class SampleGrid(Callback):
    """Draws the grid every `every_kimg` and at the end, into `folder` and the loggers (`samples/grid`)."""

    def __init__(self, generate: Generate, folder: Path, every_kimg: float, batch_size: int) -> None:
        self.generate, self.folder, self.every, self.batch_size = generate, folder, EveryKimg(every_kimg), batch_size

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every.is_due(trainer, pl_module, batch_idx):
            assert isinstance(pl_module, EDMModule)
            self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: EDMModule) -> None:
        """Generate on all ranks, draw and write one grid."""
        images, names = sample_rows(
            pl_module.averaged_denoiser,
            self.generate,
            ROWS,
            COLUMNS,
            self.batch_size,
            trainer.global_rank,
            trainer.world_size,
            lambda own: cast(Tensor, pl_module.all_gather(own)),
        )
        if not trainer.is_global_zero:
            return
        picture = image_grid(images, names)
        kimg = round(pl_module.nimg / 1000)
        with atomic_path(self.folder / f"kimg{kimg:06d}.png") as temporary:
            picture.save(temporary)
        log_image(trainer, "samples/grid", picture)
