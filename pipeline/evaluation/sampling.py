"""From a denoiser to images: the sampler as a function, and the labels that it is asked for."""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.label_draws import draw_labels
from lightning_modules.diffusion.sampler import churn_noise, latents, sample
from lightning_modules.diffusion.sampler_settings import SamplerSettings
from pipeline.evaluation.generate_settings import SamplingSettings
from pipeline.evaluation.guides import downsampling, guided
from pipeline.running.run_folder import is_first_process
from storage.errors import UserError

NO_LABEL_DROPOUT_TOLD = (
    "does not tell whether the model saw images without their label in training. If it did not, guidance makes its "
    "images worse."
)


@dataclass(frozen=True)
class Sampler:
    """EDM's sampler with its settings: (denoiser, seeds [B], label indices [B] or None) → uint8 [B, C, H, W].

    An image depends on its seed and label alone: latents and churn noise are functions of the seed.

    Examples:
        >>> from lightning_modules.diffusion.network_settings import NetworkSettings
        >>> network = NetworkSettings(model_channels=8, channel_mult=[1], num_blocks=1)
        >>> denoiser = Denoiser(network, img_resolution=8, img_channels=1, label_dim=3).eval()
        >>> sampler = Sampler(SamplerSettings(steps=2, guidance=1.5))
        >>> images = sampler(denoiser, seeds=torch.arange(4), labels=torch.tensor([0, 1, 2, 0]))
        >>> images.shape, images.dtype
        (torch.Size([4, 1, 8, 8]), torch.uint8)
    """

    settings: SamplerSettings
    guide: nn.Module | None = None  # what `guide_of` returned

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings that are set, as JSON can hold them."""
        return {name: value for name, value in self.settings.identity().items() if value is not None}

    @property
    def low_precision(self) -> torch.dtype | None:
        """What convolutions and matrix products compute in; None: float32."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.settings.precision)

    def cast(self, denoiser: Denoiser) -> None:
        """Cast weights once as autocast would at each evaluation, of a denoiser that makes images and nothing else."""
        if self.low_precision is None:
            return
        for layer in denoiser.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                for weight in layer.parameters(recurse=False):
                    weight.data = weight.to(self.low_precision)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, seeds: Tensor, labels: Tensor | None) -> Tensor:
        own = self.settings
        device = next(denoiser.parameters()).device
        seeds = seeds.to(device)
        shape = (denoiser.img_channels, denoiser.img_resolution, denoiser.img_resolution)
        one_hot = None if labels is None else F.one_hot(labels.to(device), denoiser.label_dim).float()  # [B, label_dim]
        with torch.autocast(device.type, dtype=self.low_precision, enabled=self.low_precision is not None):
            images = sample(
                guided(denoiser, own, self.guide),
                latents(seeds, shape),
                one_hot,
                solver=own.solver,
                num_steps=own.num_steps(denoiser.img_resolution),
                sigma_min=own.sigma_min,
                sigma_max=own.sigma_max,
                rho=own.rho,
                S_churn=own.churn,
                S_tmin=own.S_tmin,
                S_tmax=own.S_tmax,
                S_noise=own.S_noise,
                churn_noise=churn_noise(seeds, shape),
            )
        if not images.isfinite().all():
            broken = seeds[~images.isfinite().flatten(1).all(dim=1)].tolist()
            advice = "Its weights are broken." if own.precision == "32-true" else "Set sampler.precision=32-true."
            raise UserError(
                f"the model makes no image of the seeds {', '.join(map(str, broken[:8]))}: values are not finite. "
                + advice
            )
        return denoiser.encoder.decode(images)


def check_guidance(sampler: SamplerSettings, denoiser: Denoiser, path: Path) -> None:
    """Raise a `UserError` for guidance with a model (of the file `path`) that never learned what it needs.

    Warns where the file does not tell, as one that was imported may not.
    """
    if sampler.guidance == 1 and sampler.guide != "label":
        raise UserError(f"sampler.guide={sampler.guide}: guidance=1 is no guidance. Set guidance=1.25, for one.")
    if sampler.guidance != 1 and sampler.guide == "sliding_window":
        sampler.window_size(denoiser.img_resolution, downsampling(denoiser))
    if not sampler.guided_by_label:
        return
    others = "Set guidance=1, or sampler.guide=auto or sliding_window, which need no labels"
    if not denoiser.label_dim:
        raise UserError(f"guidance={sampler.guidance}: {path} was trained without clusters. {others}.")
    label_dropout = denoiser.meta.get("label_dropout")
    if label_dropout == 0:
        raise UserError(
            f"guidance={sampler.guidance}: {path} never saw an image without its label. {others}, or a model that was "
            "trained with training.label_dropout=0.1."
        )
    if label_dropout is None and is_first_process():
        warn_once(f"Warning: guidance={sampler.guidance}: {path} {NO_LABEL_DROPOUT_TOLD}")


@cache
def warn_once(text: str) -> None:
    """A model is opened for each set of images, and its warning is one."""
    print(text, file=sys.stderr)


def labels_of(settings: SamplingSettings, denoiser: Denoiser, path: Path, seeds: Tensor, draw: str) -> Tensor | None:
    """Label index of each seed [B]: from the training frequencies, uniform, or the clusters asked for in turn.

    `draw` is how they are drawn, one of `LABEL_DRAWS`.

    Raises:
        UserError: the model (of the file `path`) does not know these clusters.
    """
    clusters, wanted = settings.clusters, settings.cluster_ids
    if not denoiser.label_dim:
        if clusters != "frequencies":
            raise UserError(f"clusters={clusters}: this model was trained without clusters. Leave clusters= out.")
        return None
    known_frequencies, ids = known_clusters(denoiser, path)
    if wanted is None:
        frequencies = known_frequencies if clusters == "frequencies" else torch.ones(denoiser.label_dim)
        return draw_labels(seeds, frequencies, draw)
    index = {int(cluster): label for label, cluster in enumerate(ids)}
    if not set(wanted) <= index.keys():
        raise UserError(
            f"clusters={clusters}: this model knows {len(index)} clusters, from {min(index)} to {max(index)}. Set "
            f"clusters=frequencies, clusters=uniform, or ids such as clusters=[{','.join(map(str, list(index)[:2]))}]."
        )
    chosen = torch.tensor([index[cluster] for cluster in wanted])
    return chosen[seeds % len(chosen)]  # by its seed, whichever others were asked for


def known_clusters(denoiser: Denoiser, path: Path) -> tuple[Tensor, Tensor]:
    """`cluster_frequencies` and `cluster_ids` of a model with labels (of the file `path`).

    Raises:
        UserError: it does not tell them.
    """
    if denoiser.cluster_frequencies is None or denoiser.cluster_ids is None:
        raise UserError(
            f"{path}: this model has labels, but does not tell which clusters they are. "
            "Set cluster_frequencies and cluster_ids before save_pretrained."
        )
    return denoiser.cluster_frequencies, denoiser.cluster_ids


def describe_labels(clusters: Any, denoiser: Denoiser, draw: str) -> str:
    """The setting `clusters` in words, as it works out for this model."""
    if not denoiser.label_dim:
        return "none"
    known = "imported_from" not in denoiser.meta  # a published file does not tell the classes' frequencies
    drawn = {"frequencies": "from the clusters' frequencies" if known else "uniformly", "uniform": "uniformly"}
    if clusters not in ("frequencies", "uniform"):
        return f"clusters {clusters} in turn"
    return f"drawn {drawn[clusters]}, {'independently' if draw == 'independent' else 'by low discrepancy'}"
