"""How fast training goes: a progress bar in images, and the rates as curves."""

import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from callbacks.lightning_internals import passes_done
from callbacks.schedule import EveryKimg, others_due
from lightning_modules.edm_module import EDMModule
from lightning_modules.processes import wait_for


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory held so far, in GB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes * (1 if sys.platform == "darwin" else 1024) / 1e9


class Throughput(Callback):
    """Logs `throughput/kimg_per_s`, `sec_per_kimg`, `peak_memory_gb` and `eta_hours` every `every_kimg`.

    Rates are of training by the clock, waiting for images included. The first pass of each try, which compiles and
    finds its memory, does not count, nor what other callbacks do when they are due: distances, grids, snapshots.
    """

    def __init__(self, every_kimg: float) -> None:
        self.every = EveryKimg(every_kimg)
        self._seconds, self._images = 0.0, 0
        self._start: float | None = None  # of what is measured; None while it is not

    def on_train_start(self, *_: Any) -> None:
        self._seconds, self._images, self._warm, self._start = 0.0, 0, False, None

    def on_train_batch_start(self, *_: Any) -> None:
        if self._start is None and self._warm:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._start is not None:
            self._images += len(batch.positions) * trainer.world_size
        due, others = self.every.is_due(trainer, pl_module, batch_idx), others_due(self, trainer, pl_module, batch_idx)
        if due or others or not self._warm:
            wait_for(pl_module.device)
            now = time.perf_counter()
            self._seconds += 0.0 if self._start is None else now - self._start
            self._start, self._warm = None if others else now, True
        if due and self._images:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, EDMModule)
        kimg_per_s = self._images / 1000 / self._seconds
        self._seconds, self._images = 0.0, 0
        total = trainer.max_steps * pl_module.settings.batch_size
        values = {
            "throughput/kimg_per_s": kimg_per_s,
            "throughput/sec_per_kimg": 1 / kimg_per_s,
            "throughput/peak_memory_gb": peak_memory_gb(pl_module.device),
            "throughput/eta_hours": (total - pl_module.nimg) / 1000 / kimg_per_s / 3600,
        }
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)


class ImageProgressBar(TQDMProgressBar):
    """Lightning's progress bar, counted in training images: rate in images/s and time left come from tqdm.

    Args:
        images_per_pass: images (or pairs) that one batch index stands for, over all devices.
        total: images of the whole run.
    """

    def __init__(self, images_per_pass: int, total: int, description: str, unit: str = "img") -> None:
        super().__init__(refresh_rate=1)
        self.images_per_pass, self.total, self.description, self.unit = images_per_pass, total, description, unit

    def init_train_tqdm(self) -> Tqdm:
        return Tqdm(
            desc=self.description,
            total=self.total,
            unit=self.unit,
            unit_scale=True,
            disable=self.is_disabled,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            file=sys.stderr,
        )

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        done = passes_done(trainer) if trainer.global_step else 0
        self.train_progress_bar.initial = done * self.images_per_pass
        self.train_progress_bar.reset(total=self.total)
        self.train_progress_bar.n = self.train_progress_bar.initial

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar = self.train_progress_bar
        redrawn = bar.update(min((batch_idx + 1) * self.images_per_pass, self.total) - bar.n)
        if redrawn:  # not after each pass: reading the loss waits for all that a GPU was given to do
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
