"""This version of Lightning still has what `callbacks.lightning_internals` uses, and heeds it."""

import inspect
import signal
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.environments import SLURMEnvironment

from callbacks.lightning_internals import is_under_slurm, leave_signals_alone, passes_done, set_passes


def trainer(folder: Path, **settings: object) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **{**quiet, **settings})


def test_no_signal_handler_is_installed(tmp_path: Path) -> None:
    """Lightning would replace SIGTERM's default, as another trainer shows."""
    seen = []

    class Looking(BoringModel):
        def on_train_start(self) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    for alone in (False, True):
        fitting = trainer(tmp_path, max_steps=1, enable_checkpointing=False)
        if alone:
            leave_signals_alone(fitting)
        fitting.fit(Looking())
    assert [handler == signal.SIG_DFL for handler in seen] == [False, True]


def test_the_question_before_each_pass_is_still_of_that_name() -> None:
    assert "_broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop.advance)


def test_slurm_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_under_slurm(trainer(tmp_path))
    for name, value in {"SLURM_JOB_NAME": "cedm", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert SLURMEnvironment.detect()
    assert is_under_slurm(trainer(tmp_path))


def test_a_checkpoint_goes_on_from_the_passes_that_are_set(tmp_path: Path) -> None:
    """Three steps of one pass each, and on with two passes in a step."""
    first = trainer(tmp_path, max_steps=3, max_epochs=-1)
    first.fit(BoringModel())
    assert passes_done(first) == 3
    first.save_checkpoint(tmp_path / "three.ckpt")
    checkpoint = torch.load(tmp_path / "three.ckpt", weights_only=False)
    set_passes(checkpoint, 6)
    torch.save(checkpoint, tmp_path / "six.ckpt")
    second = trainer(tmp_path, max_steps=5, max_epochs=-1, accumulate_grad_batches=2)
    second.fit(BoringModel(), ckpt_path=tmp_path / "six.ckpt", weights_only=False)
    assert (second.global_step, passes_done(second)) == (5, 10)
    assert second.fit_loop.epoch_loop._batches_that_stepped == 5
