"""Several devices share the grid of `cedm bound`: each trains whole clusterings, in processes of `cedm cluster`."""

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

from pipeline.running.workers import Worker, end_all, problem_of
from pipeline.settings.words import key_of, word
from storage.errors import UserError

LOOK_EVERY_SECONDS = 1.0  # at jobs that another machine works on
# What is the grid's or the device's, and not the clustering's.
OWN_KEYS = (
    *("bound", "run_dir", "overwrite", "conditioning", "assignments", "seed"),
    *("clustering.num_clusters", "clustering.beta"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
)


class Job(Protocol):
    """A clustering to train; see `pipeline.running.bound_grid.Job`."""

    @property
    def cfg(self) -> DictConfig: ...
    @property
    def path(self) -> Path: ...
    @property
    def folder(self) -> Path: ...
    @property
    def is_done(self) -> bool: ...
    def claimed(self, wait: bool) -> AbstractContextManager[bool]: ...


def train_side_by_side(jobs: Sequence[Job], workers: Sequence[Worker]) -> None:
    """Train the jobs that are not done, at each time one on each device, until all are done.

    Each device takes the next job that nobody has claimed, be it another device of this machine or another machine on
    the same file system. A job that fails does not stop the others. Ctrl-C and SIGTERM end all processes; snapshots
    stay to go on from.

    Raises:
        UserError: some jobs failed; names them, with the last words of each and where its whole output is.
    """
    todo = [job for job in jobs if not job.is_done]
    print(f"{len(todo)} clusterings on {len(workers)} devices; the output of each lies in its folder's log.txt")
    with tqdm(total=len(todo), desc="clusterings", unit="clustering", file=sys.stderr) as bar:
        grid = _Grid(todo, bar)
        with ThreadPoolExecutor(len(workers)) as threads:
            try:
                futures = [threads.submit(grid.serve, worker) for worker in workers]
                wait(futures)
            finally:
                grid.stop()
        for future in futures:
            future.result()  # a fault of ours in a thread is raised here
    if grid.failures:
        told = "\n".join(f"{job}: {words}" for job, words in grid.failures.items())
        raise UserError(
            f"{len(grid.failures)} of {len(todo)} clusterings failed:\n{told}\n"
            "The others are kept: the same command trains only what is missing."
        )


class _Grid:
    """What the threads share: each thread serves one device and runs one process at a time."""

    def __init__(self, jobs: Sequence[Job], bar: tqdm) -> None:
        self.jobs, self.bar = jobs, bar
        self.failures: dict[Job, str] = {}
        self._finished: set[Path] = set()
        self._processes: set[subprocess.Popen] = set()
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def serve(self, worker: Worker) -> None:
        """Train unclaimed jobs on one device until every job is done or has failed."""
        while not self._stopping.is_set():
            left = [job for job in self.jobs if job not in self.failures and not self._count_if_done(job)]
            if not left:
                return
            if not any(self._try(job, worker) for job in left):
                self._stopping.wait(LOOK_EVERY_SECONDS)  # others are at all that is left: they may fail or go away

    def _try(self, job: Job, worker: Worker) -> bool:
        """Train a job if it is free; whether it was."""
        if self._stopping.is_set() or job.is_done or job in self.failures:
            return False
        with job.claimed(wait=False) as mine:
            if not mine or job in self.failures:
                return False
            problem = self._run(job, worker)
        if problem and not self._stopping.is_set():
            self.failures[job] = problem
            self.bar.write(f"failed  {job}: {problem}", file=sys.stderr)
        elif not problem:
            self._count_if_done(job)
            self.bar.write(f"done    {job}", file=sys.stdout)
        return True

    def _run(self, job: Job, worker: Worker) -> str | None:
        """Train a job in a process of its own; what went wrong, or None."""
        with self._lock:
            if self._stopping.is_set():
                return "stopped"
            process = worker.start(worker.command("cluster", settings_of(job)), job.folder)
            self._processes.add(process)
        code = process.wait()
        with self._lock:
            self._processes.discard(process)
        return None if code == 0 and job.is_done else problem_of(code, job.folder)

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
        end_all(running)


def settings_of(job: Job) -> list[str]:
    """What the user typed for the grid's clusterings, and what is this job's own."""
    typed = HydraConfig.get().overrides.task
    return [
        *(text for text in typed if key_of(text) not in OWN_KEYS and not key_of(text).startswith(("bound.", "hydra"))),
        f"clustering.num_clusters={job.cfg.clustering.num_clusters}",
        f"clustering.beta={job.cfg.clustering.beta}",
        f"seed={job.cfg.seed}",
        word("run_dir", job.folder),
    ]
