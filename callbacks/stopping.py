"""SIGTERM ends a command where nothing is half-done: at once, or between two batches of a training.

Lightning's own handlers wait for the other processes inside the handler, which hangs where only some of them got the
signal; so they are left out, and the processes agree during each optimizer step instead.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from lightning import Trainer

from callbacks.lightning_internals import is_under_slurm, leave_signals_alone
from callbacks.stop_request import Stopped, request
from lightning_modules.processes import OnTheWay


@contextmanager
def stop_between_batches(trainer: Trainer) -> Iterator[None]:
    """In the block, SIGTERM is only noted; whoever calls `stop_requested` at a good moment raises `Stopped`.

    Under SLURM the signal that announces the end of the time limit (`#SBATCH --signal=SIGUSR1@120`) is noted too, and
    the job is then queued again, as Lightning does it.
    """
    leave_signals_alone(trainer)
    numbers: list[int] = [signal.SIGTERM]
    if is_under_slurm(trainer):
        numbers.append(signal.SIGUSR1)
    before = {number: signal.signal(number, request.receive) for number in numbers}
    request.deferred = True
    try:
        yield
    finally:
        request.deferred = False
        for number, handler in before.items():
            signal.signal(number, handler)
    if request.received:  # after the last batch
        raise Stopped


def ask_all(trainer: Trainer) -> Callable[[], bool]:
    """Ask all processes whether any was asked to end. All call this at the same place, and get the same answer.

    The answer is what the returned function returns; see `OnTheWay` for what it waits for.
    """
    if trainer.world_size == 1:
        return lambda: request.received > 0
    flag = torch.full((), request.received, device=trainer.strategy.root_device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    answer = OnTheWay(flag)

    def agreed() -> bool:
        number = int(answer.item())
        request.received = max(request.received, number)  # a signal may have come meanwhile: it counts next time
        request.agreed |= number > 0
        return request.agreed  # also by a later question, such as one that cut an evaluation short

    return agreed


def stop_requested(trainer: Trainer) -> bool:
    """`ask_all`, and the answer at once."""
    return ask_all(trainer)()


def queue_again() -> None:
    """Queue this SLURM job again where its time limit was what stopped it."""
    if request.received == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
        try:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"The job could not be queued again: {error}", file=sys.stderr)
