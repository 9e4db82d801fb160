"""What torch.compile writes: kept in the cache, cleared and made again where a killed process left a part of it."""

import gc
import os
import shutil
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from storage.errors import UserError, causes
from storage.files import MARK, is_own, own_folder

T = TypeVar("T")
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # where PyTorch keeps it; a user's own is used, and never cleared
OURS = "CEDM_COMPILE_CACHE"  # what this project has set that variable to


def with_compile_cache(run: Callable[[], T]) -> T:
    """What `run()` returns, which may compile networks; where that fails, once more with the compile cache cleared.

    Raises:
        UserError: the cache is damaged, and is the user's own; or it was cleared, and other processes take part, which
            have to start anew.
    """
    try:
        return run()
    except Exception as error:
        place, ours = os.environ.get(VARIABLE, ""), os.environ.get(OURS)
        in_there = bool(place) and any(place in str(cause) for cause in causes(error))
        if place != ours and in_there:
            raise UserError(
                f"{VARIABLE}={place}: compiling failed over a file in there ({last_line(error)}). This compile "
                "cache is yours and is left as it is. Clear it, or unset the variable for one in cache_dir."
            ) from error
        if place != ours or not (in_there or is_about_compiling(error)):
            raise
        clear(Path(place))
        note = (
            f"compiling failed ({last_line(error)}). {place}, where a killed process may have left a part, was cleared"
        )
        if in_a_group():
            raise UserError(f"{note}. Run the same command again.") from error
        print(f"Note: {note}; trying once more.", file=sys.stderr)
    forget_compiled()
    return run()


def keep_compiled_in(cache_dir: str) -> None:
    """Let what is compiled from now on lie in `cache_dir`, unless the user has set another place."""
    folder = compile_folder(cache_dir)
    if folder is not None:
        os.environ |= {VARIABLE: str(folder), OURS: str(folder)}
        remove_cut_libraries(folder)


def compile_folder(cache_dir: str) -> Path | None:
    """The compile cache in `cache_dir`; None where the user has set another, or where this user has none there.

    PyTorch loads machine code from it, so one that belongs to another user, or that others may write to, is not used.
    """
    from torch._inductor.runtime.runtime_utils import default_cache_dir

    place = os.environ.get(VARIABLE)
    if place not in (None, "", os.environ.get(OURS), default_cache_dir()):  # PyTorch sets its own by itself
        return None
    folder = own_folder(Path(cache_dir).absolute() / "compiled")
    with suppress(OSError):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o700)
            return folder
    return None


def remove_cut_libraries(folder: Path) -> None:
    """Remove libraries that end before their header says: to load one can end the process by a signal.

    One that is being linked is its linker's, who holds PyTorch's lock of it.
    """
    from filelock import FileLock  # a tenth of what `--help` takes

    for path in folder.glob("*/*.so"):
        if is_cut(path):
            with suppress(OSError), FileLock(folder / "locks" / f"{path.name.split('.')[0]}.lock", timeout=0):
                path.unlink(missing_ok=True)


def is_cut(path: Path) -> bool:
    """Whether a file is a 64-bit ELF library, and ends before its table of sections, which is its last part, does."""
    with suppress(OSError), path.open("rb") as file:
        header = file.read(64)
        if header.startswith(b"\x7fELF\x02\x01") and len(header) == 64:
            offset, size, count = struct.unpack("<40xQ10x2H2x", header)
            return path.stat().st_size < offset + size * count
    return False


def is_about_compiling(error: Exception) -> bool:
    """Whether an error came up while a network was compiled."""
    compiler: Any = sys.modules.get("torch._dynamo.exc")  # not imported: nothing was compiled
    return compiler is not None and any(isinstance(one, compiler.TorchDynamoException) for one in causes(error))


def last_line(error: BaseException) -> str:
    """The line of an error that says most: the second of PyTorch's `backend='inductor' raised:`."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]


def clear(folder: Path) -> None:
    """Remove what PyTorch has put into our own folder."""
    if is_own(folder):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != MARK:
                path.unlink(missing_ok=True)


def in_a_group() -> bool:
    """Whether this process has joined others, or is about to."""
    import torch.distributed as dist

    return dist.is_initialized() or int(os.environ.get("WORLD_SIZE", 1)) > 1


def forget_compiled() -> None:
    """Let PyTorch compile anew in this process, with the memory of the failed try free."""
    import torch
    from torch._inductor.utils import clear_caches

    torch._dynamo.reset()
    clear_caches()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
