"""Rejection sampling: of more candidates than asked for, those of each cluster that a clustering head is sure of."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.backbones.backbone_base import Backbone
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import backbone_identity, build_backbone
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.evaluation.image_output import ImageOutput
from storage.errors import UserError
from storage.files import atomic_path

TENTHS = 10
GOLDEN_RATIO = 0.6180339887498949  # its multiples, modulo 1, are spread evenly however many there are


@dataclass(frozen=True)
class Judge:
    """A clustering head with the backbone that it reads."""

    head: ClusteringHead
    backbone: Backbone

    def to(self, device: torch.device) -> None:
        """Where images are looked at; the head itself is small and stays on the CPU."""
        self.backbone.to(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Cluster ids, int64 [B], and maximum softmax probabilities, float32 [B], of uint8 images [B, C, H, W]."""
        return self.head.assign(self.backbone.extract(images).cpu())


@dataclass(frozen=True)
class Judgement:
    """What a head says of candidates, all [N].

    Attributes:
        seeds: of the candidates.
        asked: the cluster that each was generated for; −1 for a model without condition.
        assigned: the cluster that the head finds it in.
        confidence: its maximum softmax probability.
        kept: whether it is among the most confident ones.
    """

    seeds: Tensor
    asked: Tensor
    assigned: Tensor
    confidence: Tensor
    kept: Tensor

    def summary(self) -> dict[str, Any]:
        """How sure the head is, and the share in which it finds the cluster that was asked for, of each tenth too."""
        conditional = bool((self.asked >= 0).all())
        agreed = (self.asked == self.assigned).float()
        tenths = torch.argsort(self.confidence, stable=True).tensor_split(min(TENTHS, len(agreed)))

        def agreement(rows: Tensor) -> float | None:
            return float(agreed[rows].mean()) if conditional else None

        return {
            "num_candidates": len(agreed),
            "keep": float(self.kept.float().mean()),
            "lowest_kept_confidence": float(self.confidence[self.kept].min()),
            "agreement": agreement(torch.ones_like(self.kept)),
            "agreement_kept": agreement(self.kept),
            "deciles": [(float(self.confidence[rows].mean()), agreement(rows)) for rows in tenths],
        }

    def save_csv(self, path: Path) -> None:
        """`seed,asked,assigned,confidence,kept`, a line for each candidate."""
        columns = (self.seeds, self.asked, self.assigned, self.confidence, self.kept.int())
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["seed", "asked", "assigned", "confidence", "kept"])
            for seed, asked, assigned, confidence, kept in zip(*(c.tolist() for c in columns), strict=True):
                writer.writerow([seed, asked, assigned, f"{confidence:.6g}", kept])


def judge_of(head_file: Path, denoiser: Denoiser, backbone: BackboneSettings, cache_dir: str) -> Judge:
    """The judge that `head=` names.

    Raises:
        UserError: it is a head of other clusters than the model's, or another backbone's.
    """
    head = ClusteringHead.load(head_file)
    if denoiser.label_dim and denoiser.meta.get("num_clusters") != head.num_clusters:
        raise UserError(
            f"head={head_file} knows {head.num_clusters} clusters, the model {denoiser.meta.get('num_clusters')}. "
            "Choose the head of the clustering that the model was trained on."
        )
    size = (denoiser.img_resolution, denoiser.img_channels, cache_dir)
    identity = backbone_identity(backbone, *size)
    if head.backbone_identity != identity:
        raise UserError(
            f"head={head_file} reads embeddings of another backbone ({head.backbone_identity}) than "
            f"backbone={backbone.name} ({identity}). Choose the backbone= of its training."
        )
    return Judge(head, build_backbone(backbone, *size))


def keep_confident(
    folder: Path, judge: Judge, candidates: ImageOutput, keep: float, batch_size: int
) -> tuple[Tensor, ImageOutput, dict[str, Any]]:
    """Judge the candidates, of which `confidence.csv` tells, and write the kept ones into the run folder.

    Returns:
        The rows of the kept ones, their output, and what the summary says.
    """
    candidates.finish()
    images = candidates.first(len(candidates.seeds))  # [N, C, H, W]
    judgement = most_confident(judge, images, candidates, keep, batch_size)
    judgement.save_csv(folder / "confidence.csv")
    rows = judgement.kept.nonzero().flatten()
    clusters = None if candidates.cluster_ids is None else [candidates.cluster_ids[row] for row in rows.tolist()]
    output = ImageOutput(folder, candidates.format, candidates.seeds[rows], clusters)
    for place, row in enumerate(rows.tolist()):
        if not output.is_there(place):
            output.write(place, images[row])
    return rows, output, {"confidence": judgement.summary()}


def most_confident(judge: Judge, images: Tensor, candidates: ImageOutput, keep: float, batch_size: int) -> Judgement:
    """Judge images [N, C, H, W]; the `keep` most confident share of each cluster that was asked for stays."""
    cluster_ids, confidences = [], []
    with tqdm(total=len(images), unit="img", desc="confidence", dynamic_ncols=True) as bar:
        for part in images.split(batch_size):
            cluster_id, confidence = judge(part)
            cluster_ids.append(cluster_id)
            confidences.append(confidence)
            bar.update(len(part))
    confidence = torch.cat(confidences)
    asked = torch.full_like(candidates.seeds, -1)
    if candidates.cluster_ids is not None:
        asked = torch.tensor(candidates.cluster_ids)
    kept = torch.zeros(len(images), dtype=torch.bool)
    kept[by_confidence(confidence, asked)[: max(1, round(keep * len(images)))]] = True
    return Judgement(candidates.seeds, asked, torch.cat(cluster_ids), confidence, kept)


def by_confidence(confidence: Tensor, asked: Tensor) -> Tensor:
    """Rows [N] ordered by the share of their own cluster that is more confident.

    So the first rows hold the clusters in the proportions that were asked for, as nearly as whole images can. Taken
    over all images instead, the most confident ones are those of the few clusters that are easy to tell.
    """
    share = torch.empty(len(confidence), dtype=torch.float64)
    for position, cluster in enumerate(asked.unique(), start=1):
        rows = torch.nonzero(asked == cluster).flatten()
        ordered = rows[torch.argsort(confidence[rows], descending=True, stable=True)]
        # Where in its step a cluster's turn comes is spread evenly, or all small clusters would have to wait.
        turn = position * GOLDEN_RATIO % 1
        share[ordered] = (torch.arange(len(rows), dtype=torch.float64) + turn) / len(rows)
    return torch.argsort(share, stable=True)
