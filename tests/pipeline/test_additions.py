"""A package of a user's, installed into a folder of the import path: its network, objectives and data set."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import open_source
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.objective import EDMObjective
from pipeline.settings.compose import compose
from storage import additions
from storage.errors import UserError

from .conftest import TINY_EDM, TINY_TEMI, Cedm

CODE = '''
import numpy as np
import torch
from torch import nn

from datamodules.images.arrays import ArrayReader
from lightning_modules.clustering.objectives import SCANLoss
from lightning_modules.diffusion.objective import EDMObjective


class OneLayer(nn.Module):
    """One convolution of the image, with a shift for each label."""

    def __init__(self, settings, img_resolution, img_channels, label_dim, augment_dim):
        super().__init__()
        self.convolution = nn.Conv2d(img_channels, img_channels, 3, padding=1)
        self.labels = nn.Linear(label_dim, img_channels) if label_dim else None

    def forward(self, x, c_noise, class_labels=None, augment_labels=None):
        shift = 0 if self.labels is None else self.labels(class_labels)[:, :, None, None]
        return self.convolution(x) + shift


class Flat(EDMObjective):
    """All noise levels weigh the same."""

    def weight(self, sigma):
        return torch.ones_like(sigma)


class TwiceSCAN(SCANLoss):
    def forward(self, student_logits, teacher_logits):
        return 2 * super().forward(student_logits, teacher_logits)


def noise(settings):
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
    return ArrayReader(images, kind=settings.kind)
'''
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "my-cedm"
version = "1.0"
[project.entry-points."cedm.networks"]
one_layer = "my_cedm:OneLayer"
[project.entry-points."cedm.objectives"]
flat = "my_cedm:Flat"
twice_scan = "my_cedm:TwiceSCAN"
[project.entry-points."cedm.datasets"]
noise = "my_cedm:noise"
[tool.setuptools]
py-modules = ["my_cedm"]
"""
DATA = ["dataset.kind=noise", "dataset.name=noise", "clustering.num_neighbours=20", "training.num_workers=0"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the package into."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "my_cedm.py").write_text(CODE)
    (source / "pyproject.toml").write_text(PROJECT)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    return target


def test_from_clusters_to_generated_images(
    cedm: Cedm, workplace: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(package))
    for words in (["embed", *DATA], ["cluster", *DATA, *TINY_TEMI, "clustering.objective=twice_scan"]):
        done = cedm(*words)
        assert done.code == 0, done.err
    words = [*DATA, *TINY_TEMI, *TINY_EDM, "clustering.objective=twice_scan", "run_dir=run"]
    words += ["network.architecture=one_layer", "training.objective=flat", "training.duration_kimg=0.3"]
    done = cedm("train", *words)
    assert (done.code, "one_layer, 0.00 M parameters, 5 clusters" in done.out) == (0, True), done.err
    denoiser = Denoiser.from_pretrained("run")
    assert (type(denoiser.model).__name__, type(denoiser.objective).__name__) == ("OneLayer", "Flat")
    sigma = torch.tensor([0.1, 10.0])
    assert denoiser.objective.weight(sigma).tolist() == [1, 1] != EDMObjective().weight(sigma).tolist()
    assert cedm("generate", "ckpt=run", "num=4", "steps=2", "run_dir=made").code == 0
    assert len(list(Path("made/images").rglob("*.png"))) == 4

    monkeypatch.undo()
    with pytest.raises(
        UserError, match=r"of a package that is not installed here: none has it among its cedm\.objectives"
    ):
        Denoiser.from_pretrained(workplace / "run")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("network.architecture=one_layer", "ddpmpp, ncsnpp, adm, or of cedm.networks of a package is expected"),
        ("training.objective=flat", "cedm.objectives"),
        ("clustering.objective=twice_scan", "temi, wmi, pmi, scan, or of cedm.objectives"),
        ("dataset.kind=noise", "cedm.datasets"),
    ],
)
def test_names_of_no_package(word: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        compose("train", [word])


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no_such_module:Net", additions.NETWORKS)
    monkeypatch.setattr(additions, "entry_points", lambda **_: [broken])
    with pytest.raises(UserError, match="no_such_module:Net, cannot be imported"):
        additions.load_addition(additions.NETWORKS, "broken", torch.nn.Module)
    with pytest.raises(UserError, match="no_such_module:Net, cannot be imported"):
        open_source(DatasetSettings(kind="broken"))


def test_an_objective_of_the_other_phase(
    cedm: Cedm, workplace: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(package))
    wrong = cedm("train", "conditioning=none", *TINY_EDM, "training.objective=twice_scan")
    assert (wrong.code, "no subclass of lightning_modules.diffusion.objective.EDMObjective" in wrong.err) == (2, True)
