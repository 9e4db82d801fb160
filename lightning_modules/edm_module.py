"""The second training phase: an EDM diffusion model, conditioned on pseudo-labels or unconditional."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.diffusion import augment
from lightning_modules.diffusion.denoiser import Denoiser, images_to_float
from lightning_modules.diffusion.ema import EMA
from lightning_modules.diffusion.loss import EDMLoss, drop_labels
from lightning_modules.diffusion.seeding import Stream, normal, torch_seed, uniform


class EDMModule(LightningModule):
    """Trains a `Denoiser` on batches of (uint8 images [b, C, H, W], label indices [b], stream positions [b]).

    What is random about an image (sigma, noise, augmentation, label dropout) is a function of `seed` and the image's
    position in the stream of training images, so a resumed run equals an uninterrupted one and several processes
    equal one; network dropout depends on (seed, rank, pass).

    Args:
        denoiser: the network under EDM's preconditioning; its `label_dim` is the number of groups, 0 for none.
        batch_size: images in one optimizer step, over all devices and accumulated passes.
        lr: Adam's learning rate after a linear ramp over `lr_rampup_kimg`.
        augment_probability: of each transform but the x flip, which has ½; 0 turns augmentation off, flips too.
        label_dropout: share of labels hidden, for classifier-free guidance.
        ema_halflife_kimg: of the averaged weights, at most `ema_rampup_ratio` times the images seen.
    """

    recent_loss: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        batch_size: int,
        lr: float = 1e-3,
        lr_rampup_kimg: float = 10_000,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        augment_probability: float = 0.12,
        label_dropout: float = 0.0,
        ema_halflife_kimg: float = 500,
        ema_rampup_ratio: float | None = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["denoiser"])
        self.denoiser = denoiser
        self.ema = EMA(denoiser, halflife_kimg=ema_halflife_kimg, rampup_ratio=ema_rampup_ratio)
        self.register_buffer("recent_loss", torch.tensor(torch.nan))  # of rank 0, averaged over about 100 passes
        self._passes: list[Tensor] = []  # losses of the current step's passes
        self.loss = EDMLoss(P_mean=P_mean, P_std=P_std, sigma_data=denoiser.sigma_data)

    @property
    def averaged_denoiser(self) -> Denoiser:
        """The denoiser with the averaged weights: the one that generates."""
        return cast(Denoiser, self.ema.module)

    @property
    def nimg(self) -> int:
        """Training images seen, counted at optimizer steps."""
        return self.trainer.global_step * self.hparams["batch_size"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(torch_seed(self.hparams["seed"], self.global_rank, batch_idx))  # network dropout
        losses = self.loss_of(batch)  # [b]
        self._stop_if_not_finite(losses, batch.positions)
        loss = losses.mean()
        self.recent_loss = torch.where(self.recent_loss.isnan(), loss, 0.99 * self.recent_loss + 0.01 * loss).detach()
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._passes = []
        self._passes.append(loss.detach())
        self.log("train/loss", torch.stack(self._passes).mean(), sync_dist=True, prog_bar=True)  # of the whole step
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("train/ema_halflife_kimg", self.ema.halflife_nimg(self.nimg) / 1000)
        self.log("step", self.nimg / 1000)  # the x axis of every curve: thousands of images seen
        return loss

    def loss_of(self, batch: Any) -> Tensor:
        """EDM's weighted squared error of each image, summed over its pixels and channels: [b]."""
        seed, positions = self.hparams["seed"], batch.positions
        images = images_to_float(batch.images)  # [b, C, H, W] in [-1, 1]
        augment_labels = None
        if probability := self.hparams["augment_probability"]:
            transforms = augment.draw_parameters(seed, positions, probability, self.denoiser.img_resolution)
            images, augment_labels = augment.apply(images, transforms)  # [b, C, H, W], [b, 9]
        sigma = self.loss.sigma(normal(seed, Stream.SIGMA, positions, ()))  # [b]
        noise = normal(seed, Stream.NOISE, positions, images.shape[1:])  # [b, C, H, W]
        labels = None
        if self.denoiser.label_dim:
            labels = F.one_hot(batch.labels, self.denoiser.label_dim).to(images.dtype)  # [b, C]
            draws = uniform(seed, Stream.LABEL_DROPOUT, positions, ())
            labels = drop_labels(labels, draws, self.hparams["label_dropout"])
        return self.loss(self.denoiser, images, sigma, noise, labels, augment_labels)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hparams = self.hparams
        optimizer = Adam(
            self.denoiser.parameters(), lr=hparams["lr"], betas=tuple(hparams["betas"]), eps=hparams["eps"]
        )
        rampup_nimg = max(hparams["lr_rampup_kimg"] * 1000, 1)
        scheduler = LambdaLR(optimizer, lambda step: min(step * hparams["batch_size"] / rampup_nimg, 1.0))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.ema.update(self.denoiser, nimg=self.nimg, batch_size=self.hparams["batch_size"])

    def _stop_if_not_finite(self, losses: Tensor, positions: Tensor) -> None:
        """Stop before the update, and name the images."""
        if bool(losses.isfinite().all()):
            return
        broken = positions[~losses.isfinite()].tolist()
        raise RuntimeError(
            f"the loss is not finite at {self.nimg:,} images seen (step {self.trainer.global_step}); the weights were "
            f"not updated. It is the images at these positions of the training stream: {broken[:8]}. "
            "Lower training.lr, or use trainer.precision=32-true."
        )
