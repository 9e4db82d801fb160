"""Where jobs run: a warm worker process of this machine, or the processes of a Ray cluster."""

import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.running.job_worker import Order, perform, perform_for_ray, prepare
from pipeline.running.ray_cluster import connect, cores_per_job
from pipeline.running.resources import Resources

PATIENCE_SECONDS = 60  # for jobs that were told to stop, and write a snapshot first; then they are killed
RETRIES = 3  # of a job whose process or node was lost


class WarmWorker:
    """One process, which runs job after job and need not import everything again; a new one after a crash."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.process: BaseProcess | None = None

    def __enter__(self) -> "WarmWorker":
        return self

    def submit(self, order: Order) -> "Future[int]":
        """Begin a job, after the one before it has ended."""
        if self.pool is not None:
            return self.pool.submit(perform, order)
        before = multiprocessing.active_children()
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, initializer=prepare, initargs=(os.getpid(),))
        future = self.pool.submit(perform, order)
        (self.process,) = set(multiprocessing.active_children()) - set(before)
        return future

    def code(self, future: "Future[int]") -> int | str:
        """The exit code of a job that has ended, or that of the process where it crashed."""
        try:
            return future.result()
        except BrokenProcessPool:
            assert self.pool is not None
            assert self.process is not None
            self.pool.shutdown()
            code, self.pool, self.process = self.process.exitcode, None, None
            return f"the process ended with exit code {code}"
        except OSError as error:  # such as a log that cannot be written
            return str(error)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Let go of the process; where this is the way out of an error or a signal, stop its job."""
        if self.pool is None or self.process is None:
            return
        self.pool.shutdown(wait=False)
        try:
            if error is not None:
                self.process.terminate()
            self.process.join(PATIENCE_SECONDS)
        finally:
            self.process.kill()  # does nothing to one that has ended


class RayCluster:
    """Processes of Ray, on this machine or on several.

    Ray chooses where a job runs, and runs it again elsewhere when its process or its node is lost.
    """

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.running: dict[Future[int], Any] = {}

    def __enter__(self) -> "RayCluster":
        import ray

        resources = self.resources
        gpus = resources.devices_per_job if resources.kind == "gpu" else 0
        visible = {"CUDA_VISIBLE_DEVICES": resources.visible} if resources.visible else {}
        connect(resources.address, resources.devices, resources.devices if gpus else 0, resources.environment | visible)
        cores = cores_per_job(resources.slots) if resources.address and not gpus else resources.devices_per_job
        self.task = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES)(perform_for_ray)
        return self

    def submit(self, order: Order) -> "Future[int]":
        """Begin a job, or let it wait for its turn."""
        reference = self.task.remote(order)
        future = reference.future()
        self.running[future] = reference
        return future

    def code(self, future: "Future[int]") -> int | str:
        """The exit code of a job that has ended, or what became of its process."""
        from ray.exceptions import RayError

        del self.running[future]
        try:
            return future.result()
        except (RayError, OSError) as error:
            return str(error).strip().splitlines()[0]

    def __exit__(self, *_: object) -> None:
        """Stop what is running, and leave the cluster."""
        import ray

        try:
            for reference in self.running.values():
                ray.cancel(reference)
            wait(self.running, PATIENCE_SECONDS)
        finally:
            ray.shutdown()
