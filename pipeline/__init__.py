"""The commands, in the order of the data: embed, cluster, bound, train, generate, evaluate; and their helpers."""

import ctypes
import os
import sys

# Before PyTorch starts its threads. Waiting OpenMP threads spin for long by default: on a machine that other programs
# use too, they starve the very thread that they wait for, and training is ten times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


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


keep_freed_memory()
