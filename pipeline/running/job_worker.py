"""What a worker process does: one job after the other, each with its own log and nothing left of the one before."""

import functools
import gc
import os
import re
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.core.global_hydra import GlobalHydra

from callbacks.stop_request import Stopped, request, stop_at_once
from pipeline.running.parents import STARTER_VARIABLE, end_with_parent
from pipeline.running.processes import RUN_FOLDER_VARIABLE
from pipeline.settings.door import run_command
from pipeline.settings.machine import unbreakable

LOG_FILE = "log.txt"
# Variables that tell a process its part in a run of several: torchrun's and Lightning's, SLURM's, and our own.
PART_OF_A_RUN = re.compile(
    "(LOCAL_|GROUP_|ROLE_|NODE_)?RANK|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|MASTER_(ADDR|PORT)|(TORCHELASTIC|SLURM)_.*"
    f"|{RUN_FOLDER_VARIABLE}|{STARTER_VARIABLE}"
)


@dataclass(frozen=True)
class Order:
    """A job as a worker process is given it.

    Attributes:
        command: of `cedm`.
        words: all its settings.
        folder: of its log.
        working_folder: where the command is run.
        num_devices: that work on it together; several need a process of its own, as Lightning starts the others by
            running this process' command again.
        environment: variables that it gets; `OMP_NUM_THREADS` among them.
    """

    command: str
    words: tuple[str, ...]
    folder: Path
    working_folder: Path
    num_devices: int
    environment: dict[str, str]


def perform(order: Order) -> int:
    """Run a job to its end; its exit code. SIGTERM stops the job, and not this process."""
    with nothing_left_behind():
        os.chdir(order.working_folder)
        os.environ.update(order.environment)
        torch.set_num_threads(int(order.environment["OMP_NUM_THREADS"]))
        with logged(order):
            try:
                return run_command(order.command, order.words) if order.num_devices == 1 else run_alone(order)
            except SystemExit as stop:
                return stop.code if isinstance(stop.code, int) else 1
            except Exception:  # a fault of ours ends this job, and no other one
                traceback.print_exc()
                return 1


@functools.cache
def prepare(parent: int) -> None:
    """Make this process a worker: it ends with `parent`, and Ctrl-C is left to whoever gives the orders."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def perform_for_ray(order: Order) -> int:
    """`perform` in a process of Ray, which cancels a task by a simulated Ctrl-C."""
    prepare(os.getppid())
    before = signal.signal(signal.SIGINT, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    try:
        return perform(order)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Undo what a command changes of this process, and hide what its launcher told it."""
    environment, folder = dict(os.environ), Path.cwd()
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    for key in [key for key in environment if PART_OF_A_RUN.fullmatch(key)]:
        del os.environ[key]
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        request.received, request.deferred, request.agreed = 0, False, 0
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        GlobalHydra.instance().clear()
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
        torch.set_rng_state(random_state)
        gc.collect()  # trainer and module hold each other
        torch.cuda.empty_cache()


@contextmanager
def logged(order: Order) -> Iterator[None]:
    """Append all that this process and its children print to the log in the job's folder."""
    order.folder.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(number) for number in (1, 2)]
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with (order.folder / LOG_FILE).open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        log.write(f"\n$ {shlex.join(['cedm', order.command, *order.words])}\n")
        try:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
            with redirect_stdout(unbreakable(log)), redirect_stderr(log):
                yield
        finally:
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


def run_alone(order: Order) -> int:
    """Run a job in a process of its own, which ends with this one; its exit code."""
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", order.command, *order.words],
        env=os.environ | {STARTER_VARIABLE: str(os.getpid())},
        stdin=subprocess.DEVNULL,
    ) as process:
        try:
            with stop_at_once():
                return process.wait()
        except Stopped:
            process.terminate()
            return process.wait()
