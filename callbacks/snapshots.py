"""Snapshots for resuming, written whole or not at all, and the model file that generation needs."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from callbacks.schedule import EveryKimg, Schedule
from datamodules.artifacts import atomic_path
from lightning_modules.edm_module import EDMModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written to a temporary sibling, flushed, then renamed; read with `weights_only`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)


class Snapshots(Checkpoint):
    """Writes `step-00001234.ckpt` when due and keeps the newest `keep`; runs after all other callbacks.

    Unlike `ModelCheckpoint` it holds no state of its own: the files in `folder` are all there is.
    """

    def __init__(self, folder: Path, every: Schedule, keep: int = 2) -> None:
        self.folder, self.every, self.keep = folder, every, keep

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count passes anew: the number of devices, and with it the passes in a step, may have changed since."""
        passes = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["current"], progress["total"]):
            counts.update(ready=passes, started=passes, processed=passes, completed=passes)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.every.is_due(trainer, pl_module, batch_idx):
            return
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:08d}.ckpt")  # joined by every rank
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
                old.unlink()


def newest_snapshot(folder: Path) -> Path | None:
    """The snapshot to resume from; None where there is none."""
    return max(folder.glob("step-*.ckpt"), default=None)


class DenoiserFile(Callback):
    """Keeps `denoiser.safetensors` (EMA weights and all that generation needs) as new as the newest snapshot.

    Where several averages are kept, the others lie beside it as `denoiser-ema50kimg.safetensors`.
    """

    def __init__(self, path: Path, every_kimg: float, meta: dict[str, Any]) -> None:
        self.path, self.every, self.meta = path, EveryKimg(every_kimg), meta

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every.is_due(trainer, pl_module, batch_idx) and trainer.is_global_zero:
            assert isinstance(pl_module, EDMModule)
            for number, (kimg, denoiser) in enumerate(pl_module.averaged_denoisers.items()):
                path = self.path.with_stem(f"{self.path.stem}-ema{kimg:g}kimg") if number else self.path
                denoiser.save_pretrained(path, **self.meta, nimg=pl_module.nimg, ema_halflife_kimg=kimg)
