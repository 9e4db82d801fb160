"""The denoising loss on images held out, by noise level, beside that on training images, while the model trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor

from callbacks.along_training import AlongTraining
from callbacks.stopping import stop_requested
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.denoising_error import denoising_errors, noise_levels, shares_of_training
from lightning_modules.edm_module import EDMModule
from metrics.collected_features import CollectedFeatures
from metrics.denoising_errors import DenoisingErrors, Estimate


@dataclass(frozen=True)
class Sample:
    """Images that a model is measured on again and again.

    Attributes:
        images: uint8 images [B, C, H, W] by their rows [B].
        rows, places: int64 [n], of each image: for `images`, and a number of its own, which its noise depends on.
        labels: index of the label that the model knows each by, int64 [n]; None without condition.
    """

    images: Callable[[Tensor], Tensor]
    rows: Tensor
    places: Tensor
    labels: Tensor | None


class Look(NamedTuple):
    """EDM's loss of a model at one time: on images held out, on training images, and by how much the first is larger.

    `by_level` holds both losses at each noise level.
    """

    held_out: float
    training: float
    gap: Estimate
    by_level: list[tuple[float, float, float]]  # (σ, held out, training)

    @property
    def suggests_memorisation(self) -> bool:
        """Whether training images are denoised better than images of the same kind that were not trained on."""
        return self.gap.is_above_zero

    def __str__(self) -> str:
        share, error = (100 * part / self.training for part in self.gap)
        told = ": this suggests memorisation" if self.suggests_memorisation else ""
        return f"held-out loss {self.held_out:.4g}, {share:+.1f} ± {error:.1f} % over training images{told}"


class HeldOutLoss(AlongTraining):
    """Every `every_kimg`, the loss of the EMA weights on both samples: the same images and noise each time.

    Training images are seen here without augmentation and dropout, as those held out are, so that the gap between the
    two losses is what the model knows of its training images alone.

    Args:
        held_out, training: the two samples.
        path: the file for the newest errors of every image, a `DenoisingErrors`.
        meta: what that file is to say of the images.
    """

    def __init__(
        self,
        held_out: Sample,
        training: Sample,
        every_kimg: float,
        batch_size: int,
        path: Path,
        meta: Mapping[str, Any],
    ) -> None:
        super().__init__(every_kimg)
        self.held_out, self.training = held_out, training
        self.batch_size, self.path, self.meta = batch_size, path, meta
        self.sigmas, self.widths = noise_levels()

    def evaluate(self, trainer: Trainer, pl_module: EDMModule) -> Look | None:
        errors = [self.errors(trainer, pl_module, sample) for sample in (self.held_out, self.training)]
        if errors[0] is None or errors[1] is None:
            return None
        places = self.held_out.places, self.training.places
        meta = {**self.meta, "nimg": pl_module.nimg}
        found = DenoisingErrors(self.sigmas, self.widths, errors[0], errors[1], *places, meta)
        look = self.look(found, pl_module)
        kimg = pl_module.nimg / 1000
        self.history.append((kimg, look))
        if trainer.is_global_zero:
            found.save(self.path)
        values = {"loss": look.held_out, "loss_on_training_images": look.training, "gap": look.gap.value}
        scalars = {f"held_out/{name}": value for name, value in values.items()}
        scalars |= {f"held_out_by_noise_level/{sigma:.4f}": value for sigma, value, _ in look.by_level}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
        trainer.print(f"{kimg:,.0f} kimg: {look}")
        return look

    def look(self, found: DenoisingErrors, pl_module: EDMModule) -> Look:
        """The losses that these errors are, weighted as in training."""
        objective = pl_module.objective
        weights = objective.weight(self.sigmas)  # [L]
        levels = (weights * found.held_out.double().mean(dim=0), weights * found.training.double().mean(dim=0))
        held_out, training = found.losses(weights * shares_of_training(objective, self.sigmas))
        by_level = list(zip(self.sigmas.tolist(), *(level.tolist() for level in levels), strict=True))
        return Look(held_out.value, training.value, held_out - training, by_level)

    @property
    def summary(self) -> dict[str, Any]:
        """What the run's summary says: all looks, and the last one by noise level."""
        last: Look = self.history[-1][1]
        return {
            "num_images": len(self.held_out.rows),
            "num_training_images": len(self.training.rows),
            "kimg_and_losses": [(kimg, look.held_out, look.training, *look.gap) for kimg, look in self.history],
            "sigma_and_losses": last.by_level,
            "suggests_memorisation": last.suggests_memorisation,
        }

    def errors(self, trainer: Trainer, pl_module: EDMModule, sample: Sample) -> Tensor | None:
        """Errors [n, L] of all processes, each of which takes a part; None where the run is asked to stop meanwhile."""
        denoiser, device = pl_module.averaged_denoiser, pl_module.device
        collected = CollectedFeatures(len(self.sigmas)).to(device)
        shares = torch.arange(len(sample.rows)).tensor_split(trainer.world_size)
        own = shares[trainer.global_rank].split(self.batch_size)
        for number in range(-(-len(shares[0]) // self.batch_size)):  # the first share is the largest
            if stop_requested(trainer):  # joined by every rank, also by one whose share ended a batch before
                return None
            if number < len(own) and len(own[number]):
                collected.update(self.errors_of(denoiser, sample, own[number], device))
        return collected.compute().cpu()  # of all ranks

    def errors_of(self, denoiser: Denoiser, sample: Sample, part: Tensor, device: torch.device) -> Tensor:
        """Errors [B, L] of the images `part` [B] of a sample."""
        images = denoiser.encoder.encode(sample.images(sample.rows[part]).to(device))
        labels = None
        if sample.labels is not None:
            labels = F.one_hot(sample.labels[part].to(device), denoiser.label_dim).to(images)
        return denoising_errors(denoiser, images, labels, sample.places[part].to(device), self.sigmas)

    def state_dict(self) -> dict[str, Any]:
        looks = [(kimg, (look.held_out, look.training, tuple(look.gap), look.by_level)) for kimg, look in self.history]
        return {"history": looks}  # a snapshot holds plain tuples alone

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [
            (float(kimg), Look(held, training, Estimate(*gap), by_level))
            for kimg, (held, training, gap, by_level) in state_dict["history"]
        ]
