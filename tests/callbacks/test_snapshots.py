"""Which snapshot a run goes on from."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor

from callbacks import snapshots, stop_request
from callbacks.snapshots import AtomicCheckpointIO, Snapshots, ThreadedCheckpointIO, newest_snapshot
from storage.errors import UserError


def test_a_damaged_snapshot_is_named_and_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = tmp_path / "step-00000001.ckpt", tmp_path / "step-00000002.ckpt"
    for path in (old, new):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(100)}, path)
    assert newest_snapshot(tmp_path) == new
    assert torch.equal(torch.load(new, weights_only=True)["weight"], torch.ones(100))  # the seal is in nobody's way
    content = bytearray(new.read_bytes())
    content[len(content) // 2] ^= 1
    new.write_bytes(content)
    assert newest_snapshot(tmp_path, rank=1) == old
    assert new.exists()  # other ranks leave the renaming to rank 0
    assert newest_snapshot(tmp_path) == old
    assert new.name in caplog.text
    assert new.with_name(f"{new.name}.damaged").read_bytes() == content
    old.write_bytes(b"")
    assert newest_snapshot(tmp_path) is None


def test_a_snapshot_that_holds_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": Path("anything but a tensor")}, path)
    with pytest.raises(UserError, match="refused"):
        AtomicCheckpointIO().load_checkpoint(path)


class Training(BoringModel):
    """Calls `at_step` after each optimizer step, and remembers its weights then."""

    def __init__(self, at_step: Callable[[int], Any]) -> None:
        super().__init__()
        self.at_step, self.weights = at_step, dict[int, Tensor]()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step:
            self.weights[self.global_step] = self.layer.weight.detach().clone()
            self.at_step(self.global_step)


def fit(module: Training, folder: Path, steps: int = 5) -> Trainer:
    """Train with a snapshot after every step, of which two are kept."""
    every: Any = SimpleNamespace(is_due=lambda *_: True)
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[Snapshots(folder, every, keep=2)],
        plugins=[ThreadedCheckpointIO()],
        **quiet,
    )
    trainer.fit(module)
    return trainer


def names(folder: Path) -> list[int]:
    return [int(path.stem.split("-")[1]) for path in sorted(folder.iterdir())]


def test_training_goes_on_while_a_snapshot_of_its_moment_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write waits until the step after has changed the weights; two of them never meet."""
    stepped, writing, written = threading.Event(), threading.Lock(), list[str]()
    original = torch.save

    def save(checkpoint: Any, file: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        with writing:
            assert stepped.wait(60)
            stepped.clear()
            original(checkpoint, file)
            written.append(file.name)

    monkeypatch.setattr(torch, "save", save)
    module = Training(lambda step: stepped.set())
    monkeypatch.setattr(Snapshots, "on_train_end", lambda self, trainer, _: (stepped.set(), self.settle(trainer)))
    fit(module, tmp_path)
    assert len(written) == 5
    assert names(tmp_path) == [4, 5]
    for step in (4, 5):
        saved = AtomicCheckpointIO().load_checkpoint(tmp_path / f"step-{step:08d}.ckpt")
        expected = module.weights[step] if step < 5 else module.layer.weight
        assert torch.equal(saved["state_dict"]["layer.weight"], expected)
        assert saved["global_step"] == step


def test_a_snapshot_that_cannot_be_written_stops_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    original = snapshots.seal

    def seal(path: Path) -> None:
        if path.name > "step-00000002.ckpt":
            failed.set()
            raise OSError(28, "No space left on device")
        original(path)

    monkeypatch.setattr(snapshots, "seal", seal)
    module = Training(lambda step: failed.wait(60) if step == 3 else None)
    with pytest.raises(UserError, match="the disk or your quota is full"):
        fit(module, tmp_path, steps=100)
    assert max(module.weights) <= 4
    assert names(tmp_path) == [1, 2]


@pytest.mark.parametrize("ending", ["error", "signal", "end"])
def test_however_training_ends_the_newest_snapshot_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    original = torch.save

    def save(checkpoint: Any, file: Any) -> None:
        if checkpoint["global_step"] == 3:
            threading.Event().wait(0.5)
        original(checkpoint, file)

    def end(step: int) -> None:
        if step == 3 and ending == "error":
            raise ValueError
        if step == 2 and ending == "signal":
            monkeypatch.setattr(stop_request.request, "received", 15)

    monkeypatch.setattr(torch, "save", save)
    module = Training(end)
    if ending == "end":
        fit(module, tmp_path, steps=3)
    else:
        with pytest.raises(ValueError if ending == "error" else stop_request.Stopped):
            fit(module, tmp_path)
    assert newest_snapshot(tmp_path) == tmp_path / "step-00000003.ckpt"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_copy_shares_nothing_and_is_of_the_same_types() -> None:
    weights = OrderedDict(weight=torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last))
    weights._metadata = {"version": 1}  # type: ignore[attr-defined]
    original = {"state_dict": weights, "history": [(1.0, [2, torch.ones(())])], "epoch": 0, "none": None}
    copied = snapshots.copy_of(original)
    assert type(copied["state_dict"]) is OrderedDict
    assert copied["state_dict"]._metadata == {"version": 1}
    assert copied["state_dict"]["weight"].is_contiguous(memory_format=torch.channels_last)
    before = weights["weight"].clone()
    weights["weight"].zero_()
    original["history"].append((3.0, []))  # type: ignore[union-attr, attr-defined]
    original["history"][0][1][1].zero_()  # type: ignore[index]
    assert torch.equal(copied["state_dict"]["weight"], before)
    assert copied["history"] == [(1.0, [2, torch.ones(())])]
