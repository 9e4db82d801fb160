"""What started this process: a sweep, a job, or a process that it must not outlive. Needs no PyTorch."""

import os
import threading
import time

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

PARENT_POLL_SECONDS = 0.3
STARTER_VARIABLE = "CEDM_STARTER"  # the process that a job must not outlive, where it is one of its own


def in_sweep() -> bool:
    """Whether this is one run of a sweep (`-m`)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def place_in_sweep() -> str:
    """What tells a run of a sweep from those that start in the same second: `-3`; nothing where there is no sweep."""
    return f"-{HydraConfig.get().job.num}" if in_sweep() else ""


def end_with_parent(parent: int) -> None:
    """From now on this process ends as soon as the one that started it is gone, whatever it is waiting for."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_starter() -> None:
    """Where this process is a job of its own: end with the process that has started it."""
    starter = os.environ.pop(STARTER_VARIABLE, None)  # the processes that this one starts have another
    if starter is not None:
        end_with_parent(int(starter))
