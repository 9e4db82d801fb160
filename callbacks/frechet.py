"""The Fréchet distance of generated images to the data set, while the model trains."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from callbacks.sample_grid import Generate
from callbacks.schedule import EveryKimg, WhenDue
from callbacks.stop_request import Stopped
from callbacks.stopping import stop_requested
from lightning_modules.diffusion.sampler import draw_labels
from lightning_modules.edm_module import EDMModule
from metrics.frechet import FeatureStatistics, Statistics, frechet_distance
from storage.errors import UserError
from storage.fingerprints import fingerprint


class FrechetDistance(WhenDue):
    """Every `every_kimg`, generates images with the EMA weights and logs their distance under its true name.

    Image i of the evaluation comes from seed i with a label drawn from the clusters' frequencies, always the same;
    rank r of W makes seeds r, r+W, …; the sums of their features meet in one all-reduce, which every rank joins.

    Args:
        name: `fid` (Inception), `fdd` (DINOv2 ViT-L/14) or `fd_<backbone>`.
        extract: uint8 images [B, C, H, W] → features [B, D], on the module's device.
        identity: what the backbone behind it says of itself.
        reference: statistics of the data set's features by the same extractor.
        sampling: how `generate` makes its images, for the protocol.
    """

    def __init__(
        self,
        name: str,
        extract: Callable[[Tensor], Tensor],
        identity: dict[str, Any],
        reference: Statistics,
        generate: Generate,
        every_kimg: float,
        num_images: int,
        batch_size: int = 128,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(EveryKimg(every_kimg))
        self.name, self.extract, self.identity, self.reference, self.generate = (
            name,
            extract,
            identity,
            reference,
            generate,
        )
        self.num_images, self.batch_size = num_images, batch_size
        self.sampling = dict(sampling or {})
        self.history: list[tuple[float, float]] = []  # (kimg, distance)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the ranks hold different extractors, as when one could not read the weights: sums would hang.

        Raises:
            UserError: on the ranks that differ from rank 0, which ends the others too.
        """
        own = fingerprint(self.identity)
        if trainer.strategy.broadcast(own) != own:
            raise UserError(
                f"rank {trainer.global_rank} measures {self.name}, but rank 0 has another feature extractor. "
                "Place the extractor's weights where every rank can read them, or set evaluation.backbone=pixels."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.measure_if_missing(trainer, pl_module)

    def measure_if_missing(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure now what a stop cut short: the snapshot is of a step whose distance is due and not known.

        Raises:
            Stopped: the run is asked to stop meanwhile.
        """
        due = pl_module.nimg and self.every.is_due(trainer, pl_module, trainer.accumulate_grad_batches - 1)
        known = bool(self.history) and self.history[-1][0] == pl_module.nimg / 1000
        if due and not known and self.act(trainer, pl_module) is None:
            raise Stopped

    @property
    def protocol(self) -> dict[str, Any]:
        """What a reported distance has to say: extractor, numbers of images, whose weights."""
        return {
            "extractor": self.identity,
            "num_generated": self.num_images,
            "num_reference": self.reference.n,
            "weights": "EMA",
            "seeds": f"0 to {self.num_images - 1}",
            "resized": "no",
            **self.sampling,
        }

    @torch.no_grad()
    def act(self, trainer: Trainer, pl_module: EDMModule) -> float | None:
        """Generate, measure and log; the same value on every rank. None where the run is asked to stop meanwhile."""
        denoiser = pl_module.averaged_denoiser
        frequencies = denoiser.cluster_frequencies
        generated = FeatureStatistics(len(self.reference.mean), pl_module.device)
        seeds = torch.arange(trainer.global_rank, self.num_images, trainer.world_size)
        largest_share = -(-self.num_images // trainer.world_size)
        starts = range(0, largest_share, self.batch_size)
        bar = {"unit": "img", "unit_scale": self.batch_size, "leave": False, "disable": not trainer.is_global_zero}
        for start in tqdm(starts, self.name, **bar):
            if stop_requested(trainer):  # joined by every rank, also by one whose share ended a batch before
                return None
            part = seeds[start : start + self.batch_size]
            if len(part):
                labels = None if frequencies is None else draw_labels(part, frequencies)
                generated.update(self.extract(self.generate(denoiser, part, labels)))
        distance = frechet_distance(generated.compute(), self.reference)  # compute() sums over the ranks
        kimg = pl_module.nimg / 1000
        self.history.append((kimg, distance))
        for logger in trainer.loggers:
            logger.log_metrics({self.name: distance}, step=round(kimg))
        trainer.print(f"{kimg:,.0f} kimg: {self.name} {distance:.3f} ({self.num_images:,} images)")
        return distance

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "name": self.name, "extractor": fingerprint(self.identity)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the distances of a snapshot.

        Raises:
            UserError: they are of another feature extractor, as when its weights have come since.
        """
        if (state_dict["name"], state_dict["extractor"]) != (self.name, fingerprint(self.identity)):
            raise UserError(
                f"up to this snapshot the run measured {state_dict['name']} with other weights or another extractor "
                f"than the {self.name} of now; one curve can't hold both. Place the weights as they were, or set "
                "evaluation.backbone= for what was measured, or overwrite=true to start afresh."
            )
        self.history = [(float(kimg), float(distance)) for kimg, distance in state_dict["history"]]
