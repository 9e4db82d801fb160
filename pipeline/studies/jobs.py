"""What a study is made of: runs (models), and the jobs (commands) that make and measure them."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.running.run_folder import read_summary
from pipeline.settings.command import program
from pipeline.settings.words import config_folder, word
from storage.errors import UserError

FINAL = "-final"  # what the name of the best run ends in that is trained again, for longer
CACHED = ("pseudo_labels", "embeddings")  # what a finished job's summary may point to in the cache


@dataclass(frozen=True)
class Job:
    """One command of the study.

    Attributes:
        name: unique in the study, such as `train-temi-40`.
        command: of `cedm`.
        words: its settings, but for `run_dir` and the device.
        folder: its `run_dir`, named after all that decides the result, so that studies share what is the same.
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
        return [*self.words, word("run_dir", self.folder)]

    def __str__(self) -> str:
        return shlex.join([program(), self.command, *config_folder(), *self.arguments])

    def summary(self) -> dict[str, Any] | None:
        """What it found; None as long as it isn't finished, or what it wrote into the cache is gone."""
        summary = read_summary(self.folder, self.command)
        if summary is None or any(key in summary and not Path(summary[key]).exists() for key in CACHED):
            return None
        return summary


@dataclass(frozen=True)
class Run:
    """One model of the study: `name` is `temi-40`, of the `group` `temi`; `values` are of lists that do not set C."""

    name: str
    group: str
    words: tuple[str, ...]
    cfg: DictConfig
    values: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """What it is conditioned on: temi, kmeans, labels, random, … or none."""
        return "none" if self.cfg.conditioning == "none" else str(self.cfg.clustering.method)


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


def composed(command: str, words: Sequence[str], origin: str) -> DictConfig:
    """The configuration of a command with these settings.

    Raises:
        UserError: a setting does not exist; `origin` says who asks for it.
    """
    loader = GlobalHydra.instance().config_loader()
    try:
        return loader.load_configuration(config_name=command, overrides=list(words), run_mode=RunMode.RUN)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{origin}: {str(error).strip()}") from error
