"""What other installed packages add to this one: networks, objectives and kinds of data sets, by entry points.

Settings may not name code to run. A package that its user has installed may: its `pyproject.toml` says

    [project.entry-points."cedm.networks"]
    my_net = "my_package.networks:MyNet"

and `network.architecture=my_net` is a choice like those of this project, whose own names come first.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from storage.errors import UserError

NETWORKS, OBJECTIVES, DATASETS = "cedm.networks", "cedm.objectives", "cedm.datasets"


def addition(group: str, name: str) -> EntryPoint | None:
    """The entry point of this name; None where no installed package has one. Nothing is imported."""
    return next(iter(entry_points(group=group, name=name)), None)


def load_addition(group: str, name: str, base: type | None = None) -> Any:
    """What an installed package adds, imported from there: a subclass of `base`, or a function where there is none.

    Raises:
        UserError: no installed package has it, it cannot be imported, or it is not what is expected.
    """
    entry = addition(group, name)
    if entry is None:
        raise UserError(f"{name!r} is of a package that is not installed here: none has it among its {group}.")
    try:
        loaded = entry.load()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{name!r}, which is {entry.value}, cannot be imported ({problem}). Fix its package."
        ) from error
    if base is None:
        if not callable(loaded):
            raise UserError(f"{name!r}, which is {entry.value}, is no function. Fix its package.")
    elif not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UserError(f"{name!r}, which is {entry.value}, is no subclass of {base.__module__}.{base.__name__}.")
    return loaded
