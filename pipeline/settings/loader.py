"""Hydra's loader of configurations, which composes nothing that is not allowed, from files of a bounded size.

Whatever composes goes through here: a command, each run of a sweep, in whatever process its launcher runs it.
"""

import itertools
from pathlib import Path
from typing import Any

import yaml
from hydra._internal import hydra as entrance
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource as AnyFiles
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.settings.allowed import MOST_REFERENCES, refuse_composed, refuse_many_runs, refuse_override
from storage.errors import UserError

MOST_BYTES = 2**17  # of one YAML file in a folder of the user's
MOST_VALUES = 2_000  # in it, with aliases written out
MOST_FILES = 300  # of one configuration, each as often as it is named: files can name one another in their defaults


class FileConfigSource(AnyFiles):
    """YAML files of a folder; those that are not our own only up to a size that settings can have.

    It has the name of what it stands in for, which is how Hydra takes it for the same in a launcher's processes.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        if self.provider == "main":
            return super().load_config(config_path)
        path = Path(self.path, self._normalize_file_name(config_path))
        try:
            refuse_large(path)
            return super().load_config(config_path)
        except RecursionError as error:
            raise UserError(f"{path}: nested too deeply for settings.") from error
        except (yaml.YAMLError, ValueError, OSError) as error:
            raise UserError(f"{path}: cannot be read as YAML ({error}).") from error


def refuse_large(path: Path) -> None:
    """Raise a `UserError` for a YAML file that is, or that its aliases make, larger than settings are."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UserError(f"{path}: {size:,} bytes, more than the {MOST_BYTES:,} that a file of settings can have.")
    text = path.read_text(encoding="utf-8")
    if text.count("${") > MOST_REFERENCES:
        raise UserError(f"{path}: more than {MOST_REFERENCES} references (${{…}}).")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    count = written_out(node, {})
    if count > MOST_VALUES:
        raise UserError(f"{path}: {count:,} values with its aliases written out; {MOST_VALUES:,} are allowed.")


def written_out(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values a node holds where each alias is what it stands for."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # what holds itself is too large
        inner = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(written_out(item, known) for item in inner)
    return known[id(node)]


class CheckedLoader(ConfigLoaderImpl):
    """Composes what is on the list of `allowed.py`, and raises a `UserError` for all else."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        SourcesRegistry.instance().types["file"] = FileConfigSource
        super().__init__(config_search_path)

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *arguments: Any, **options: Any
    ) -> DictConfig:
        try:
            for override in OverridesParser.create().parse_overrides(overrides):
                refuse_override(override)
            cfg = super().load_configuration(config_name, overrides, run_mode, *arguments, **options)
            refuse_composed(cfg)
            refuse_many_runs(overrides, cfg)
        except (UserError, HydraException, OmegaConfBaseException):
            raise
        except RecursionError as error:
            raise UserError("the settings are nested too deeply, or their files name one another.") from error
        except Exception as error:  # Hydra's assertions about words and files that it did not foresee
            raise UserError(f"Hydra cannot make settings of this ({type(error).__name__}: {error}).") from error
        return cfg

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, files = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        load, loaded = files.load_config, itertools.count(1)

        def load_some(config_path: str) -> ConfigResult | None:
            if next(loaded) > MOST_FILES:
                raise UserError(f"{config_path}: the defaults of files lead to more than {MOST_FILES} of them.")
            return load(config_path)

        files.load_config = load_some  # type: ignore[method-assign]
        return parsed, files


entrance.ConfigLoaderImpl = CheckedLoader  # type: ignore[misc]
