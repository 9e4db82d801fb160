"""Lightning's Trainer from the command line: what can be set arrives, the rest is refused, `max_time` ends a try."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from lightning.pytorch.profilers import PyTorchProfiler

from callbacks.lightning_internals import RichBar
from callbacks.throughput import ImageProgressBar, Throughput
from pipeline.running import fit
from pipeline.running.trainer_settings import CALLBACKS, OWNED, TrainerSettings
from storage.errors import UserError

from .conftest import TINY_EDM, Cedm

OURS = {"compile", "channels_last"}
TRAIN = ["train", "conditioning=none", *TINY_EDM, "dataset.max_images=100", "trainer.gradient_clip_val=1"]


def test_every_argument_of_the_trainer_is_a_setting_or_refused_with_a_reason() -> None:
    settings = {own.name for own in fields(TrainerSettings)} - OURS
    assert settings.isdisjoint(OWNED)
    assert settings | set(OWNED) == set(inspect.signature(Trainer).parameters)


class ArrivedError(Exception):
    """Instead of a training."""


def test_what_is_set_arrives(cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def trainer(**arguments: Any) -> None:
        given.update(arguments)
        raise ArrivedError

    monkeypatch.setattr(fit, "Trainer", trainer)
    asked = {"gradient_clip_algorithm": "value", "deterministic": "warn", "benchmark": True, "detect_anomaly": True}
    asked |= {"strategy": "ddp", "enable_model_summary": True, "sync_batchnorm": True}
    words = [f"trainer.{name}={value}" for name, value in asked.items()]
    with pytest.raises(ArrivedError):
        cedm(*TRAIN, *words, "trainer.profiler=pytorch", "callbacks=[lr_monitor,rich_progress]")
    assert {name: given[name] for name in asked} == asked
    assert given["gradient_clip_val"] == 1
    assert isinstance(given["profiler"], PyTorchProfiler)
    assert any(isinstance(one, LearningRateMonitor) for one in given["callbacks"])
    assert [type(one) for one in given["callbacks"] if isinstance(one, ProgressBar)] == [RichBar]


def test_one_progress_bar_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    ours: list[Callback] = [ImageProgressBar(1, 1, ""), Throughput(1)]
    kinds = [[type(one).__name__ for one in fit.with_more(ours, names, shown)] for names, shown in
             [((), True), ((), False), (("rich_progress",), True)]]  # fmt: skip
    assert kinds == [["ImageProgressBar", "Throughput"], ["Throughput"], ["Throughput", "RichBar"]]
    monkeypatch.setitem(CALLBACKS, "device_stats", CALLBACKS["device_stats"]._replace(package="no_such_package"))
    with pytest.raises(UserError, match='pip install "no_such_package"'):
        fit.with_more(ours, ["device_stats"], True)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [(None, None), ("01:02:03:04", 93784), ("00:00:00:00", 0), ({"hours": 1, "seconds": 1.5}, 3601.5)],
)
def test_max_time_in_seconds(limit: Any, seconds: float | None) -> None:
    assert TrainerSettings(max_time=limit).seconds == seconds


def test_the_same_command_goes_on_after_max_time(cedm: Cedm, workplace: Path) -> None:
    """A step further in each try, as the time is for a try; in the end the bytes of a run that nothing stopped."""
    for step in (1, 2):
        stopped = cedm(*TRAIN, "run_dir=stopped", "trainer.max_time=00:00:00:00", "trainer.profiler=simple")
        assert (stopped.code, f"step {step} of 16. Run the same command again" in stopped.out) == (0, True), stopped.err
        assert not Path("stopped/summary.json").exists()
    assert "run_training_batch" in next(Path("stopped/profile").glob("*.txt")).read_text()
    for folder in ("stopped", "straight"):
        assert cedm(*TRAIN, f"run_dir={folder}").code == 0
    assert Path("stopped/denoiser.safetensors").read_bytes() == Path("straight/denoiser.safetensors").read_bytes()


def test_each_run_of_a_sweep_has_its_own_time(cedm: Cedm, workplace: Path) -> None:
    swept = cedm(*TRAIN, "-m", "seed=1,2", "trainer.max_time={seconds:0}", "training.duration_kimg=0.2")
    assert (swept.code, swept.out.count("Not finished: ")) == (0, 2), swept.err
