"""Packages that only some data need; they are optional, and imported when such data are opened."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from storage.errors import UserError


def needed(module: str, what: str, package: str | None = None) -> Any:
    """A module of a package (of the same name, where None) that `what` needs.

    Raises:
        UserError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = package or module.partition(".")[0]
        raise UserError(f"{what} needs the package {package}. Run: pip install {package}") from error


def file_of_package(package: str, name: str, what: str, install: str) -> Path:
    """A file that a package brings, which is not imported. Raises `UserError`: `what` needs it, and it is not there."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{what} needs the package {package.replace('_', '-')}, which is not installed. Run: {install}")
    return Path(spec.submodule_search_locations[0]) / name
