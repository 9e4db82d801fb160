"""Stands for `perform` in a worker process: a job's first word is a piece of Python, run in the job's folder."""

import os

from callbacks.stop_request import stop_at_once
from pipeline.running import job_worker
from pipeline.running.job_worker import Order


def perform_python(order: Order) -> int:
    def run_python(_: str, words: list[str]) -> int:
        os.chdir(order.folder)
        with stop_at_once():
            exec(words[0], {})
        return 0

    job_worker.run_command = run_python
    return job_worker.perform(order)
