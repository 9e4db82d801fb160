"""The denoiser D(x; σ): a network with its preconditioning and its encoder, and its file."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.encoders import Encoder, PixelEncoder
from lightning_modules.diffusion.network_settings import DENOISER_FILE, NetworkSettings
from lightning_modules.diffusion.networks import ARCHITECTURES
from lightning_modules.diffusion.objective import EDMObjective, objective_class
from storage.additions import NETWORKS, load_addition
from storage.artifacts import read_artifact, write_artifact
from storage.errors import UserError
from storage.hub import OnTheHub

INTERFACE = ("img_resolution", "img_channels", "label_dim", "augment_dim")
CLUSTERS = ("cluster_frequencies", "cluster_ids")
CLUSTER_NAMES = "cluster_names"  # key of `meta`


class Denoiser(nn.Module, OnTheHub):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise, labels): the expected clean image of a noisy one.

    Args:
        settings: The network's settings; it is freshly initialised.
        img_resolution: Height and width of the images, pixels.
        img_channels: Colour channels.
        label_dim: Number of class labels (clusters); 0: unconditional.
        augment_dim: Number of augmentation labels; 0: none.
        objective: Its preconditioning is applied here.
        encoder: Turns images into what the network denoises; None: a `PixelEncoder`.

    Attributes:
        model: The network F(x, c_noise, class_labels, augment_labels).
        cluster_frequencies: Share of each label among the training images, float64 `[label_dim]`, or None.
        cluster_ids: The cluster that each label stands for, int64 `[label_dim]`, or None.
        meta: What else is known about these weights (JSON).

    Raises:
        ValueError: The network does not fit the images.

    Examples:
        >>> network = NetworkSettings(model_channels=8, channel_mult=[1], num_blocks=1)
        >>> denoiser = Denoiser(network, img_resolution=8, img_channels=1, label_dim=3).eval()
        >>> denoised = denoiser(torch.ones(2, 1, 8, 8), sigma=0.5, class_labels=torch.eye(3)[[0, 2]])
        >>> denoised.shape, round(denoised.mean().item(), 3)  # F starts near 0, so this is c_skip = 1/2
        (torch.Size([2, 1, 8, 8]), 0.5)
    """

    FILE = DENOISER_FILE

    def __init__(
        self,
        settings: NetworkSettings,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        objective: EDMObjective = EDMObjective(),
        encoder: Encoder | None = None,
    ) -> None:
        super().__init__()
        network = ARCHITECTURES.get(settings.architecture) or load_addition(NETWORKS, settings.architecture, nn.Module)
        self.model = network(settings, img_resolution, img_channels, label_dim, augment_dim)
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim, self.augment_dim = label_dim, augment_dim
        self.settings, self.objective = settings, objective
        self.encoder: Encoder = encoder or PixelEncoder()
        self.cluster_frequencies: Tensor | None = None
        self.cluster_ids: Tensor | None = None
        self.meta: dict[str, Any] = {}
        self.filled_to: int | None = None

    def compile(self, *args: Any, filled_to: int | None = None, **kwargs: Any) -> None:
        """Compiles in place; names of weights stay.

        Args:
            args, kwargs: Of `torch.compile`.
            filled_to: Batches are filled up to multiples of it, as the last one of many may be smaller, and another
                size would be compiled anew.
        """
        super().compile(*args, **kwargs)
        self.filled_to = filled_to

    def __call__(self, x: Tensor, *others: Tensor | float | None, **named: Tensor | None) -> Tensor:
        """Runs `forward`, on a batch that is filled up where `compile` was told so."""
        missing = -len(x) % self.filled_to if self.filled_to else 0
        if not missing:
            return super().__call__(x, *others, **named)

        def filled(rows: Any) -> Any:
            has_rows = isinstance(rows, Tensor) and rows.ndim
            return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if has_rows else rows

        return super().__call__(filled(x), *map(filled, others), **{key: filled(of) for key, of in named.items()})[
            : len(x)
        ]

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The denoised images D(x; σ), float32 `[B, C, H, W]`.

        Args:
            x: Noisy images `[B, C, H, W]`.
            sigma: Standard deviation of their noise, scalar or `[B]`.
            class_labels: One-hot labels `[B, label_dim]`; zeros or None: no label.
            augment_labels: What `augment` did to the images, `[B, augment_dim]`; None: nothing.
        """
        x = x.to(torch.float32)
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
        sigma = sigma.expand(x.shape[0])  # [B]; not len(x), which `torch.export` takes for a constant
        class_labels = self._label_vectors("class_labels", class_labels, self.label_dim, x)
        augment_labels = self._label_vectors("augment_labels", augment_labels, self.augment_dim, x)
        return self.objective.denoise(self.model, x, sigma, class_labels, augment_labels)

    def _label_vectors(self, name: str, labels: Tensor | None, dim: int, x: Tensor) -> Tensor | None:
        """Labels as float32 `[B, dim]`, zeros where there are none; None for a network without such labels."""
        if labels is None:
            return x.new_zeros(x.shape[0], dim) if dim else None
        if labels.ndim != 2 or labels.shape[1] != dim:
            raise ValueError(f"{name} have the shape {[*labels.shape]}; this denoiser expects [{len(x)}, {dim}]")
        return labels.to(torch.float32) if dim else None

    @property
    def description(self) -> dict[str, Any]:
        """All but the tensors, as JSON can hold it."""
        return {
            "network": asdict(self.settings),
            **{name: getattr(self, name) for name in INTERFACE},
            "sigma_data": self.objective.sigma_data,
            "meta": self.meta,
        }

    @property
    def clusters(self) -> dict[str, Tensor]:
        """`cluster_frequencies` and `cluster_ids`, those that there are."""
        found = {name: getattr(self, name) for name in CLUSTERS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def cluster_names(self) -> dict[int, str]:
        """Cluster → what people call it, of those that have a name; kept in `meta`."""
        names = self.meta.get(CLUSTER_NAMES)
        known = names.items() if isinstance(names, dict) else ()
        return {int(cluster): str(name) for cluster, name in known if str(cluster).isdecimal()}

    @classmethod
    def described(cls, description: Mapping[str, Any], clusters: Mapping[str, Tensor]) -> Self:
        """A fresh denoiser with the `description` and the `clusters` of another."""
        objective = objective_class(description["meta"].get("objective", "edm"))
        denoiser = cls(
            NetworkSettings(**description["network"]),
            **{name: description[name] for name in INTERFACE},
            objective=objective(sigma_data=description["sigma_data"]),
        )
        denoiser.cluster_frequencies, denoiser.cluster_ids = map(clusters.get, CLUSTERS)
        denoiser.meta = dict(description["meta"])
        return denoiser

    def save_pretrained(self, path: str | Path, **meta: Any) -> None:
        """Writes the artifact `denoiser.safetensors`: the weights and all that generating images needs.

        Args:
            path: The file, or a folder for `denoiser.safetensors`.
            meta: Adds to (and overrides) what `self.meta` says.
        """
        description = {**self.description, "meta": {**self.meta, **meta}}
        write_artifact(self.file_at(path), "denoiser", {**self.state_dict(), **self.clusters}, description)

    @classmethod
    def _load(cls, path: Path) -> Self:
        """A denoiser in evaluation mode."""
        artifact = read_artifact(path, kind="denoiser")
        tensors = dict(artifact.tensors)
        clusters = {name: tensors.pop(name) for name in CLUSTERS if name in tensors}
        try:
            refuse_promises(artifact.meta["network"], artifact.meta, tensors)
            refuse_clusters(clusters, artifact.meta["label_dim"])
            if not 0 < artifact.meta["sigma_data"] < math.inf:
                raise ValueError(f"sigma_data={artifact.meta['sigma_data']}; a number above 0 is expected")
            denoiser = cls.described(artifact.meta, clusters)
            denoiser.load_state_dict(tensors)
        except Exception as error:  # whatever a made-up description ends in
            problem = str(error).splitlines()[0][:500] if str(error) else type(error).__name__
            raise UserError(f"{path}: the weights do not fit what the file says of its network ({problem}).") from error
        return denoiser.eval()


def refuse_promises(network: Mapping[str, Any], sizes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError for settings of a network that is much larger than its weights, before it is made."""
    values, channels = sum(tensor.numel() for tensor in tensors.values()), network["model_channels"]
    blocks = network["num_blocks"] * len(network["channel_mult"])
    largest = max(sizes["label_dim"], sizes["img_channels"], sizes["augment_dim"], sizes["img_resolution"])
    ours = network["architecture"] in ARCHITECTURES  # of another, the settings may mean anything
    wide = ours and (channels * max(network["channel_mult"])) ** 2 > values
    if wide or (ours and blocks > len(tensors)) or largest > max(values, 4096):
        raise ValueError(f"{values:,} values in {len(tensors):,} tensors are too few for the network described")


def refuse_clusters(clusters: Mapping[str, Tensor], label_dim: int) -> None:
    """Raise a ValueError for frequencies that no labels can be drawn by, and ids that are none."""
    for name, values in clusters.items():
        if values.shape != (label_dim,):
            raise ValueError(f"{name} of shape {[*values.shape]} for {label_dim} clusters")
    ids, frequencies = clusters.get("cluster_ids"), clusters.get("cluster_frequencies")
    if ids is not None and (ids.dtype != torch.int64 or bool((ids < 0).any())):
        raise ValueError(f"cluster_ids {ids.tolist()[:8]} of {ids.dtype}; whole numbers from 0 are expected")
    if frequencies is not None and not (bool((frequencies >= 0).all()) and 0 < float(frequencies.sum()) < math.inf):
        raise ValueError(f"cluster_frequencies {frequencies.tolist()[:8]} are no shares of images")
