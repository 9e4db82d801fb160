"""Runs the jobs of a plan: one worker for each device, each job a process of its own with a log beside its results."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from pipeline.running.cost import duration
from pipeline.running.workers import Worker, end_all, problem_of
from pipeline.studies.jobs import Job

POLL_SECONDS = 0.1


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
    with bar, no_job_outlives(running):
        while waiting or running:
            for job in [job for job in waiting if any(need in failed for need in job.needs)]:
                waiting.remove(job)
                failed[job.name] = f"not run, because {next(need for need in job.needs if need in failed)} failed"
            free = [worker for worker in workers if worker not in [at_work.worker for at_work in running]]
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for worker, job in zip(free, ready, strict=False):
                waiting.remove(job)
                process = worker.start(worker.command(job.command, job.arguments), job.folder)
                running.append(Running(job, process, worker, time.monotonic()))
            for ended in [at_work for at_work in running if at_work.process.poll() is not None]:
                running.remove(ended)
                job, seconds = ended.job, time.monotonic() - ended.start
                well = ended.process.returncode == 0 and job.summary() is not None
                if well:
                    done.add(job.name)
                else:
                    failed[job.name] = problem_of(ended.process.returncode, job.folder)
                bar.write(f"{job.name:<32} {'done' if well else 'FAILED'} in {duration(seconds / 3600)}")
                bar.set_description(f"{len(done)}/{len(jobs)} jobs", refresh=False)
                bar.update(job.images)
            time.sleep(POLL_SECONDS)
    return failed


@contextmanager
def no_job_outlives(running: list[Running]) -> Iterator[None]:
    """On any way out, Ctrl-C and SIGTERM among them, the jobs at work are stopped."""
    try:
        yield
    finally:
        end_all([at_work.process for at_work in running])
