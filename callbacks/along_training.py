"""What is measured of the averaged model from time to time while it trains, and of the last step in any case."""

from abc import ABC, abstractmethod
from typing import Any

from lightning import Callback, LightningModule, Trainer

from callbacks.schedule import EveryKimg
from callbacks.stop_request import Stopped
from lightning_modules.edm_module import EDMModule


class AlongTraining(Callback, ABC):
    """Measures every `every_kimg` thousand images and at the end; what a stop cuts short is made up for.

    Attributes:
        history: (kimg, what was measured) of each time.
    """

    def __init__(self, every_kimg: float) -> None:
        self.every = EveryKimg(every_kimg)
        self.history: list[tuple[float, Any]] = []

    @abstractmethod
    def evaluate(self, trainer: Trainer, pl_module: EDMModule) -> Any:
        """Measure, log and add to the history, on every rank. None where the run is asked to stop meanwhile."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every.is_due(trainer, pl_module, batch_idx):
            assert isinstance(pl_module, EDMModule)
            self.evaluate(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, EDMModule)
        self.measure_if_missing(trainer, pl_module)

    def measure_if_missing(self, trainer: Trainer, pl_module: EDMModule) -> None:
        """Measure now what a stop cut short: the snapshot is of a step at which it is due, and not known.

        Raises:
            Stopped: the run is asked to stop meanwhile.
        """
        due = pl_module.nimg and self.every.is_due(trainer, pl_module, trainer.accumulate_grad_batches - 1)
        known = bool(self.history) and self.history[-1][0] == pl_module.nimg / 1000
        if due and not known and self.evaluate(trainer, pl_module) is None:
            raise Stopped
