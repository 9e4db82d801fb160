"""The first training phase: clustering heads that learn from embeddings and their nearest neighbours."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from typing import Any, NoReturn

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_modules.clustering.assignment import BATCH_SIZE, ClusteringHead, assign
from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.clustering.heads import ClusteringHeads
from lightning_modules.clustering.objectives import OBJECTIVES
from lightning_modules.processes import mean_over_processes
from storage.additions import OBJECTIVES as ADDED
from storage.additions import load_addition


class TEMIModule(LightningModule):
    """TEMI clustering (arXiv 2303.17896): student heads learn, teacher heads follow and assign.

    Training is one long Lightning epoch over an endless loader, `Trainer(max_steps=module.max_steps)`; an epoch, here
    and in the settings, is `steps_per_epoch` optimizer steps.

    Args:
        settings: of the heads, their objective and their training.
        embedding_dim: D.
        steps_per_epoch: images / batch_size, the last partial batch dropped.

    Examples:
        >>> settings = TEMISettings(num_clusters=5, num_heads=2, max_epochs=10)
        >>> module = TEMIModule(settings, embedding_dim=16, steps_per_epoch=3)
        >>> module.max_steps  # for Trainer(max_steps=…, max_epochs=-1)
        30
        >>> cluster_ids, confidence = module.predict(torch.randn(7, 16))
        >>> cluster_ids.shape
        torch.Size([7])
    """

    epoch_losses: Tensor  # [H], sum over the steps of the current epoch, all processes together
    last_epoch_losses: Tensor  # [H], mean over the last full epoch; NaN before there is one

    def __init__(self, settings: TEMISettings | Mapping[str, Any], embedding_dim: int, steps_per_epoch: int) -> None:
        super().__init__()
        settings = settings if isinstance(settings, TEMISettings) else TEMISettings(**settings)  # from a snapshot
        self.save_hyperparameters(
            {"settings": asdict(settings), "embedding_dim": embedding_dim, "steps_per_epoch": steps_per_epoch}
        )
        self.settings, self.steps_per_epoch = settings, steps_per_epoch
        num_heads = settings.num_heads
        widths = settings.hidden_dim, settings.bottleneck_dim
        self.student = ClusteringHeads(num_heads, embedding_dim, settings.num_clusters, *widths)
        self.teacher = deepcopy(self.student).requires_grad_(False)
        objective = OBJECTIVES.get(settings.objective) or load_addition(ADDED, settings.objective, nn.Module)
        self.objective = objective(settings)
        self.register_buffer("epoch_losses", torch.zeros(num_heads))
        self.register_buffer("last_epoch_losses", torch.full((num_heads,), torch.nan))

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.settings.max_epochs * self.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Epochs completed, in the sense of the settings (Lightning's own `current_epoch` stays 0)."""
        return self.global_step // self.steps_per_epoch

    # One training step ------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """`batch`: what the heads read, `images` and `neighbours` [P, D], and the images' `indices` [P]."""
        embeddings = torch.cat([batch.images, batch.neighbours])  # [2P, D]
        with torch.no_grad():
            teacher_logits = self.teacher(embeddings)  # [H, 2P, C]
        head_losses = self.objective(self.student(embeddings), teacher_logits)  # [H]
        self._record(head_losses.detach(), batch)
        return head_losses.mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.epoch < self.settings.frozen_last_layer_epochs:
            for parameter in self.student.last_layer:
                parameter.grad = None  # AdamW then leaves it alone, weight decay included

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self._update_teacher()  # here, not in on_train_batch_end: checkpoint callbacks run before the module's hook

    @torch.no_grad()
    def _update_teacher(self) -> None:
        """teacher ← momentum · teacher + (1 − momentum) · student."""
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - self.settings.teacher_momentum)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        biases = [p for name, p in self.student.named_parameters() if name.endswith("bias")]
        weights = [p for name, p in self.student.named_parameters() if not name.endswith("bias")]
        groups = [
            {"params": weights, "weight_decay": self.settings.weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.settings.lr * self.settings.batch_size / 256, fused=True)
        warmup_steps = max(1, self.settings.warmup_epochs * self.steps_per_epoch)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    # What is remembered and logged of it ------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "the clustering objectives compare whole batches, so gradients can't be accumulated over parts: "
                "set accumulate_grad_batches=1 (a smaller batch_size or fewer heads need less memory)"
            )

    @torch.no_grad()
    def _record(self, local_losses: Tensor, batch: Any) -> None:
        head_losses = mean_over_processes(local_losses)
        if not head_losses.isfinite().all():  # on every process at once, and before the update
            self._stop_non_finite(batch)
        self.epoch_losses += head_losses
        self.log("train/loss", head_losses.mean(), prog_bar=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("step", float(self.global_step + 1))  # x axis of every curve, this step included
        self.log("epoch", self.global_step / self.steps_per_epoch)
        if (self.global_step + 1) % self.steps_per_epoch == 0:
            self._end_epoch()

    def _end_epoch(self) -> None:
        self.last_epoch_losses.copy_(self.epoch_losses / self.steps_per_epoch)
        self.epoch_losses.zero_()
        scalars = {f"temi/loss_head_{head}": loss for head, loss in enumerate(self.last_epoch_losses.tolist())}
        scalars["temi/best_head"] = self.best_head
        for logger in self.loggers:  # self.log would wait for a step that log_every_n_steps divides
            logger.log_metrics(scalars, step=self.global_step)

    def _stop_non_finite(self, batch: Any) -> NoReturn:
        broken = ~(batch.images.isfinite().all(dim=1) & batch.neighbours.isfinite().all(dim=1))  # [P]
        if broken.any():
            where = f"the embeddings of these images or of their neighbours: {batch.indices[broken].tolist()}"
        else:
            where = f"no embedding of this process's batch; its images: {batch.indices.tolist()}"
        raise RuntimeError(
            f"the loss is not finite at step {self.global_step}; the weights were not updated. "
            f"Non-finite values are in {where}. "
            "If all embeddings are finite, lower the learning rate or use precision=32-true."
        )

    # The outcome ------------------------------------------------------------------------------------------------------

    @property
    def best_head(self) -> int:
        """The head with the lowest mean loss over the last full epoch (over the steps so far before there is one)."""
        complete = bool(self.last_epoch_losses.isfinite().all())
        return int((self.last_epoch_losses if complete else self.epoch_losses).argmin())

    def predict(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The best teacher head's cluster ids, int64 [N], and confidences, float32 [N], of what the heads read."""
        batches = (batch.to(self.device) for batch in embeddings.split(BATCH_SIZE))
        return assign(self.teacher.head(self.best_head), batches, self.settings.teacher_temperature)

    def clustering_head(self, mean: Tensor, std: Tensor, backbone_identity: Mapping[str, Any]) -> ClusteringHead:
        """The best teacher head with all it takes to assign new images; on the CPU."""
        head = self.teacher.head(self.best_head).cpu()
        return ClusteringHead(head, mean.cpu(), std.cpu(), backbone_identity, self.settings.teacher_temperature)
