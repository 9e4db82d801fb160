"""Settings that cannot be meant, caught before anything starts."""

import re
from collections.abc import Iterator
from numbers import Real
from typing import Any

from omegaconf import DictConfig, OmegaConf

from storage.errors import UserError

POSITIVE = (
    "dataset.channels",
    "clustering.num_neighbours",
    "clustering.num_heads",
    "clustering.batch_size",
    "clustering.max_epochs",
    "clustering.lr",
    "clustering.beta",
    "clustering.student_temperature",
    "clustering.teacher_temperature",
    "clustering.hidden_dim",
    "clustering.bottleneck_dim",
    "training.batch_size",
    "training.duration_kimg",
    "training.lr",
    "training.ema_halflife_kimg",
    "sampler.sigma_min",
    "sampler.sigma_max",
    "sampler.rho",
    "evaluation.every_kimg",
    "evaluation.batch_size",
    "evaluation.grid_every_kimg",
    "evaluation.snapshot_every_kimg",
    "evaluation.log_every_kimg",
    "batch_size",
    "keep",
    "study.duration_kimg",
    "study.duration_share",
    "study.final_kimg",
    "study.keep",
)
LARGEST_SEED = 2**62  # a sum with the number of images stays in 64 bits
# (lowest, highest) of settings whose default does not tell, or that end somewhere
WHOLE_NUMBERS = {
    "seed": (0, 2**63 - 1),
    "num_clusters": (1, 10**7),
    "map_images": (0, None),
    "bound.num_seeds": (1, None),
    "clustering.frozen_last_layer_epochs": (0, None),
    "dataset.resolution": (8, None),
    "dataset.max_images": (1, None),
    "sampler.steps": (1, None),
    "steps": (1, None),
    "training.num_workers": (0, None),
    "training.max_batch_per_device": (1, None),
    "evaluation.num_images": (2, None),
    "study.curve_points": (1, None),
    "study.num_images": (2, None),
    "study.sampling_sets": (1, None),
    "sets": (1, None),
    "first_seed": (0, LARGEST_SEED),
    "kid.num_subsets": (1, None),
    "kid.subset_size": (2, None),
    "prdc.k_precision_recall": (1, None),
    "prdc.k_density_coverage": (1, None),
    "prdc.num_images": (2, None),
    "inception_score.num_splits": (1, None),
}
NUMBERS = {
    "network.dropout": (0, 1),
    "training.augment_probability": (0, 1),
    "training.label_dropout": (0, 1),
    "training.lr_rampup_kimg": (0, None),
    "training.ema_rampup_ratio": (0, None),
    "clustering.warmup_epochs": (0, None),
    "clustering.weight_decay": (0, None),
    "clustering.entropy_weight": (0, None),
    "sampler.churn": (0, None),
    "sampler.S_min": (0, None),
    "sampler.S_max": (0, None),
    "sampler.S_noise": (0, None),
    "sampler.guidance": (0, None),
    "churn": (0, None),
    "guidance": (0, None),
    "keep": (0, 1),
    "study.keep": (0, 1),
}
MOMENTA = ("clustering.teacher_momentum", "clustering.probs_momentum")  # at 1, what they smooth would never move
CHOICES = {
    "conditioning": ("clusters", "none"),
    "dataset.on_bad_file": ("stop", "skip"),
    "clustering.objective": ("temi", "wmi", "pmi", "scan"),
    "embedding.precision": ("auto", "32-true", "bf16-mixed"),
    "clustering.precision": ("32-true", "bf16-mixed", "16-mixed"),
    "clustering.neighbour_search": ("exact", "approximate"),
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
    "sampler.solver": ("heun", "euler"),
    "sampler.precision": ("32-true", "bf16-mixed", "16-mixed"),
}
KINDS = {bool: "true or false", int: "a whole number", float: "a number", list: "a list such as [1,2]"}


def check_settings(cfg: DictConfig, defaults: DictConfig) -> None:
    """Compare every setting with its default's type, and those that must be positive with 0.

    Raises:
        UserError: names the first setting that cannot be meant, and what is expected.
    """
    given, standard = dict(leaves(cfg)), dict(leaves(defaults))
    standard |= {key: float(value) for key, value in standard.items() if key.endswith(("_kimg", "_gb")) and value}
    for key, value in given.items():
        expected = standard.get(key)
        if value is None or expected is None or fits(value, expected):
            continue
        raise UserError(f"{key}={value}: {KINDS[type(expected)]} is expected, such as {key}={expected}.")
    for key in POSITIVE:
        value = given.get(key)
        if isinstance(value, int | float) and not value > 0:  # NaN is not
            raise UserError(f"{key}={value}: it must be above 0, such as {key}={standard[key]}.")
    for key, limits in (WHOLE_NUMBERS | NUMBERS).items():
        check_limits(key, given.get(key), limits, whole=key in WHOLE_NUMBERS)
    for key in MOMENTA:
        value = given.get(key)
        if isinstance(value, int | float) and not 0 <= value < 1:
            raise UserError(f"{key}={value}: a number from 0 up and below 1 is expected, such as {standard[key]}.")
    for key, choices in CHOICES.items():
        if key in given and given[key] not in choices:
            raise UserError(f"{key}={given[key]}: type one of {', '.join(f'{key}={choice}' for choice in choices)}.")
    name = given.get("dataset.name", "")  # a name that is no text, {} say, is no setting any more
    if not re.fullmatch(r"[\w.+-]+", str(name)):
        raise UserError(f"dataset.name={name}: it names folders: letters, digits, '.', '_', '+' and '-' will do.")


def check_limits(key: str, value: Any, limits: tuple[float, float | None], whole: bool) -> None:
    """Raise a `UserError` for a number of the wrong kind or outside its limits; null and interpolations pass."""
    if value is None or (isinstance(value, str) and value.startswith("${")):
        return
    low, high = limits
    fitting = isinstance(value, int if whole else Real) and not isinstance(value, bool)
    if not fitting or not value >= low or (high is not None and value > high):  # NaN is not
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{key}={value}: {kind} from {low}{'' if high is None else f' to {high}'} is expected.")


def fits(value: Any, expected: Any) -> bool:
    """Whether a value has its default's type; whole numbers are numbers, and text may be anything (`auto`, 4)."""
    if isinstance(expected, str):
        return True
    if isinstance(expected, bool) or isinstance(value, bool):
        return isinstance(expected, bool) and isinstance(value, bool)
    if isinstance(expected, float):
        return isinstance(value, Real)
    return isinstance(value, type(expected))


def leaves(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all settings that are present; a list is one value."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from walk(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, node

    yield from walk(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False), "")
