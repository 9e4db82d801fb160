"""The second training phase: an EDM diffusion model, conditioned on pseudo-labels or unconditional."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple, cast

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.diffusion.augment import AUGMENT_DIM
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.ema import EMA
from lightning_modules.diffusion.power_average import WIDTHS, PowerAverage
from lightning_modules.diffusion.prelude import Prelude
from lightning_modules.optimizer_settings import OptimizerSettings
from lightning_modules.optimizers import OPTIMIZERS
from lightning_modules.processes import OnTheWay, mean_over_processes
from lightning_modules.training_settings import TrainingSettings
from storage.errors import UserError
from storage.philox import torch_seed

MAX_SKIPPED_IN_A_ROW = 20  # steps, whose scaled gradients overflow; a few at the start find the scale
NOT_FINITE, TOO_MANY_SKIPPED = 1, 2  # a step's trouble; 0: none


class Pass(NamedTuple):
    """What is remembered of a forward pass until its step's loss is known to be finite."""

    mean_loss: Tensor  # [], of the images of all devices
    losses: Tensor  # [b]
    positions: Tensor  # [b]


class EDMModule(LightningModule):
    """Trains a `Denoiser` on batches of (uint8 images [b, C, H, W], label indices [b], stream positions [b]).

    What is random about an image (sigma, noise, augmentation, label dropout) is a function of `seed` and the image's
    position in the stream of training images, so a resumed run equals an uninterrupted one and several processes
    equal one; network dropout depends on (seed, rank, pass).

    A snapshot holds all of the arguments, as plain values in the place of objects, so that
    `EDMModule.load_from_checkpoint(FILE.ckpt)` needs no others.

    Args:
        denoiser: the network with its preconditioning; its `label_dim` is the number of clusters, 0 for none.
        training: its batch size, learning rate, noise levels, averages …
        optimizer: which one, and its own settings.
        seed: of all that is random.

    Raises:
        ValueError: images are to be augmented, but the denoiser has no input that says how.

    Examples:
        >>> from datamodules.image_datamodule import ImageBatch
        >>> from lightning_modules.diffusion.network_settings import NetworkSettings
        >>> network = NetworkSettings(model_channels=8, channel_mult=[1], num_blocks=1)
        >>> module = EDMModule(Denoiser(network, img_resolution=8, img_channels=1, label_dim=3, augment_dim=9))
        >>> images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        >>> module.loss_of(ImageBatch(images, labels=torch.tensor([0, 1, 2, 0]), positions=torch.arange(4))).shape
        torch.Size([4])
    """

    recent_loss: Tensor
    skipped_steps: Tensor
    skipped_in_a_row: Tensor

    def __init__(
        self,
        denoiser: Denoiser | Mapping[str, Any],
        training: TrainingSettings | Mapping[str, Any] = TrainingSettings(),
        optimizer: OptimizerSettings | Mapping[str, Any] = OptimizerSettings(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        denoiser = denoiser if isinstance(denoiser, Denoiser) else Denoiser.described(**denoiser)
        training = training if isinstance(training, TrainingSettings) else TrainingSettings(**training)
        optimizer = optimizer if isinstance(optimizer, OptimizerSettings) else OptimizerSettings(**optimizer)
        if training.augment_probability and denoiser.augment_dim != AUGMENT_DIM:
            raise ValueError(
                f"augment_probability={training.augment_probability} needs a denoiser that is told what was done to an "
                f"image, but this one has augment_dim={denoiser.augment_dim}. Make it with augment_dim={AUGMENT_DIM}, "
                "or set TrainingSettings(augment_probability=0)"
            )
        self.save_hyperparameters(
            {
                "denoiser": {"description": denoiser.description, "clusters": denoiser.clusters},
                "training": asdict(training),
                "optimizer": asdict(optimizer),
                "seed": seed,
            },
            logger=False,
        )
        self.settings, self.optimizer_settings, self.seed = training, optimizer, seed
        self.denoiser = denoiser
        self.objective = replace(denoiser.objective, P_mean=training.P_mean, P_std=training.P_std)
        self.prelude = Prelude(
            denoiser.encoder,
            self.objective,
            denoiser.img_resolution,
            denoiser.label_dim,
            training.label_dropout,
            training.augment_probability,
            seed,
        )
        self.emas = nn.ModuleList(
            EMA(denoiser, kimg, training.ema_rampup_ratio)
            for kimg in (training.ema_halflife_kimg, *training.extra_ema_halflife_kimg)
        )
        widths = WIDTHS if training.posthoc_snapshots else ()
        self.power_averages = nn.ModuleList(PowerAverage(denoiser, width) for width in widths)
        self.register_buffer("recent_loss", torch.tensor(torch.nan))  # averaged over about the last 100 steps
        self.register_buffer("skipped_steps", torch.tensor(0))
        self.register_buffer("skipped_in_a_row", torch.tensor(0))
        self.cuda_graphs = False
        self._passes: list[Pass] = []  # of the current step
        self._unconfirmed: tuple[OnTheWay, int, list[Pass]] | None = None  # the newest step's trouble

    @property
    def averaged_denoiser(self) -> Denoiser:
        """The denoiser with the averaged weights: the one that generates."""
        return self.averaged_denoisers[self.settings.ema_halflife_kimg]

    @property
    def averaged_denoisers(self) -> dict[float, Denoiser]:
        """The denoisers of all half-lives (kimg), that of `averaged_denoiser` first.

        Raises:
            UserError: the newest step's loss was not finite.
        """
        self.stop_if_not_finite()
        return {ema.halflife_kimg: cast(Denoiser, ema.get()) for ema in cast(Iterable[EMA], self.emas)}

    @property
    def nimg(self) -> int:
        """Training images seen, counted at optimizer steps."""
        return self.trainer.global_step * self.settings.batch_size

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.begin_pass()
        torch.manual_seed(torch_seed(self.seed, self.global_rank, batch_idx))  # network dropout
        losses = self.loss_of(batch)  # [b]
        loss = losses.mean()
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._passes = []
        self._passes.append(Pass(mean_over_processes(loss.detach()), losses.detach(), batch.positions))
        step_loss = torch.stack([one.mean_loss for one in self._passes]).mean()
        self.log("train/loss", step_loss, prog_bar=True)
        if len(self._passes) == self.trainer.accumulate_grad_batches:
            self._end_step(step_loss)
        return loss

    def _end_step(self, step_loss: Tensor) -> None:
        """After the last forward pass of a step: nothing here waits for the device but for the step before."""
        self.stop_if_not_finite()
        finite = step_loss.isfinite()
        # As a GradScaler tells a fused optimizer to leave its weights and moments as they are.
        cast(Any, self.trainer.optimizers[0]).found_inf = (~finite).float()
        trouble = torch.where(finite, TOO_MANY_SKIPPED * (self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW), NOT_FINITE)
        self._unconfirmed = OnTheWay(trouble), self.trainer.global_step, self._passes
        # 1 in the first step, 1/2 in the second, 0.01 in the end: the first steps count no more than others.
        share = 0.01 / (1 - 0.99 ** (self.trainer.global_step + 1))
        before = self.recent_loss
        self.recent_loss = torch.where(before.isnan(), step_loss, before.lerp(step_loss, share))
        if (self.trainer.global_step + 1) % cast(Any, self.trainer).log_every_n_steps:
            return  # each number of Python's that is logged is copied to the device, which is waited for
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("train/ema_halflife_kimg", cast(EMA, self.emas[0]).halflife_nimg(self.nimg) / 1000)
        if self._gradient_scaler is not None:
            self.log("train/skipped_steps", self.skipped_steps.float())
        self.log("step", float(self.global_step + 1))  # x axis of every curve, this step included

    def loss_of(self, batch: Any) -> Tensor:
        """EDM's weighted squared error of each image, summed over its pixels and channels: [b]."""
        prepared = self.prelude(batch.images, batch.labels, batch.positions)
        return self.objective(self.denoiser, *prepared).sum(dim=(1, 2, 3))

    def compile_pass(self, device: torch.device, cuda_graphs: bool = False) -> None:
        """Let `torch.compile` have what a pass runs, in place: the names of weights, and so the snapshots, stay.

        On a CPU the prelude stays as it is: there it leaves out the images that are not moved, as no graph can.
        With `cuda_graphs` all kernels of the network are launched at once. Its outputs and gradients then lie where
        those of the next pass will lie, so a step may have one pass alone.
        """
        self.cuda_graphs = cuda_graphs
        if device.type != "cpu":
            self.prelude.compile()
        self.denoiser.compile(dynamic=False, mode="reduce-overhead" if cuda_graphs else None)  # passes are of one size

    def begin_pass(self) -> None:
        """Say that of the pass before nothing is needed any more; CUDA graphs write over it."""
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self.settings
        make = OPTIMIZERS[self.optimizer_settings.name]
        optimizer = make(self.denoiser.parameters(), settings.lr, self.optimizer_settings)
        rampup_nimg = 1000 * settings.lr_rampup_kimg

        def share_of_rate(step: int) -> float:
            nimg = step * settings.batch_size
            return nimg / rampup_nimg if nimg < rampup_nimg else 1.0

        scheduler = LambdaLR(optimizer, share_of_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        scaler = self._gradient_scaler
        before = None if scaler is None else scaler.scale(torch.ones((), device=self.device))  # get_scale() would wait
        super().optimizer_step(*args, **kwargs)
        if scaler is not None and before is not None:
            skipped = scaler.scale(torch.ones_like(before)) < before  # how it tells, of the same steps on all ranks
            self.skipped_steps += skipped
            self.skipped_in_a_row.add_(1).mul_(skipped)
        for ema in cast(Iterable[EMA], [*self.emas, *self.power_averages]):
            ema.update(self.denoiser, nimg=self.nimg, batch_size=self.settings.batch_size)

    @property
    def _gradient_scaler(self) -> GradScaler | None:
        """What scales the loss under fp16; None in the other precisions."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def stop_if_not_finite(self) -> None:
        """Stop on every rank where the loss of the newest step was not finite, or float16 overflows again and again.

        The update of such a step was left out.

        In training a step is looked at one step later, so that a GPU always has work; whoever writes or measures
        weights looks before.

        Raises:
            UserError: it was not, and names the images; or too many steps in a row were skipped.
        """
        if self._unconfirmed is None:
            return
        on_the_way, step, passes = self._unconfirmed
        self._unconfirmed, trouble = None, on_the_way.item()
        if trouble == 0:
            return
        if trouble == TOO_MANY_SKIPPED:
            scale = cast(GradScaler, self._gradient_scaler).get_scale()
            raise UserError(
                f"the gradients overflowed float16 in {int(self.skipped_in_a_row)} steps in a row, up to {self.nimg:,} "
                f"images seen, until the loss was scaled by {scale:g}; the weights were not updated. "
                "Set trainer.precision=bf16-mixed or trainer.precision=32-true, or a lower training.lr."
            )
        broken = torch.cat([one.positions[~one.losses.isfinite()] for one in passes]).cpu()
        if len(broken):
            data = getattr(self.trainer, "datamodule", None)
            names = broken.tolist() if data is None else data.image_ids(broken)  # the stream's positions, or ids
            where = f"It is that of the images {', '.join(map(str, names[:8]))}{', …' if len(names) > 8 else ''}"
        else:
            where = "It is that of images on another device"
        raise UserError(
            f"the loss is not finite at {step * self.settings.batch_size:,} images seen (step {step}); the weights "
            f"were not updated. {where}. Set a lower training.lr, or trainer.precision=32-true."
        )

    def on_train_end(self) -> None:
        self.stop_if_not_finite()
