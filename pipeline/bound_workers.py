"""Several devices share the grid of `cedm bound`: each trains whole clusterings, in processes of `cedm cluster`."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from datamodules.artifacts import UserError
from pipeline.command import CONFIGS

PATIENCE_SECONDS = 60  # for a process that was told to stop; then it is killed
LOOK_EVERY_SECONDS = 1.0  # at jobs that another machine works on
# What a job sets itself, or what is the grid's and not the clustering's.
NOT_HANDED_ON = (
    *("bound.", "run_dir=", "overwrite=", "conditioning=", "assignments=", "seed=", "hydra."),
    *("clustering.num_clusters=", "clustering.beta=", "trainer.devices=", "trainer.num_nodes="),
)


class Job(Protocol):
    """A clustering to train; see `pipeline.bound_grid.Job`."""

    @property
    def cfg(self) -> DictConfig: ...
    @property
    def path(self) -> Path: ...
    @property
    def folder(self) -> Path: ...
    @property
    def is_done(self) -> bool: ...
    def claimed(self, wait: bool) -> AbstractContextManager[bool]: ...


def train_side_by_side(jobs: Sequence[Job], devices: Sequence[int]) -> None:
    """Train the jobs that are not done, at each time one on each device, until all are done.

    Each device takes the next job that nobody has claimed, be it another device of this machine or another machine on
    the same file system. A job that fails does not stop the others. Ctrl-C and SIGTERM end all processes; snapshots
    stay to go on from.

    Raises:
        UserError: some jobs failed; names them, with the last words of each and where its whole output is.
    """
    todo = [job for job in jobs if not job.is_done]
    print(f"{len(todo)} clusterings on {len(devices)} devices; the output of each lies in its folder's log.txt")
    with tqdm(total=len(todo), desc="clusterings", unit="clustering", file=sys.stderr) as bar:
        workers = _Workers(todo, bar)
        with ThreadPoolExecutor(len(devices)) as threads:
            try:
                share = max(1, (os.cpu_count() or 1) // len(devices))
                futures = [threads.submit(workers.serve, device, share) for device in devices]
                wait(futures)
            finally:
                workers.stop()
        for future in futures:
            future.result()  # a fault of ours in a thread is raised here
    if workers.failures:
        told = "\n".join(f"  {job}: {words}" for job, words in workers.failures.items())
        raise UserError(
            f"{len(workers.failures)} of {len(todo)} clusterings failed:\n{told}\n"
            "The others are kept: the same command trains only what is missing."
        )


class _Workers:
    """The threads' common state: each thread serves one device and runs one process at a time."""

    def __init__(self, jobs: Sequence[Job], bar: tqdm) -> None:
        self.jobs, self.bar = jobs, bar
        self.failures: dict[Job, str] = {}
        self._finished: set[Path] = set()
        self._processes: set[subprocess.Popen] = set()
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def serve(self, device: int, num_threads: int) -> None:
        """Train unclaimed jobs on one device until every job is done or has failed."""
        while not self._stopping.is_set():
            left = [job for job in self.jobs if job not in self.failures and not self._count_if_done(job)]
            if not left:
                return
            if not any(self._try(job, device, num_threads) for job in left):
                self._stopping.wait(LOOK_EVERY_SECONDS)  # others are at all that is left: they may fail or go away

    def _try(self, job: Job, device: int, num_threads: int) -> bool:
        """Train a job if it is free; whether it was."""
        if self._stopping.is_set() or job.is_done or job in self.failures:
            return False
        with job.claimed(wait=False) as mine:
            if not mine or job in self.failures:
                return False
            problem = self._run(job, device, num_threads)
        if problem and not self._stopping.is_set():
            self.failures[job] = problem
            self.bar.write(f"failed  {job}: {problem}", file=sys.stderr)
        elif not problem:
            self._count_if_done(job)
            self.bar.write(f"done    {job}", file=sys.stdout)
        return True

    def _run(self, job: Job, device: int, num_threads: int) -> str | None:
        """Train a job in a process of its own; what went wrong, or None."""
        job.folder.mkdir(parents=True, exist_ok=True)
        log = job.folder / "log.txt"
        with log.open("w") as output:
            with self._lock:
                if self._stopping.is_set():
                    return "stopped"
                process = subprocess.Popen(
                    cluster_command(job),
                    env=environment(job.cfg, device, num_threads),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                )
                self._processes.add(process)
            code = process.wait()
            with self._lock:
                self._processes.discard(process)
        if code == 0 and job.is_done:
            return None
        return f"exit code {code}: {last_words(log)} ({log})"

    def _count_if_done(self, job: Job) -> bool:
        with self._lock:
            if job.is_done and job.path not in self._finished:
                self._finished.add(job.path)
                self.bar.update()
        return job.is_done

    def stop(self) -> None:
        """Start nothing more, and end what runs."""
        with self._lock:
            self._stopping.set()
            running = list(self._processes)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def cluster_command(job: Job) -> list[str]:
    """`cedm cluster` with the settings that the user typed for the grid, and those of this job."""
    typed = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+~").startswith(NOT_HANDED_ON)]
    folder = str(job.folder).replace("\\", "\\\\").replace("'", "\\'")
    own = [
        f"clustering.num_clusters={job.cfg.clustering.num_clusters}",
        f"clustering.beta={job.cfg.clustering.beta}",
        f"seed={job.cfg.seed}",
        "trainer.devices=1",
        f"run_dir='{folder}'",
    ]
    return [sys.executable, "-m", "pipeline.cluster", *typed, *own]


def environment(cfg: DictConfig, device: int, num_threads: int) -> dict[str, str]:
    """This process's environment, with one device in sight, a share of the cores, and the same code to import."""
    variables = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "CEDM_RUN_FOLDER")}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CONFIGS.parent), os.environ.get("PYTHONPATH")]))
    variables.setdefault("OMP_NUM_THREADS", str(num_threads))
    if cfg.trainer.accelerator != "cpu":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        variables["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device] if visible else str(device)
    return variables


def last_words(log: Path) -> str:
    """The error that a command ended with, else the last line that it wrote."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1]
