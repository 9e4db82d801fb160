"""The Fréchet distance of generated images to the data set, while the model trains."""

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from callbacks.along_training import AlongTraining
from callbacks.sample_grid import Generate
from callbacks.snapshots import DenoiserFile
from callbacks.stopping import stop_requested
from lightning_modules.diffusion.label_draws import draw_labels
from lightning_modules.edm_module import EDMModule
from metrics import frechet
from storage.errors import UserError
from storage.fingerprints import fingerprint


class FeatureExtractor(Protocol):
    """A backbone, as this callback needs it."""

    identity: dict[str, Any]

    def extract(self, images: Tensor) -> Tensor:
        """Features [B, D] of uint8 images [B, C, H, W]."""

    def to(self, device: torch.device) -> Any:
        """Move the weights."""


class FrechetDistance(AlongTraining):
    """Every `every_kimg`, generates images with the EMA weights and logs their distance under its true name.

    Image i of the evaluation comes from seed i with a label drawn from the clusters' frequencies, always the same;
    rank r of W makes seeds r, r+W, …; the sums of their features meet in one all-reduce, which every rank joins.

    Args:
        name: `fid` (Inception), `fdd` (DINOv2 ViT-L/14) or `fd_<backbone>`.
        extractor: a backbone: `extract(uint8 images [B, C, H, W]) -> [B, D]`.
        reference: statistics of the data set's features by the same extractor.
        sampling: how `generate` makes its images, for the protocol.
        draw: how their labels are drawn, one of `label_draws.LABEL_DRAWS`.
        best: writes the model whenever its distance is the least so far.
    """

    def __init__(
        self,
        name: str,
        extractor: FeatureExtractor,
        reference: frechet.Statistics,
        generate: Generate,
        every_kimg: float,
        num_images: int,
        batch_size: int = 128,
        sampling: Mapping[str, Any] | None = None,
        draw: str = "low_discrepancy",
        best: DenoiserFile | None = None,
    ) -> None:
        self.name, self.extractor, self.reference, self.generate = name, extractor, reference, generate
        super().__init__(every_kimg)
        self.num_images, self.batch_size = num_images, batch_size
        self.sampling, self.draw, self.best = dict(sampling or {}), draw, best

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the ranks hold different extractors, as when one could not read the weights: sums would hang.

        Raises:
            UserError: on the ranks that differ from rank 0, which ends the others too.
        """
        own = fingerprint(self.extractor.identity)
        if trainer.strategy.broadcast(own) != own:
            raise UserError(
                f"rank {trainer.global_rank} measures {self.name}, but rank 0 has another feature extractor. "
                "Place the extractor's weights where every rank can read them, or set evaluation.backbone=pixels."
            )

    @property
    def protocol(self) -> dict[str, Any]:
        """What a reported distance has to say: extractor, numbers of images, whose weights."""
        return {
            "extractor": self.extractor.identity,
            "num_generated": self.num_images,
            "num_reference": self.reference.n,
            "weights": "EMA",
            "seeds": f"0 to {self.num_images - 1}",
            "resized": "no",
            **self.sampling,
        }

    @property
    def best_so_far(self) -> tuple[float, float]:
        """Thousand images seen and distance where that was least, the first time."""
        return min(self.history, key=lambda point: point[1])

    @torch.no_grad()
    def evaluate(self, trainer: Trainer, pl_module: EDMModule) -> float | None:
        """Generate, measure and log; the same value on every rank. None where the run is asked to stop meanwhile."""
        denoiser, device = pl_module.averaged_denoiser, pl_module.device
        self.extractor.to(device)
        metric = frechet.FrechetDistance(self.reference).to(device)
        seeds = torch.arange(trainer.global_rank, self.num_images, trainer.world_size)
        bar = tqdm(
            total=len(seeds),
            desc=self.name,
            unit="img",
            leave=False,
            disable=not trainer.is_global_zero or not sys.stderr.isatty(),  # in a file, a bar in a bar is noise
            dynamic_ncols=True,
        )
        largest_share = -(-self.num_images // trainer.world_size)
        for start in range(0, largest_share, self.batch_size):
            if stop_requested(trainer):  # joined by every rank, also by one whose share ended a batch before
                return None
            part = seeds[start : start + self.batch_size]
            if not len(part):
                continue
            images = self.generate(denoiser, part, self.labels(part, denoiser.cluster_frequencies))
            metric.update(self.extractor.extract(images))
            bar.update(len(part))
        bar.close()
        distance = float(metric.compute())  # compute() sums over the ranks
        kimg = pl_module.nimg / 1000
        self.history.append((kimg, distance))
        if self.best is not None and trainer.is_global_zero and self.best_so_far == (kimg, distance):
            self.best.write(pl_module, **{self.name: distance})
        for logger in trainer.loggers:
            logger.log_metrics({self.name: distance}, step=trainer.global_step)
        trainer.print(f"{kimg:,.0f} kimg: {self.name} {distance:.3f} ({self.num_images:,} images)")
        return distance

    def labels(self, seeds: Tensor, frequencies: Tensor | None) -> Tensor | None:
        """Label indices [B] drawn from the clusters' frequencies; None for an unconditional model."""
        return None if frequencies is None else draw_labels(seeds, frequencies, self.draw)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "name": self.name, "extractor": fingerprint(self.extractor.identity)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the distances of a snapshot.

        Raises:
            UserError: they are of another feature extractor, as when its weights have come since.
        """
        before = state_dict.get("name", self.name), state_dict.get("extractor", fingerprint(self.extractor.identity))
        if before != (self.name, fingerprint(self.extractor.identity)):
            raise UserError(
                f"up to this snapshot the run measured {before[0]} with other weights or another extractor than the "
                f"{self.name} of now; one curve can't hold both. Place the weights as they were, or set "
                "evaluation.backbone= for what was measured, or overwrite=true to start afresh."
            )
        self.history = [(float(kimg), float(distance)) for kimg, distance in state_dict["history"]]
