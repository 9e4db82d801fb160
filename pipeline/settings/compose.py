"""From the words of a command line to typed settings."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    ConfigTypeError,
    MissingMandatoryValue,
    ValidationError,
)

from pipeline.settings.commands import COMMANDS, module_name
from pipeline.settings.hints import unknown_setting
from pipeline.settings.loader import CheckedLoader
from pipeline.settings.schemas import SharedSettings, schema_of
from pipeline.settings.words import key_of, readable
from storage.errors import UserError
from storage.settings import REQUIRED

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MOST_BITS = 1023  # of a whole number that a float can hold
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list such as [1,2]"}


def compose(name: str, words: Sequence[str]) -> SharedSettings:
    """The settings of a command with these words, composed while another command runs or in a program of one's own.

    Raises:
        UserError: a value is not allowed, or a setting that must be given is missing.
        HydraException: a word is no setting; see `hints.explain_word`.
    """
    return to_settings(name, compose_config(name, words), [key_of(word) for word in words])


def compose_config(name: str, words: Sequence[str]) -> DictConfig:
    """What Hydra makes of the words, `hydra` among its keys."""
    with _hydra():
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, CheckedLoader)
        return loader.load_configuration(module_name(name), readable(words), run_mode=RunMode.RUN)


def _hydra() -> AbstractContextManager[Any]:
    """Hydra as it was started, with all folders of YAML files that the user named; started here where it was not."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS))


def to_settings(name: str, cfg: DictConfig, typed: Sequence[str] = ()) -> SharedSettings:
    """Typed settings from a composed configuration; `typed` are the keys that a user has set.

    Raises:
        UserError: an unknown setting, a value of the wrong type or outside its range, or one that must be given is
            missing.
    """
    schema = schema_of(COMMANDS[name].schema, cfg)
    given = fitted(cfg, schema, typed)
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(schema, given))
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        with_make = " (with make: DATA=VALUE)" if key == "dataset.path" else ""
        raise UserError(f"{key} must be given. Set {key}=VALUE{with_make}.\nSee `cedm {name} --help`.") from error
    except ConfigKeyError as error:
        raise UserError(unknown_key(str(error.full_key), given, name)) from error
    except (ValidationError, ConfigTypeError) as error:
        raise UserError(wrong_type(str(error.full_key) or misfit(given, schema), given, schema)) from error
    except OverflowError as error:
        key = next(key for key, value in leaves(given) if isinstance(value, int) and value.bit_length() > MOST_BITS)
        raise UserError(f"{key}: a number too large for any setting.") from error
    assert isinstance(settings, SharedSettings)
    return settings


def fitted(cfg: DictConfig, schema: DictConfig, typed: Sequence[str]) -> DictConfig:
    """The configuration without what is not for this schema: Hydra's own group, and TEMI's settings of a data set.

    A data set's YAML sets what is published for TEMI on it, which is nothing to the other methods. A study's own lists
    of values, which its YAML may name as it likes, become its `lists`.
    """
    given = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    OmegaConf.set_struct(given, False)
    for key in [key for key in given.clustering if key not in set(schema.clustering.keys())]:
        if f"clustering.{key}" not in typed:
            del given.clustering[key]
    if "study" in given:
        own = [key for key in given.study if key not in set(schema.study.keys())]
        given.study.lists = {key: given.study.pop(key) for key in own}
    return given


def unknown_key(key: str, cfg: DictConfig, name: str) -> str:
    """The message about a setting that there is not, with the nearest ones that there are."""
    key = next((leaf for leaf, _ in leaves(OmegaConf.select(cfg, key), key)), key)  # of an empty group, itself
    known = [known_key for known_key, _ in leaves(cfg) if known_key != key]
    return unknown_setting(key, known, name)


def misfit(given: DictConfig, schema: DictConfig) -> str:
    """The key where a list, a group or a single value stands in the place of another of them."""
    for key, _ in leaves(schema):
        found, expected = (OmegaConf.select(node, key) for node in (given, schema))
        if found is not None and OmegaConf.is_config(found) and type(found) is not type(expected):
            return key
    return ""


def wrong_type(key: str, given: DictConfig, schema: DictConfig) -> str:
    """The message about a value of the wrong type, with what is expected and an example."""
    key = re.sub(r"\[\d+\]$", "", key)  # of a list, the whole
    value = OmegaConf.select(given, key)
    if value is None:
        return f"{key} must be given. Set {key}=VALUE."
    parent, _, leaf = key.rpartition(".")
    holder = OmegaConf.select(schema, parent) if parent else schema
    default = OmegaConf.select(holder, leaf, throw_on_missing=False) if isinstance(holder, DictConfig) else None
    expected = KINDS.get(_kind(holder, leaf), "another value")
    known = default not in (None, REQUIRED) and not isinstance(default, DictConfig)
    example = f", such as {key}={spelled(default)}" if known else ""
    return f"{key}={spelled(value)}: {expected} is expected{example}."


def _kind(holder: DictConfig, leaf: str) -> Any:
    """The type that a setting's annotation names first: int of `int | None`."""
    cls = OmegaConf.get_type(holder)
    hint = get_type_hints(cls).get(leaf) if isinstance(cls, type) else None
    members = [member for member in getattr(hint, "__args__", ()) if member is not type(None)]
    origin = getattr(hint, "__origin__", None)
    return origin if origin in (list, dict) else members[0] if members else hint


def spelled(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, ListConfig | list):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, DictConfig | dict):
        return f"{{{','.join(f'{key!s}:{spelled(inner)}' for key, inner in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of all settings of a configuration; a list is one value."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=False)
    if not isinstance(node, dict):
        return [(prefix, node)]
    pairs = ((f"{prefix}.{key}" if prefix else str(key), value) for key, value in node.items() if key != "hydra")
    return [leaf for key, value in pairs for leaf in leaves(value, key)]
