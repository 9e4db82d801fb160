"""Training in float16: the loss's scale, and steps whose gradients overflow."""

from collections.abc import Container
from pathlib import Path

import pytest
import torch

from callbacks.snapshots import newest_snapshot
from lightning_modules.edm_module import EDMModule
from storage.errors import UserError

from .test_edm_module import BATCH, make_module, train


class OverflowsAt(EDMModule):
    """Its gradients overflow in the optimizer steps of `overflows`, as they do where a scaled loss is too large."""

    overflows: Container[int] = ()

    def on_after_backward(self) -> None:
        if self.trainer.global_step in self.overflows:
            next(self.denoiser.parameters()).grad.fill_(float("inf"))


def overflowing_module(overflows: Container[int]) -> OverflowsAt:
    module = make_module()
    module.__class__ = OverflowsAt
    module.overflows = overflows
    return module


def test_float16_trains_like_float32(tmp_path: Path) -> None:
    single = train(make_module(), steps=5, folder=tmp_path / "single")
    half = train(make_module(), steps=5, folder=tmp_path / "half", initial_scale=64)
    assert int(half.skipped_steps) == 0
    torch.testing.assert_close(half.recent_loss, single.recent_loss, rtol=2e-2, atol=0)


def test_a_scale_that_is_too_large_is_found_out(tmp_path: Path) -> None:
    module = train(make_module(), steps=12, folder=tmp_path, initial_scale=2.0**16)  # PyTorch's default
    assert 1 <= int(module.skipped_steps) < 12
    assert int(module.skipped_in_a_row) == 0


def test_a_step_with_overflowing_gradients_is_skipped_and_counted(tmp_path: Path) -> None:
    """Weights and Adam's state stay; the images count as seen, by averages too; a resumed run goes on counting."""
    train(overflowing_module({2, 3}), 3, tmp_path / "run", initial_scale=64)
    before = torch.load(newest_snapshot(tmp_path / "run"))
    resumed = train(overflowing_module({2, 3}), 4, tmp_path / "run", initial_scale=64, log_every_n_steps=1)
    counts = ("skipped_steps", "skipped_in_a_row")
    assert [int(before["state_dict"][name]) for name in counts] == [1, 1]
    assert [int(getattr(resumed, name)) for name in counts] == [2, 2]
    assert resumed.nimg == 4 * BATCH
    for name, value in resumed.state_dict().items():
        if name.startswith("denoiser"):
            assert torch.equal(value, before["state_dict"][name]), name
    assert float(resumed.trainer.callback_metrics["train/skipped_steps"]) == 1  # before the last step's own
    went_on = train(overflowing_module({2, 3}), 5, tmp_path / "run", initial_scale=64)
    assert [int(getattr(went_on, name)) for name in counts] == [2, 0]


def test_twenty_skipped_steps_in_a_row_stop(tmp_path: Path) -> None:
    module = overflowing_module(range(3, 99))
    with pytest.raises(UserError, match=r"21 steps in a row, up to 192 images seen.*trainer\.precision=bf16-mixed"):
        train(module, 40, tmp_path, initial_scale=64)
    assert int(module.skipped_steps) == 21  # a step is looked at one later
