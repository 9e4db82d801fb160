"""Rejection sampling: of more candidates than asked for, those of each cluster that a clustering head is sure of."""

import shutil
from dataclasses import replace
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
from pipeline.pictures.table import write_csv
from storage.errors import UserError
from storage.files import atomic_path

TENTHS = 10
GOLDEN_RATIO = 0.6180339887498949  # its multiples, modulo 1, are spread evenly however many there are


def judge_of(
    head_file: Path, denoiser: Denoiser, settings: BackboneSettings, cache_dir: str
) -> tuple[ClusteringHead, Backbone]:
    """The head that `head=` names, and the backbone that it reads.

    Raises:
        UserError: it is a head of other clusters than the model's, or another backbone's.
    """
    head = ClusteringHead.from_pretrained(head_file)
    ids = denoiser.cluster_ids
    fewest = denoiser.label_dim if ids is None or not len(ids) else max(denoiser.label_dim, int(ids.max()) + 1)
    known = denoiser.meta.get("num_clusters", fewest)  # a file that was imported tells its labels alone
    if denoiser.label_dim and known != head.num_clusters:
        raise UserError(
            f"head={head_file} knows {head.num_clusters} clusters, the model {known}. "
            "Choose the head of the clustering that the model was trained on."
        )
    size = (denoiser.img_resolution, denoiser.img_channels, cache_dir)
    identity = backbone_identity(settings, *size)
    if head.backbone_identity != identity:
        raise UserError(
            f"head={head_file} reads embeddings of another backbone ({head.backbone_identity}) than "
            f"backbone={settings.name} ({identity}). Choose the backbone= of its training."
        )
    return head, build_backbone(settings, *size)


def keep_confident(
    folder: Path, head: ClusteringHead, backbone: Backbone, candidates: ImageOutput, keep: float, batch_size: int
) -> tuple[ImageOutput, dict[str, Any]]:
    """Judge the candidates, of which `confidence.csv` tells, and copy the kept ones into the run folder.

    Of each cluster that was asked for, the `keep` most confident share stays.

    Returns:
        The output of the kept ones, and what the summary says.
    """
    count, judged = len(candidates.seeds), []
    for rows in tqdm(torch.arange(count).split(batch_size), unit="batch", desc="confidence", dynamic_ncols=True):
        images = torch.stack([candidates.read(row) for row in rows.tolist()])  # [B, C, H, W]
        judged.append(head.assign(backbone.extract(images).cpu()))
    assigned, confidence = (torch.cat(parts) for parts in zip(*judged, strict=True))  # [N] each
    unconditional = candidates.cluster_ids is None
    asked = torch.full_like(assigned, -1) if unconditional else torch.tensor(candidates.cluster_ids)
    kept = torch.zeros(count, dtype=torch.bool)
    kept[by_confidence(confidence, asked)[: max(1, round(keep * count))]] = True
    columns = (candidates.seeds, asked, assigned, confidence, kept.int())
    names = ("seed", "asked", "assigned", "confidence", "kept")
    lines = zip(*(column.tolist() for column in columns), strict=True)
    write_csv(folder / "confidence.csv", [dict(zip(names, line, strict=True)) for line in lines])
    clusters = None if unconditional else asked[kept].tolist()
    output = replace(candidates, folder=folder, seeds=candidates.seeds[kept], cluster_ids=clusters)
    for place, row in enumerate(kept.nonzero().flatten().tolist()):
        if not output.is_there(place):
            with atomic_path(output.images / output.name(place)) as temporary:
                shutil.copyfile(candidates.images / candidates.name(row), temporary)
    return output, {"confidence": summarised(confidence, None if unconditional else asked == assigned, kept)}


def summarised(confidence: Tensor, agreed: Tensor | None, kept: Tensor) -> dict[str, Any]:
    """How sure the head is, and the share in which it finds the cluster that was asked for, of each tenth too.

    Args:
        confidence: maximum softmax probability of each candidate, [N].
        agreed: whether the head finds the cluster that was asked for, [N]; None for a model without condition.
        kept: whether it is among the most confident ones, [N].
    """
    tenths = torch.argsort(confidence, stable=True).tensor_split(min(TENTHS, len(confidence)))

    def agreement(rows: Tensor) -> float | None:
        return None if agreed is None else float(agreed[rows].float().mean())

    return {
        "num_candidates": len(confidence),
        "keep": float(kept.float().mean()),
        "lowest_kept_confidence": float(confidence[kept].min()),
        "agreement": agreement(torch.ones_like(kept)),
        "agreement_kept": agreement(kept),
        "deciles": [(float(confidence[rows].mean()), agreement(rows)) for rows in tenths],
    }


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
