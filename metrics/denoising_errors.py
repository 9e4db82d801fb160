"""Squared errors of a denoiser on images held out and on training images, by noise level, and what they say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor

from storage.artifacts import read_artifact, write_artifact

KIND = "denoising-errors"
SURE = 3  # standard errors


class Estimate(NamedTuple):
    """A mean over images, and its standard error."""

    value: float
    error: float

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of the means over different images."""
        return Estimate(self.value - other.value, math.hypot(self.error, other.error))

    @property
    def half_width(self) -> float:
        """Half of its 95 % interval."""
        return 1.96 * self.error

    @property
    def is_above_zero(self) -> bool:
        """Whether it is, by more than chance is likely to make of 0."""
        return self.value > SURE * self.error


def mean_of(values: Tensor) -> Estimate:
    """The mean of a value for each image, [n].

    Examples:
        >>> import torch
        >>> mean_of(torch.tensor([1.0, 3.0]))
        Estimate(value=2.0, error=1.0)
    """
    error = float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(float(values.double().mean()), error)


@dataclass(frozen=True)
class DenoisingErrors:
    """‖D(y + σn; σ) − y‖² of images y, summed over the pixels, at the noise levels σ.

    Errors of two models on the same images are of the same noise.

    Attributes:
        sigmas, widths: the noise levels, and the width in ln σ that each stands for, float64 [L].
        held_out, training: float32 [H, L] and [T, L], of images held out and of training images.
        held_out_places, training_places: which images they are, int64 [H] and [T], rising.
        meta: what is known of the model and of the images.
    """

    sigmas: Tensor
    widths: Tensor
    held_out: Tensor
    training: Tensor
    held_out_places: Tensor
    training_places: Tensor
    meta: Mapping[str, Any]

    def losses(self, weights: Tensor) -> tuple[Estimate, Estimate]:
        """The mean of Σ weights · error over the images held out, and over the training images; `weights` is [L]."""
        held_out, training = (mean_of(errors.double() @ weights) for errors in (self.held_out, self.training))
        return held_out, training

    def save(self, path: str | Path) -> None:
        """Write the artifact."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        write_artifact(path, KIND, tensors, self.meta)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and verify what `save` wrote."""
        artifact = read_artifact(path, KIND)
        return cls(**artifact.tensors, meta=artifact.meta)
