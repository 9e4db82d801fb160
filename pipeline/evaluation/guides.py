"""What guides a denoiser while it samples, as `sampler.guide` names it."""

import math
from pathlib import Path

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.guidance import Autoguidance, ClassifierFreeGuidance, SlidingWindows
from lightning_modules.diffusion.sampler import DenoiserFunction
from lightning_modules.diffusion.sampler_settings import AUTO, SamplerSettings
from pipeline.running.run_files import GUIDE, file_of_run
from storage.errors import UserError


def guided(denoiser: Denoiser, settings: SamplerSettings, guide: Denoiser | None) -> DenoiserFunction:
    """The denoiser under the guidance of the settings; `guide` is the model of `settings.guide_file`, if any."""
    if settings.guidance == 1:
        return denoiser
    low, high = settings.guidance_interval or (0.0, math.inf)
    if settings.guide == "label":
        return ClassifierFreeGuidance(denoiser, settings.guidance, (low, high))
    if settings.guide == "sliding_window":
        size = settings.window_size(denoiser.img_resolution, downsampling(denoiser))
        return Autoguidance(denoiser, SlidingWindows(denoiser, size), settings.guidance, (low, high))
    assert guide is not None
    return Autoguidance(denoiser, guide, settings.guidance, (low, high))


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
