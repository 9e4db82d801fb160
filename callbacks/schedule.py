"""When something is due: a function of the optimizer step, so that a resumed run does the same things as any other.

Snapshots alone, which change nothing, may also wait for the clock.
"""

import math
import time
from typing import Any, Protocol, cast

from lightning import Callback, LightningModule, Trainer

from lightning_modules.edm_module import EDMModule
from lightning_modules.temi_module import TEMIModule


class Schedule(Protocol):
    """Tells at the end of each pass whether something is due."""

    def is_due(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> bool:
        """Whether pass `batch_idx` ended an optimizer step at which something is due."""


class EveryKimg:
    """Due at each optimizer step that crosses a multiple of `kimg` thousand images, and at the end of training."""

    def __init__(self, kimg: float) -> None:
        self.kimg = kimg

    def is_due(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> bool:
        if not ends_step(trainer, batch_idx):
            return False
        batch_size = cast(EDMModule, pl_module).settings.batch_size
        seen, period = trainer.global_step * batch_size, self.kimg * 1000
        crossed = math.floor(seen / period) > math.floor((seen - batch_size) / period)
        return crossed or trainer.global_step == trainer.max_steps


class OnceAtKimg:
    """Due at the optimizer step that reaches `kimg` thousand images, and never again."""

    def __init__(self, kimg: float) -> None:
        self.kimg = kimg

    def is_due(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> bool:
        batch_size = cast(EDMModule, pl_module).settings.batch_size
        seen = trainer.global_step * batch_size
        return ends_step(trainer, batch_idx) and seen - batch_size < self.kimg * 1000 <= seen


class AtMostEvery:
    """Due when `schedule` is, but for what comes within `seconds` after the start or the time before; and at the end.

    Rank 0's clock decides for all, once in a step, however many callbacks ask.
    """

    def __init__(self, seconds: float, schedule: Schedule) -> None:
        self.seconds, self.schedule = seconds, schedule
        self._last, self._step, self._answer = time.monotonic(), -1, False

    def is_due(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> bool:
        if not self.schedule.is_due(trainer, pl_module, batch_idx):
            return False
        if trainer.global_step != self._step:
            late = time.monotonic() - self._last >= self.seconds or trainer.global_step == trainer.max_steps
            self._step, self._answer = trainer.global_step, trainer.strategy.broadcast(late)
            if self._answer:
                self._last = time.monotonic()
        return self._answer


class EveryEpochs:
    """Due after each `epochs` passes through the data, of `module.steps_per_epoch` steps, and at the end."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def is_due(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> bool:
        if not ends_step(trainer, batch_idx):
            return False
        period = self.epochs * cast(TEMIModule, pl_module).steps_per_epoch
        return trainer.global_step % period == 0 or trainer.global_step == trainer.max_steps


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether pass `batch_idx` was the last of its accumulated optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def others_due(own: Callback, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> bool:
    """Whether other callbacks than this one have something to do after pass `batch_idx` by their schedule `every`."""
    schedules = [getattr(callback, "every", None) for callback in cast(Any, trainer).callbacks if callback is not own]
    return any(schedule is not None and schedule.is_due(trainer, pl_module, batch_idx) for schedule in schedules)
