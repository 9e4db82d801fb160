"""What guides a denoiser while it samples, as `sampler.guide` names it."""

import math
from pathlib import Path

from torch import Tensor, nn

from datamodules.backbones.backbone_base import Backbone
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    SlidingWindows,
)
from lightning_modules.diffusion.sampler import DenoiserFunction
from lightning_modules.diffusion.sampler_settings import AUTO, HEAD, SamplerSettings
from pipeline.evaluation.rejection import judge_of
from pipeline.running.run_files import GUIDE, file_of_run, head_file
from pipeline.settings.schemas import AverageCommandSettings, EvaluateCommandSettings, GenerateCommandSettings
from storage.errors import UserError
from storage.standardised import standardised

ModelCommandSettings = GenerateCommandSettings | EvaluateCommandSettings | AverageCommandSettings


def guided(denoiser: Denoiser, settings: SamplerSettings, guide: nn.Module | None) -> DenoiserFunction:
    """The denoiser under the guidance of the settings; `guide` is what `guide_of` returned."""
    if settings.guidance == 1:
        return denoiser
    low, high = settings.guidance_interval or (0.0, math.inf)
    if settings.guide == "label":
        return ClassifierFreeGuidance(denoiser, settings.guidance, (low, high))
    if settings.guide == "sliding_window":
        size = settings.window_size(denoiser.img_resolution, downsampling(denoiser))
        return Autoguidance(denoiser, SlidingWindows(denoiser, size), settings.guidance, (low, high))
    assert guide is not None
    kind = ClassifierGuidance if settings.guide == HEAD else Autoguidance
    return kind(denoiser, guide, settings.guidance, (low, high))


def guide_of(settings: ModelCommandSettings, denoiser: Denoiser, ckpt: Path) -> tuple[nn.Module, Path] | None:
    """What guides the model of the file `ckpt` beside the model itself, and its file; None where nothing does.

    Raises:
        UserError: there is no such guide, or it does not fit the model.
    """
    if settings.sampler.guided_by_head:
        if settings.head is None:
            raise UserError("sampler.guide=head: set head=FOLDER, that of the clustering, or its head.safetensors.")
        if not denoiser.label_dim or denoiser.cluster_ids is None:
            raise UserError(f"sampler.guide=head: {ckpt} was trained without clusters. Set another sampler.guide.")
        path = head_file(settings.head)
        head, backbone = judge_of(path, denoiser, settings.backbone, settings.cache_dir)
        return HeadLikelihood(head, backbone, denoiser.cluster_ids), path
    file = guide_path(settings.sampler, ckpt)
    return None if file is None else (load_guide(file, denoiser), file)


class HeadLikelihood(nn.Module):
    """How likely an image is of the cluster that was asked for, as a clustering head sees it.

    Args:
        head: the head.
        backbone: the one that it reads.
        cluster_ids: the cluster that each label of the model stands for, int64 [label_dim].
    """

    def __init__(self, head: ClusteringHead, backbone: Backbone, cluster_ids: Tensor) -> None:
        super().__init__()
        self.head, self.backbone, self.temperature = head.head, backbone, head.temperature
        for name, value in (("mean", head.mean), ("std", head.std), ("cluster_ids", cluster_ids)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        """log p(cluster | image), [B], of images [B, C, H, W] in [-1, 1] and one-hot labels [B, label_dim]."""
        embeddings = self.backbone.differentiable(127.5 * images.float() + 127.5)
        mean, std, cluster_ids = (self.get_buffer(name) for name in ("mean", "std", "cluster_ids"))
        logits = self.head(standardised(embeddings, mean, std))[0].float() / self.temperature  # [B, C]
        return logits.log_softmax(dim=1).gather(1, cluster_ids[class_labels.argmax(dim=1)][:, None])[:, 0]


def downsampling(denoiser: Denoiser) -> int:
    """By how much the network shrinks images between its first and its last level."""
    return 2 ** (len(denoiser.settings.channel_mult) - 1)


def guide_path(settings: SamplerSettings, ckpt: Path) -> Path | None:
    """The file of the guide of the model in the file `ckpt`; None where no file is needed.

    Raises:
        UserError: there is none.
    """
    if settings.guide_file is None:
        return None
    if settings.guide_file != AUTO:
        return file_of_run("sampler.guide", settings.guide_file, GUIDE)
    path = ckpt.with_name(GUIDE)
    if not path.is_file():
        raise UserError(
            f"sampler.guide=auto: there is no {path}. A training keeps it with training.keep_guide=true. Set "
            "sampler.guide=FILE for another denoiser, or sampler.guide=sliding_window, which needs none."
        )
    return path


def load_guide(path: Path, denoiser: Denoiser) -> Denoiser:
    """The guide of a denoiser.

    Raises:
        UserError: it is of other images or of other clusters.
    """
    guide = Denoiser.from_pretrained(path)
    shapes = [(own.img_channels, own.img_resolution) for own in (guide, denoiser)]
    if shapes[0] != shapes[1]:
        sizes = [f"{channels} channels and {size}×{size} pixels" for channels, size in shapes]
        raise UserError(f"sampler.guide={path} makes images of {sizes[0]}, the model of {sizes[1]}. Set another guide.")
    clusters = [None if own.cluster_ids is None else own.cluster_ids.tolist() for own in (guide, denoiser)]
    told = {own.meta.get("pseudo_labels") for own in (guide, denoiser)} - {None}  # equal ids may be of other clusters
    if guide.label_dim and (guide.label_dim != denoiser.label_dim or clusters[0] != clusters[1] or len(told) > 1):
        raise UserError(
            f"sampler.guide={path} was trained on other clusters than the model. Set a guide that was trained on the "
            "same pseudo-labels, or with conditioning=none."
        )
    return guide
