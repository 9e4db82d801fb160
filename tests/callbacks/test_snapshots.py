"""Which snapshot a run goes on from."""

from pathlib import Path

import pytest
import torch

from callbacks.snapshots import AtomicCheckpointIO, newest_snapshot
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
