"""Packages that only some data need; they are optional, and imported when such data are opened."""

from importlib import import_module
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
