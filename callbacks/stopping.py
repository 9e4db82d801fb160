"""SIGTERM ends a command where nothing is half-done: at once, or between two batches of a training.

Lightning's own handlers wait for the other processes inside the handler, which hangs where only some of them got the
signal; so they are left out, and the processes agree during each optimizer step instead.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from lightning import Trainer

from callbacks.lightning_internals import is_under_slurm, leave_signals_alone
from callbacks.stop_request import TIME_IS_UP, Stopped, request
from lightning_modules.processes import OnTheWay


@contextmanager
def stop_between_batches(trainer: Trainer, max_seconds: float | None = None) -> Iterator[None]:
    """In the block, SIGTERM is only noted; whoever calls `stop_requested` at a good moment raises `Stopped`.

    The end of `max_seconds` is noted as well, for whoever calls `ask_all`.

    Under SLURM the signal that announces the end of the time limit (`#SBATCH --signal=SIGUSR1@120`) is noted too, and
    the job is then queued again, as Lightning does it.
    """
    leave_signals_alone(trainer)
    numbers: list[int] = [signal.SIGTERM]
    if is_under_slurm(trainer):
        numbers.append(signal.SIGUSR1)
    before = {number: signal.signal(number, request.receive) for number in numbers}
    request.deferred = True
    request.deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    try:
        yield
    finally:
        request.deferred, request.deadline = False, math.inf
        for number, handler in before.items():
            signal.signal(number, handler)
    if request.received:  # after the last batch
        raise Stopped


def ask_all(trainer: Trainer) -> Callable[[], int]:
    """Ask all processes whether any is to end. All call this at the same place, and get the same answer.

    The answer, a `StopRequest.reason`, is what the returned function returns; see `OnTheWay` for what it waits for.
    """
    if trainer.world_size == 1:
        return lambda: request.reason
    flag = torch.full((), request.reason, device=trainer.strategy.root_device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    answer = OnTheWay(flag)

    def agreed() -> int:
        number = int(answer.item())
        if number > TIME_IS_UP:
            request.received = max(request.received, number)  # a signal may have come meanwhile: it counts next time
        request.agreed = max(request.agreed, number)
        return request.agreed  # also by a later question, such as one that cut an evaluation short

    return agreed


def stop_requested(trainer: Trainer) -> bool:
    """Whether any process got a signal to end, asked and answered at once."""
    return ask_all(trainer)() > TIME_IS_UP


def queue_again() -> None:
    """Queue this SLURM job again where its time limit was what stopped it."""
    if request.received == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
        try:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"The job could not be queued again: {error}", file=sys.stderr)
