"""Trainings of one user on the cores of one machine take turns, a pass each, where their threads have no room together.

OpenMP's threads wait for one another many times in a pass. A thread whose core another training has is late each time,
and its partners wait for nothing. Which thread computes what stays as it is, and so do the last bits.
"""

import getpass
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import Callback, Trainer

from storage.cores import available_cores

PATIENCE = 30.0  # seconds, of a few passes


def have_no_room(trainer: Trainer) -> bool:
    """Whether two trainings such as this one would have more threads than there are cores."""
    alone_on_cpu = trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1
    threads = torch.get_num_threads()
    return alone_on_cpu and threads > 1 and 2 * threads > len(available_cores())


class TakeTurns(Callback):
    """Compute a pass only while no other training of this user on the same cores does.

    Put it first among the callbacks, so that what others do after a pass, such as generating images, keeps nobody
    waiting. It takes no more turns once one has not come in `patience` seconds: the other training may be suspended.

    Args:
        folder: where the lock files lie, on this machine.
        patience: in seconds.
    """

    def __init__(self, folder: Path | None = None, patience: float = PATIENCE) -> None:
        cores = sum(1 << core for core in available_cores())
        name = Path(folder or tempfile.gettempdir()) / f"cedm-{getpass.getuser()}-{cores:x}"
        # Who has just computed stands in the queue behind the one who waits, so each gets every other turn.
        self.queue, self.turn = (
            FileLock(f"{name}-{what}.lock", timeout=patience, poll_interval=0.001) for what in ("queue", "turn")
        )
        self.waits = True

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.waits = have_no_room(trainer)

    def on_train_batch_start(self, *_: Any) -> None:
        if not self.waits:
            return
        try:
            with self.queue:
                self.turn.acquire()
        except (Timeout, OSError):  # or there is nowhere to write a lock file
            self.waits = False

    def on_train_batch_end(self, *_: Any) -> None:
        self.turn.release()

    def on_exception(self, *_: Any) -> None:
        self.turn.release()
