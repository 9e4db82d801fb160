"""What a process of ours is set up with before anything large is imported."""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("callbacks", "datamodules", "lightning_modules", "metrics", "storage")


def import_our_own(root: Path) -> None:
    """Import our packages from `root`, where `pipeline` lies, here and in every process that is started from here.

    A file `metrics.py` or a folder `callbacks` in the current folder is then never taken for ours.
    """
    here = str(Path.cwd())
    sys.path[:] = [str(root), *(place for place in sys.path if place not in ("", here, str(root)))]
    os.environ["PYTHONSAFEPATH"] = "1"  # keeps the current folder out of the children's import path
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *(place for place in known if place not in ("", str(root)))])
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin]
        if str(root / name) not in places:
            in_the_way = f"{places[0]} hides" if places else "nothing is"
            sys.exit(f"error: {in_the_way} this project's package {name}, which lies in {root}. Rename or remove it.")


def prepare_process() -> None:
    """Settings of the process that have to come before PyTorch's threads and memory."""
    # Waiting OpenMP threads spin for long by default: on a machine that other programs use too, they starve the very
    # thread that they wait for, and training is ten times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    keep_freed_memory()
    sys.stdout = unbreakable(sys.stdout)
    sys.stderr = unbreakable(sys.stderr)


def keep_freed_memory() -> None:
    """Let glibc's malloc reuse large blocks instead of giving each back to the system; elsewhere, do nothing.

    By default a tensor of more than 32 MB is mapped anew every time, and the system fills it with zeros page by page:
    on a CPU that takes nearly half of a TEMI step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_max, 0)  # none


def unbreakable(stream: TextIO | None) -> TextIO:
    """A terminal that ends no training: what it cannot show is escaped, and once its reader is gone, dropped.

    `PYTHONIOENCODING=ascii` cannot show `→`; `| head -1` and a dead `tee` read no further; a closed stdout is None.
    What it would obey, such as an escape sequence in the name of a file, is escaped too.
    """
    if stream is None:
        return Path(os.devnull).open("w")  # open as long as the process
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    stream.write = dropping_the_rest(stream, showing(stream.write))  # type: ignore[method-assign]
    stream.flush = dropping_the_rest(stream, stream.flush)  # type: ignore[method-assign]
    return stream


def showing(write: Callable[[str], int]) -> Callable[[str], int]:
    """`write` of a stream, for texts that hold names of other people's."""
    from storage.control_characters import shown  # ours, as `import_our_own` has been here

    def write_shown(text: str) -> int:
        write(shown(text))
        return len(text)

    return write_shown


def dropping_the_rest(stream: TextIO, method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` of a stream, which writes to nowhere from its first broken pipe on."""

    def attempt(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            return method(*arguments)

    return attempt
