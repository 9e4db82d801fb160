"""What each model of a study gains from its condition, measured on images held out, and what the condition costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_modules.diffusion.denoising_error import LOWEST, SMALL
from metrics.denoising_errors import DenoisingErrors, Estimate
from metrics.description_length import entropy, gains
from pipeline.running.run_files import HELD_OUT
from pipeline.studies.jobs import Plan, Run
from storage.errors import UserError


@dataclass(frozen=True)
class Gain:
    """Nats that are saved at noise levels above `lowest`: on images held out and on training images."""

    lowest: float
    held_out: Estimate
    training: Estimate

    @property
    def is_of_training_images(self) -> bool:
        """Whether more is gained on training images than on others, at 95 %."""
        left = self.training - self.held_out
        return left.value > left.half_width


@dataclass(frozen=True)
class DescriptionLength:
    """Gain of a condition and its price, in nats for each image.

    Attributes:
        price: the entropy of the clusters, which telling an image's costs.
        gains: above the noise level SMALL, and above LOWEST.
        num_images, num_levels: images held out, and noise levels, that the errors were taken at.
    """

    price: float
    gains: tuple[Gain, Gain]
    num_images: int
    num_levels: int

    def length(self, number: int = 0) -> Estimate:
        """What the condition costs more than it saves, by the gain of this number: below 0 it pays."""
        found = self.gains[number].held_out
        return Estimate(self.price - found.value, found.error)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DescriptionLength":
        """What `dataclasses.asdict` and JSON made of it."""
        high, low = (
            Gain(one["lowest"], Estimate(*one["held_out"]), Estimate(*one["training"])) for one in data["gains"]
        )
        return cls(**{**data, "gains": (high, low)})


def description_length_of(plan: Plan, run: Run) -> DescriptionLength | None:
    """That of a run, against the one without condition that was trained alike on the same images.

    None where there is no such run, or where images held out were not measured.
    """
    alike = [one for one in plan.runs if one.condition.method == "none" and one.settings.seed == run.settings.seed]
    if run.condition.method == "none" or not alike:
        return None
    jobs = [plan.job(f"train-{one.name}") for one in (alike[0], run)]
    try:
        without, errors = (DenoisingErrors.load(Path(job.folder) / HELD_OUT) for job in jobs if job is not None)
    except UserError:  # not there, or damaged
        return None
    if any(without.meta[known] != errors.meta[known] for known in ("nimg", "images")):
        return None
    above, all_levels = (Gain(lowest, *gains(without, errors, lowest)) for lowest in (SMALL, LOWEST))
    price = entropy(torch.tensor(errors.meta["frequencies"]))
    return DescriptionLength(price, (above, all_levels), len(errors.held_out), len(errors.sigmas))
