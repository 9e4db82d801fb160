"""Files and settings that carry a command: none runs."""

import pickle
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.snapshots import seal
from datamodules.assignment_files import read_cluster_ids

from .conftest import EDM, Trials
from .jobs import ROOT, Forks

pytestmark = pytest.mark.faults


class Canary:
    """A pickle that makes a file when it is loaded in the ordinary way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickles(canary: Path) -> dict[str, bytes]:
    """The canary as a bare pickle, as PyTorch's ZIP, and as PyTorch's old format."""
    zipped, old = BytesIO(), BytesIO()
    torch.save({"state_dict": Canary(canary)}, zipped)
    torch.save({"state_dict": Canary(canary)}, old, _use_new_zipfile_serialization=False)
    return {"bare": pickle.dumps(Canary(canary)), "zip": zipped.getvalue(), "old": old.getvalue()}


def test_canary_pickles(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    formats = list(pickles(canary).items())
    places = ("snapshot", "sealed snapshot", "assignments", "inception", "edm")
    cases = [(place, name, content) for place in places for name, content in formats]
    row = trials("canary pickle as snapshot, assignments, Inception weights, EDM pickle: none runs", len(cases))
    for rng, (place, _, content) in zip(row, cases, strict=False):
        folder = tmp_path / f"{rng.random()}"
        folder.mkdir()
        if "snapshot" in place:
            path = folder / "run/snapshots/step-00000099.ckpt"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            if place == "sealed snapshot" and zipfile.is_zipfile(path):
                seal(path)
            job = forks.start("train", *EDM, "run_dir=run", folder=folder)
        else:
            (folder / "a.pt").write_bytes(content)
            settings = {
                "assignments": ["train", "dataset.max_images=300", "assignments=a.pt"],
                "inception": ["embed", "backbone=inception", "backbone.path=a.pt"],
                "edm": ["import_edm", "pickle=a.pt"],
            }[place]
            job = forks.start(*settings, folder=folder)
        code = job.wait()
        assert not canary.exists()
        assert "Traceback" not in job.words()
        # A file that is no sealed snapshot is set aside, and the training starts anew.
        assert code == (0 if "is damaged" in job.words() else 2), job.words()


HOSTILE = [
    "os.system", "builtins.eval", "builtins.exec", "subprocess.run", "torch.load", "torch.hub.load", "joblib.load",
    "builtins.open", "transformers.AutoModel.from_pretrained", "pickle.load",
]  # fmt: skip


def test_hostile_targets(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    """In our own groups and in Hydra's, which would instantiate them."""
    places = ("+network._target_", "+hydra.callbacks.x._target_")
    cases = [f"{place}={target}" for place in places for target in HOSTILE]
    for rng, setting in zip(trials("20 hostile _target_: none is called", len(cases)), cases, strict=False):
        folder = tmp_path / f"{rng.random()}"
        arguments = [f"{setting.partition('._target_')[0]}._args_=['touch canary']"]
        job = forks.start("train", *EDM, setting, *arguments, folder=folder)
        assert job.wait() == 2
        assert "_target_" in job.words()
        assert not (folder / "run").exists()
        assert not (folder / "canary").exists()


def test_nothing_is_made_from_names_in_settings() -> None:
    for path in ROOT.glob("*/**/*.py"):
        if path.is_relative_to(ROOT / "tests") or ".venv" in path.parts:
            continue
        text = path.read_text()
        assert not re.search(r"\binstantiate\(|trust_remote_code=True|weights_only=False|allow_pickle=True", text), path
    assert not [path for path in (ROOT / "configs").rglob("*.yaml") if "_target_" in path.read_text()]
    assert "tensorboard.main --logdir runs --host localhost" in (ROOT / "Makefile").read_text()


def test_assignments_with_objects(tmp_path: Path) -> None:
    import numpy as np

    from datamodules.artifacts import UserError

    np.save(tmp_path / "a.npy", np.array([Canary(tmp_path / "canary")]), allow_pickle=True)
    with pytest.raises(UserError):
        read_cluster_ids(tmp_path / "a.npy", "", None)
    assert not (tmp_path / "canary").exists()
