"""Files and settings that carry a command: none runs."""

import ast
import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.snapshots import seal
from datamodules.pseudo_labels.assignment_files import read_cluster_ids

from .conftest import EDM, Trials
from .jobs import ROOT, Forks
from .test_cache import make_images

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
    cases = [(places[number % 5], formats[number % 3][1]) for number in range(15)]  # all pairs
    row = "canary pickle as snapshot, assignments, Inception weights, EDM pickle: none runs"
    for rng, (place, content) in trials.each(row, cases, least=5):
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
SPELLINGS = [  # in our own groups, and in Hydra's, which would instantiate them
    ["+network._target_={}", "+network._args_=['touch canary']"],
    ["+hydra.callbacks.x._target_={}", "+hydra.callbacks.x._args_=['touch canary']"],
    ["++hydra.callbacks.x._target_='{}'", "++hydra.callbacks.x._args_=['touch canary']"],
    ["+hydra.callbacks={{x:{{_target_:{},_args_:['touch canary']}}}}"],
    ["+hydra.callbacks.x={{ _args_ : ['touch canary'], _target_ : '{}' }}"],
    ["++hydra={{callbacks:{{x:{{_target_:{},_args_:['touch canary']}}}}}}"],
    ["+network.x=[{{_target_:{},_args_:['touch canary']}}]"],
    ["hydra.sweeper._target_={}", "-m"],
]
TARGETS = [
    [word.format(HOSTILE[number % 10]) for word in SPELLINGS[(number + number // 10) % len(SPELLINGS)]]
    for number in range(20)
]
LOG = "version:1,handlers:{x:{class:logging.FileHandler,filename:canary}},root:{handlers:[x]}"
ELSEWHERE = [  # without the word, in settings by which Hydra makes something of a name
    [f"++hydra.job_logging={{{LOG}}}"],
    [f"++hydra.hydra_logging={{{LOG}}}"],
    [f"++hydra={{job_logging:{{{LOG}}}}}"],
    ["++hydra.job_logging.handlers.x.class=logging.FileHandler", "++hydra.job_logging.handlers.x.filename=canary"],
    ["hydra/job_logging=default", "hydra.job_logging.handlers.file.filename=canary"],
    ["+hydra.callbacks.x='${oc.decode:${oc.env:EVIL}}'"],
    ["+hydra.callbacks.x='${oc.create:${oc.env:EVIL}}'"],
    ["hydra.searchpath=[pkg://canary]"],
    ["hydra.launcher._target_=logging.FileHandler", "-m"],
    ["++hydra.job.env_set.PYTHONSTARTUP=canary"],
]
EVIL = {"EVIL": "{_target_: logging.FileHandler, filename: canary}"}


def refuse(forks: Forks, settings: list[str], folder: Path) -> None:
    """Let `train` refuse these settings before it makes anything of them."""
    job = forks.start("train", *EDM, *settings, "run_dir=run", folder=folder, environment=EVIL)
    assert job.wait() == 2, job.words()
    assert "settings may not name code to run" in job.words()
    assert {path.name for path in folder.iterdir()} == {"out0.txt", "err0.txt"}


def test_hostile_targets(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    for rng, settings in trials.each("20 hostile _target_: none is called", TARGETS, least=20):
        refuse(forks, settings, tmp_path / f"{rng.random()}")


def test_hostile_hydra(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    """Logs of a class that is named, and a `_target_` from a variable of the environment, or spelled otherwise."""
    for rng, settings in trials.each("10 hostile settings of Hydra's own: nothing is called", ELSEWHERE, 10):
        refuse(forks, settings, tmp_path / f"{rng.random()}")


OPTIONS = [
    ["--experimental-rerun", "a.pickle"], ["--experimental-rerun=a.pickle"], ["--exp=a.pickle"], ["--e", "a.pickle"],
    ["--", "--experimental-rerun=a.pickle"], ["-m", "--experimental-r=a.pickle"],
    ["--config-dir", "--experimental-rerun=a.pickle"], ["--config-path=pkg://canary"], ["-cp", "pkg://canary"],
    ["-sc", "install=bash"],
]  # fmt: skip


def test_hostile_options(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    for rng, words in trials.each("10 options of Hydra's that run a pickle or import a package: none", OPTIONS, 10):
        folder = tmp_path / f"{rng.random()}"
        folder.mkdir()
        (folder / "a.pickle").write_bytes(pickle.dumps(Canary(folder / "canary")))
        (folder / "canary.py").write_text("open('canary', 'w')")
        job = forks.start("train", *EDM, *words, "run_dir=run", folder=folder)
        assert job.wait() == 2, job.words()
        assert {path.name for path in folder.iterdir()} == {"out0.txt", "err0.txt", "a.pickle", "canary.py"}


CALL = "_target_: logging.FileHandler, filename: canary"
FILES = {  # options of a network in a folder of the user's
    "callback": f"# @package _global_\nhydra: {{callbacks: {{x: {{{CALL}}}}}}}",
    "package": f"# @package hydra.callbacks\nx: {{{CALL}}}",
    "log": f"# @package hydra.job_logging\n{{{LOG}}}",
    "environment": "# @package hydra.job.env_set\nPYTHONSTARTUP: canary",
    "elsewhere": f"x: [{{{CALL}}}]",
    "tag": "x: !!python/object/apply:pathlib.Path.touch [canary]",
    "bomb": "a0: &a0 [1,1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]\n" for i in range(1, 40)),
    "itself": "x: &x [*x]",
    "references": "\n".join(f"v{i}: '${{network.v{i + 1}}}${{network.v{i + 1}}}'" for i in range(40)) + "\nv40: a",
    "large": "x: " + "1" * 200_000,
    "deep": "x: " + "[" * 5000 + "]" * 5000,
    "circle": "defaults: [circle]",
    "text": "x: [",
}


def test_hostile_config_files(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    row = "13 files of --config-dir that name code, or are YAML bombs: refused in 20 s"
    for rng, (name, content) in trials.each(row, list(FILES.items()), least=13):
        folder = tmp_path / name
        (folder / "own/network").mkdir(parents=True)
        (folder / "own/network" / f"{name}.yaml").write_text(content)
        (folder / "own/network/fine.yaml").write_text("defaults: [ddpmpp_small]\ndropout: 0.2\n")
        words = ["--config-dir=own", f"network={name}"]
        if rng.random() < 0.3:
            words = ["--config-dir=own", "-m", f"network={name},{name}"]
        job = forks.start("train", *EDM, *words, "run_dir=run", folder=folder)
        assert job.wait(20) == 2, job.words()
        assert "Traceback" not in job.words()
        assert {path.name for path in folder.iterdir()} <= {"out0.txt", "err0.txt", "own", "runs"}


def test_the_word_may_be_part_of_a_name(forks: Forks, tmp_path: Path) -> None:
    make_images(tmp_path / "on_target_set")
    settings = ["dataset=folder", "dataset.path=on_target_set", "dataset.resolution=16", "backbone=pixels"]
    forks.start("embed", *settings, "clustering.num_neighbours=3", folder=tmp_path).succeed()


def test_nothing_is_made_from_names_in_settings() -> None:
    for path in ROOT.glob("*/**/*.py"):
        if path.is_relative_to(ROOT / "tests") or ".venv" in path.parts:
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {ast.unparse(call.func).rpartition(".")[2] for call in calls}
        given = {ast.unparse(keyword) for call in calls for keyword in call.keywords}
        assert "instantiate" not in called, path
        assert given.isdisjoint({"trust_remote_code=True", "weights_only=False", "allow_pickle=True"}), path
    assert not [path for path in (ROOT / "configs").rglob("*.yaml") if "_target_" in path.read_text()]
    assert "tensorboard.main --logdir runs --host localhost" in (ROOT / "Makefile").read_text()


def test_assignments_with_objects(tmp_path: Path) -> None:
    import numpy as np

    from storage.errors import UserError

    np.save(tmp_path / "a.npy", np.array([Canary(tmp_path / "canary")]), allow_pickle=True)
    with pytest.raises(UserError):
        read_cluster_ids(tmp_path / "a.npy", "", None)
    assert not (tmp_path / "canary").exists()
