"""Settings that cannot be meant, caught before anything starts."""

from collections.abc import Iterator
from numbers import Real
from typing import Any

from omegaconf import DictConfig, OmegaConf

from datamodules.artifacts import UserError

POSITIVE = (
    "dataset.resolution",
    "dataset.channels",
    "clustering.num_neighbours",
    "clustering.num_heads",
    "clustering.batch_size",
    "clustering.max_epochs",
    "training.batch_size",
    "training.duration_kimg",
    "training.lr",
    "sampler.sigma_min",
    "evaluation.every_kimg",
    "evaluation.num_images",
    "evaluation.batch_size",
    "evaluation.grid_every_kimg",
    "evaluation.snapshot_every_kimg",
    "evaluation.log_every_kimg",
    "batch_size",
)
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
        if isinstance(value, Real) and value <= 0:
            raise UserError(f"{key}={value}: it must be above 0, such as {key}={standard[key]}.")


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

    yield from walk(OmegaConf.to_container(cfg, resolve=False), "")
