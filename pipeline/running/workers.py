"""The devices of this machine as workers: each runs one job at a time, in a process of its own with a log."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.running.processes import RUN_FOLDER_VARIABLE
from pipeline.settings.command import CONFIGS
from pipeline.settings.words import config_folder
from storage.cores import cores_of_each
from storage.errors import UserError

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
LOG_FILE = "log.txt"
ERROR = re.compile(r"(?:.*[|\]].*?)?(error: .*)")  # at the start of a line, or behind a progress bar on the same one
PATIENCE_SECONDS = 60  # for a process that was told to stop, and writes its snapshot first; then it is killed


@dataclass(frozen=True)
class Worker:
    """What one job at a time runs on: the settings and the environment that give it the device for itself."""

    name: str
    settings: tuple[str, ...]
    environment: dict[str, str]

    def start(self, command: Sequence[str], folder: Path) -> subprocess.Popen:
        """Start a job on this device, with this project's code to import; what it prints goes into the folder's log."""
        folder.mkdir(parents=True, exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", RUN_FOLDER_VARIABLE)}
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CONFIGS.parent), os.environ.get("PYTHONPATH")]))
        with (folder / LOG_FILE).open("ab") as log:
            log.write(f"\n$ {shlex.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen(
                command,
                env=inherited | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def command(self, name: str, words: Iterable[str]) -> list[str]:
        """`cedm NAME WORDS…` on this device, in this interpreter."""
        module = f"pipeline.commands.{name.replace('-', '_')}"
        return [sys.executable, "-m", module, *config_folder(), *words, *self.settings]


def workers_of(accelerator: str, devices: int | str | Sequence[int]) -> list[Worker]:
    """A worker for each GPU, or for each process on the CPU (`trainer.devices=2`); they share the cores evenly.

    Raises:
        UserError: another accelerator, not as many devices, or `devices` is neither a number nor a list of GPUs.
    """
    if accelerator not in ACCELERATORS:
        raise UserError(f"trainer.accelerator={accelerator}: type one of {', '.join(ACCELERATORS)}.")
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible[:gpus] if visible[0] else [str(index) for index in range(gpus)]
        chosen = range(number_of(devices, gpus)) if isinstance(devices, int | str) else list(devices)
        if not chosen or not set(chosen) <= set(range(gpus)):
            raise UserError(f"trainer.devices={devices}: this machine has {gpus} GPUs. Type trainer.accelerator=cpu.")
        settings, threads = ("trainer.accelerator=gpu", "trainer.devices=1"), share_of_cores(len(chosen))
        return [
            Worker(f"GPU {names[index]}", settings, {"CUDA_VISIBLE_DEVICES": names[index]} | threads)
            for index in chosen
        ]
    count = number_of(devices, 1)
    if count < 1:
        raise UserError(f"trainer.devices={devices}: type a number of processes from 1 on, such as trainer.devices=2.")
    kind = "mps" if accelerator == "mps" else "cpu"
    settings = (f"trainer.accelerator={kind}", "trainer.devices=1")
    return [Worker(f"{kind} {number}", settings, share_of_cores(count)) for number in range(count)]


def share_of_cores(count: int) -> dict[str, str]:
    """The environment in which each of `count` processes uses its share of the cores, or what the user has set."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores_of_each(count)))}


def number_of(devices: int | str | Sequence[int], every: int) -> int:
    """`devices` as a number; auto and -1 mean every one.

    Raises:
        UserError: it is no number.
    """
    if devices in ("auto", -1, "-1"):
        return every
    try:
        return int(devices)  # type: ignore[arg-type]  # a list ends in the message below
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer.devices={devices}: type a number, such as trainer.devices=2, or auto.") from error


def end_all(processes: Sequence[subprocess.Popen]) -> None:
    """Ask all processes to stop, and wait for them; kill those that do not, or that a second signal finds at work."""
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended


def problem_of(code: int, folder: Path) -> str:
    """What went wrong with a job that has ended, in its own words: its error, else the last line that it wrote."""
    log = folder / LOG_FILE
    last_try = log.read_text(errors="replace").rsplit("\n$ ", 1)[-1]
    lines = [line for line in last_try.splitlines() if line.strip()]
    errors = {number: found[1] for number, line in enumerate(lines) if (found := ERROR.match(line))}
    start = max(errors, default=len(lines) - 1)
    said = "\n  ".join([*([errors[start]] if errors else lines[start : start + 1]), *lines[start + 1 :][:5]])
    return f"exit code {code}: {said}\n  log: {log}"
