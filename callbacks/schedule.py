"""When something is due: a function of the optimizer step, so that a resumed run does the same things as any other."""

from dataclasses import dataclass
from typing import Any, Protocol

from lightning import Callback, LightningModule, Trainer


class Schedule(Protocol):
    """Tells at the end of each pass whether something is due."""

    def is_due(self, trainer: Trainer, pl_module: Any, batch_idx: int) -> bool:
        """Whether pass `batch_idx` ended an optimizer step at which something is due."""


@dataclass(frozen=True)
class EveryKimg:
    """Due at each optimizer step that crosses a multiple of `kimg` thousand images, and at the end of training."""

    kimg: float

    def is_due(self, trainer: Trainer, pl_module: Any, batch_idx: int) -> bool:
        return _is_due(trainer, batch_idx, self.kimg * 1000, pl_module.settings.batch_size)


@dataclass(frozen=True)
class EveryEpochs:
    """Due after each `epochs` passes through the data, of `module.steps_per_epoch` steps, and at the end."""

    epochs: int

    def is_due(self, trainer: Trainer, pl_module: Any, batch_idx: int) -> bool:
        return _is_due(trainer, batch_idx, self.epochs * pl_module.steps_per_epoch, 1)


def _is_due(trainer: Trainer, batch_idx: int, period: float, per_step: int) -> bool:
    """Whether the optimizer step that ends here crosses a multiple of the period, or is the last one."""
    seen = trainer.global_step * per_step
    crossed = seen // period > (seen - per_step) // period
    return ends_step(trainer, batch_idx) and (crossed or trainer.global_step == trainer.max_steps)


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether pass `batch_idx` was the last of its accumulated optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class WhenDue(Callback):
    """Calls `act(trainer, module)` at the end of each pass at which something is due."""

    def __init__(self, every: Schedule) -> None:
        self.every = every

    def act(self, trainer: Trainer, pl_module: Any) -> object:
        """What is due."""
        raise NotImplementedError

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every.is_due(trainer, pl_module, batch_idx):
            self.act(trainer, pl_module)
