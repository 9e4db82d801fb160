"""What a study is made of: runs (models), and the jobs that make and measure them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.running.condition import Condition
from pipeline.running.jobs import Job
from pipeline.settings.schemas import SharedSettings

FINAL = "-final"  # what the name of the best run ends in that is trained again, for longer


@dataclass(frozen=True)
class Run:
    """One model of the study: `name` is `temi-40`, of the `group` `temi`; `values` are of lists that do not set C."""

    name: str
    group: str
    words: tuple[str, ...]
    settings: SharedSettings
    values: tuple[str, ...] = ()

    @cached_property
    def condition(self) -> Condition:
        """What it is conditioned on."""
        return Condition.of(self.settings)


@dataclass(frozen=True)
class Plan:
    """The runs of a study, and the jobs that make and measure them, each after those that it needs.

    Attributes:
        left_out: what is not among them, and why.
        final: the best run, trained for longer.
        later: what follows from results that are not there yet, and the most that it costs in training images.
    """

    runs: list[Run]
    jobs: list[Job]
    left_out: list[str]
    final: Run | None = None
    later: tuple[str, int] = ("", 0)

    def job(self, name: str) -> Job | None:
        return next((job for job in self.jobs if job.name == name), None)

    def summary(self, name: str) -> dict[str, Any] | None:
        """What a job found; None where there is no such job, or it isn't finished."""
        job = self.job(name)
        return None if job is None else job.summary()
