"""Jobs: commands of `cedm` that need each other's results, and the engine that runs them."""

import re
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.running.cost import duration
from pipeline.running.job_pools import RayCluster, WarmWorker
from pipeline.running.job_worker import LOG_FILE, Order
from pipeline.running.resources import Resources
from pipeline.running.run_folder import read_summary
from pipeline.settings.door import program
from pipeline.settings.words import config_folders, word

CACHED = ("pseudo_labels", "embeddings")  # what a finished job's summary may point to in the cache
ERROR = re.compile(r"(?:.*[|\]].*?)?(error: .*)")  # at the start of a line, or behind a progress bar on the same one


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: unique in its list, such as `train-temi-40`.
        command: of `cedm`.
        words: its settings, but for `run_dir` and the device.
        folder: its `run_dir`.
        needs: names of the jobs that must have ended well before.
        images: what it costs, counted in training images.
    """

    name: str
    command: str
    words: tuple[str, ...]
    folder: Path
    needs: tuple[str, ...] = ()
    images: int = 0

    @property
    def arguments(self) -> list[str]:
        """All that is typed behind the command."""
        return [*config_folders(), *self.words, word("run_dir", self.folder)]

    def __str__(self) -> str:
        return shlex.join([program(), self.command, *self.arguments])

    def summary(self) -> dict[str, Any] | None:
        """What it found; None as long as it isn't finished, or what it wrote into the cache is gone."""
        summary = read_summary(self.folder, self.command)
        if summary is None or any(key in summary and not Path(summary[key]).exists() for key in CACHED):
            return None
        return summary

    def order(self, resources: Resources) -> Order:
        """The job as a worker process is given it."""
        return Order(
            self.command,
            (*self.arguments, *resources.settings),
            self.folder.absolute(),
            Path.cwd(),
            resources.devices_per_job,
            resources.environment,
        )


def run_jobs(jobs: Sequence[Job], resources: Resources) -> dict[str, str]:
    """Run what is not finished yet, each job after those that it needs; name → what went wrong, for those that failed.

    A job that fails does not stop the others, but for those that need it. Ctrl-C and SIGTERM stop every job, which
    keeps its snapshots: the same list goes on where it stopped.
    """
    waiting = [job for job in jobs if job.summary() is None]
    done = {job.name for job in jobs} - {job.name for job in waiting}
    if not waiting:
        return {}
    failed: dict[str, str] = {}
    running: dict[Future[int], tuple[Job, float]] = {}
    bar = tqdm(
        total=max(1, sum(job.images for job in jobs)),
        initial=sum(job.images for job in jobs if job.name in done),
        unit="img",
        unit_scale=True,
        desc=f"{len(done)}/{len(jobs)} jobs",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    with bar, RayCluster(resources) if resources.on_ray else WarmWorker() as workers:
        while waiting or running:
            for job in [job for job in waiting if any(need in failed for need in job.needs)]:
                waiting.remove(job)
                failed[job.name] = f"not run, because {next(need for need in job.needs if need in failed)} failed"
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for job in ready[: resources.slots - len(running)]:
                waiting.remove(job)
                running[workers.submit(job.order(resources))] = job, time.monotonic()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, start = running.pop(future)
                code = workers.code(future)
                well = code == 0 and job.summary() is not None
                if well:
                    done.add(job.name)
                else:
                    failed[job.name] = problem_of(code, job.folder)
                took = duration((time.monotonic() - start) / 3600)
                bar.write(f"{job.name:<32} {'done' if well else 'FAILED'} in {took}", file=sys.stdout)
                bar.set_description(f"{len(done)}/{len(jobs)} jobs", refresh=False)
                bar.update(job.images)
    return failed


def problem_of(code: int | str, folder: Path) -> str:
    """What went wrong with a job that has ended, in its own words: its error, else the last line that it wrote.

    `code` is its exit code, or what became of its process.
    """
    log = folder / LOG_FILE
    last_try = log.read_text(errors="replace").rsplit("\n$ ", 1)[-1] if log.exists() else ""
    lines = [line for line in last_try.splitlines() if line.strip()]
    errors = {number: found[1] for number, line in enumerate(lines) if (found := ERROR.match(line))}
    start = max(errors, default=len(lines) - 1)
    said = "\n  ".join([*([errors[start]] if errors else lines[start : start + 1]), *lines[start + 1 :][:5]])
    return f"{f'exit code {code}' if isinstance(code, int) else code}: {said}\n  log: {log}"
