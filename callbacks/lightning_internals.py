"""All that is used of Lightning beyond its public interface: what to look at where a new version breaks something."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from installing signal handlers.

    Nor need it ask rank 0 before each pass whether they were called, which makes a GPU wait for the processor.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def is_under_slurm(trainer: Trainer) -> bool:
    """Whether SLURM has started the processes of this trainer."""
    return isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment)


def set_ddp_options(trainer: Trainer, **options: bool) -> None:
    """Set options of `DistributedDataParallel`, where Lightning has chosen to work with it."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs.update(options)


def passes_done(trainer: Trainer) -> int:
    """Passes of the current epoch, also of the tries before this one."""
    return trainer.fit_loop.epoch_loop.batch_idx + 1


def set_passes(checkpoint: dict[str, Any], passes: int) -> None:
    """Let a resumed training begin after so many passes and `global_step` optimizer steps."""
    loop = checkpoint["loops"]["fit_loop"]
    progress = loop["epoch_loop.batch_progress"]
    for counts in (progress["current"], progress["total"]):
        counts.update(ready=passes, started=passes, processed=passes, completed=passes)
    # Lightning counts this step after the hook in which a snapshot is written: curves would lag behind by one.
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]


class RichBar(RichProgressBar):
    """Lightning's bar of Rich, over the passes of the whole training, which is one endless epoch to Lightning."""

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
