"""How many clusters are in use while TEMI trains, how large they are, and what is in them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.gallery import gallery
from callbacks.loggers import log_histogram, log_image
from callbacks.schedule import EveryEpochs
from lightning_modules.temi_module import TEMIModule
from metrics.utilization import ClusterUtilization


class UtilizationRatio(Callback):
    """Assigns the whole data set with the best teacher head every `every_epochs` and at the end.

    Logs `temi/num_used`, `temi/utilization_ratio`, `temi/entropy` and `temi/kl_from_uniform`, the sizes of the
    clusters as a histogram, and a gallery of some clusters, out of rank 0's share.
    Each rank assigns its share; counts meet in one all-reduce, which every rank joins.

    Args:
        batches: (rank, world size) → batches (row indices [B], what the heads read [B, D]) of that rank's share.
        images: row indices [B] → uint8 images [B, C, H, W], for the picture; None: no picture.
    """

    def __init__(
        self,
        batches: Callable[[int, int], Iterable[tuple[Tensor, Tensor]]],
        images: Callable[[Tensor], Tensor] | None,
        every_epochs: int,
    ) -> None:
        self.batches, self.images = batches, images
        self.every = EveryEpochs(every_epochs)
        self.history: list[tuple[float, float]] = []  # (epoch, utilization ratio)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every.is_due(trainer, pl_module, batch_idx):
            assert isinstance(pl_module, TEMIModule)
            self.evaluate(trainer, pl_module)

    @torch.no_grad()
    def evaluate(self, trainer: Trainer, pl_module: TEMIModule) -> None:
        """Assign, count over all ranks, log on rank 0."""
        utilization = ClusterUtilization(pl_module.settings.num_clusters).to(pl_module.device)
        rows, ids, confidences = [], [], []
        for indices, embeddings in self.batches(trainer.global_rank, trainer.world_size):
            cluster_ids, confidence = pl_module.predict(embeddings.to(pl_module.device))
            utilization.update(cluster_ids)
            rows.append(indices.cpu())
            ids.append(cluster_ids.cpu())
            confidences.append(confidence.cpu())
        result = utilization.compute()  # sums over the ranks
        self.history.append((float(pl_module.epoch), float(result["utilization_ratio"])))
        if not trainer.is_global_zero:
            return
        counts = result.pop("counts").cpu()
        for logger in trainer.loggers:
            logger.log_metrics({f"temi/{name}": float(value) for name, value in result.items()}, trainer.global_step)
        log_histogram(trainer, "temi/cluster_sizes", counts.float())
        if self.images is None:
            return
        picture = gallery(self.images, torch.cat(rows), torch.cat(ids), torch.cat(confidences))
        log_image(trainer, "temi/gallery", picture)

    def state_dict(self) -> dict[str, list[tuple[float, float]]]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, list[tuple[float, float]]]) -> None:
        self.history = [(float(epoch), float(ratio)) for epoch, ratio in state_dict["history"]]
