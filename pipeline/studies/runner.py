"""Runs the jobs of a plan: one worker for each device, each job a process of its own with a log beside its results."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tqdm import tqdm

from datamodules.artifacts import UserError
from pipeline.cost import duration
from pipeline.processes import RUN_FOLDER_VARIABLE
from pipeline.studies.jobs import Job

LOG_FILE = "log.txt"
POLL_SECONDS = 0.1
KILL_AFTER_SECONDS = 30  # a job that was asked to stop writes its snapshot first


@dataclass(frozen=True)
class Worker:
    """What one job at a time runs on: the settings and the environment that give it the device for itself."""

    name: str
    settings: tuple[str, ...]
    environment: dict[str, str]


def workers_of(accelerator: str, devices: int | str | Sequence[int]) -> list[Worker]:
    """A worker for each GPU, or for each process on the CPU (`trainer.devices=2`), which share its cores evenly.

    Raises:
        UserError: there are not as many devices, or `devices` is no number.
    """
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if len(visible) == gpus and visible[0] else [str(index) for index in range(gpus)]
        count = number_of(devices, gpus)
        if not 0 < count <= gpus:
            raise UserError(f"trainer.devices={devices}: this machine has {gpus} GPUs. Type trainer.accelerator=cpu.")
        settings = ("trainer.accelerator=gpu", "trainer.devices=1")
        return [Worker(f"GPU {name}", settings, {"CUDA_VISIBLE_DEVICES": name}) for name in names[:count]]
    count = number_of(devices, 1)
    if count < 1:
        raise UserError(f"trainer.devices={devices}: type a number of processes from 1 on, such as trainer.devices=2.")
    kind = "mps" if accelerator == "mps" else "cpu"
    threads = str(max(1, len(available_cores()) // count))
    settings = (f"trainer.accelerator={kind}", "trainer.devices=1")
    return [Worker(f"{kind} {number}", settings, {"OMP_NUM_THREADS": threads}) for number in range(count)]


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


def available_cores() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@dataclass
class Running:
    """A job at work."""

    job: Job
    process: subprocess.Popen
    worker: Worker
    start: float


def run_jobs(jobs: Sequence[Job], workers: Sequence[Worker]) -> dict[str, str]:
    """Run what is not finished yet, each job after those that it needs; name → what went wrong, for those that failed.

    A job that fails does not stop the others, but for those that need it. Ctrl-C and SIGTERM stop every job; typed
    again, the study goes on where it stopped.
    """
    waiting = [job for job in jobs if job.summary() is None]
    done = {job.name for job in jobs} - {job.name for job in waiting}
    failed: dict[str, str] = {}
    running: list[Running] = []
    total = max(1, sum(job.images for job in jobs))
    bar = tqdm(
        total=total,
        initial=sum(job.images for job in jobs if job.name in done),
        unit="img",
        unit_scale=True,
        desc=f"{len(done)}/{len(jobs)} jobs",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    with bar, stopping(running):
        while waiting or running:
            for job in [job for job in waiting if any(need in failed for need in job.needs)]:
                waiting.remove(job)
                failed[job.name] = f"not run, because {next(need for need in job.needs if need in failed)} failed"
            free = [worker for worker in workers if worker not in [at_work.worker for at_work in running]]
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for worker, job in zip(free, ready, strict=False):
                waiting.remove(job)
                running.append(Running(job, start(job, worker), worker, time.monotonic()))
            for ended in [at_work for at_work in running if at_work.process.poll() is not None]:
                running.remove(ended)
                job, seconds = ended.job, time.monotonic() - ended.start
                problem = problem_of(job, ended.process.returncode)
                if problem is None:
                    done.add(job.name)
                else:
                    failed[job.name] = problem
                bar.write(f"{job.name:<32} {'done' if problem is None else 'FAILED'} in {duration(seconds / 3600)}")
                bar.set_description(f"{len(done)}/{len(jobs)} jobs", refresh=False)
                bar.update(job.images)
            time.sleep(POLL_SECONDS)
    return failed


def start(job: Job, worker: Worker) -> subprocess.Popen:
    """The job's command as a process on this worker; what it prints goes into its log."""
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != RUN_FOLDER_VARIABLE}
    module = f"pipeline.{job.command.replace('-', '_')}"
    with (job.folder / LOG_FILE).open("ab") as log:
        log.write(f"$ {job}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", module, *worker.settings, *job.arguments],
            env=environment | worker.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def problem_of(job: Job, code: int) -> str | None:
    """What went wrong with a job that has ended, in its own words; None where nothing did."""
    if code == 0 and job.summary() is not None:
        return None
    log = job.folder / LOG_FILE
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    start = max((number for number, line in enumerate(lines) if line.startswith("error: ")), default=len(lines) - 1)
    said = "\n  ".join(lines[start:][:6])
    return f"exit code {code}: {said}\n  log: {log}"


@contextmanager
def stopping(running: list[Running]) -> Iterator[None]:
    """Let no job outlive the study: on any way out, those at work are asked to stop, and waited for."""

    def leave(*_: object) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        for at_work in running:
            at_work.process.terminate()
        for at_work in running:
            try:
                at_work.process.wait(KILL_AFTER_SECONDS)
            except subprocess.TimeoutExpired:
                at_work.process.kill()
        signal.signal(signal.SIGTERM, before)
