"""The package as a user installs it: a wheel, in an environment and a working folder that know nothing of this one."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_OF_THE_SOURCE = shutil.ignore_patterns(".*", "runs", "cache", "build", "*.egg-info", "__pycache__")
SHORT = [
    "clustering.num_clusters=5",
    "clustering.max_epochs=2",
    "clustering.num_heads=2",
    "map_images=0",
    "network.model_channels=8",
    "training.duration_kimg=1",
    "evaluation.backbone=null",
    "sampler.steps=3",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment with the wheel; libraries are those of this one, but not its `cedm`."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_OF_THE_SOURCE)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    binaries = folder / "env/bin"
    pip = [sys.executable, "-m", "pip", "--python", str(binaries / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, *folder.glob("*.whl")], check=True, capture_output=True)
    (site,) = folder.glob("env/lib/python3*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return binaries


@pytest.mark.slow
def test_embed_cluster_and_train_in_a_folder_with_files_of_our_packages_names(installed: Path, tmp_path: Path):
    for name in ("metrics", "callbacks", "datasets", "storage"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the working folder was imported')\n")
    (tmp_path / "configs").mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command, module = [installed / "cedm"], [installed / "python", "-m", "pipeline"]
    for entry, name in ((module, "embed"), (command, "cluster"), (module, "train"), (command, "train")):
        words = [*entry, name, *SHORT, "trainer.accelerator=cpu"]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "Nothing to do" in done.stdout
    assert len(list(tmp_path.glob("runs/digits/train-temi-5/*/denoiser.safetensors"))) == 1


@pytest.mark.slow
def test_tests_are_not_installed(installed: Path):
    (site,) = installed.parent.glob("lib/python3*/site-packages")
    assert not (site / "tests").exists()
    assert (site / "configs/base.yaml").exists()
    assert (site / "datamodules/images/emoji.txt").exists()
