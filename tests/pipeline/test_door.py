"""What comes in at the door: words that are refused, what is imported for them, values that arrive as typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings.compose import compose
from pipeline.settings.door import path_problem
from pipeline.settings.words import word
from storage.errors import UserError

HEAVY = ("torch", "lightning", "transformers", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help"], 0), (["train", "--help"], 0), (["train", "trainer.device=2"], 2), (["generate", "ckpt=nowhere"], 2)],
)
def test_help_and_mistakes_are_answered_without_importing_anything_large(words: list[str], code: int):
    script = (
        "import sys; from pipeline.__main__ import run\n"
        f"code = run({words!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"[] {code}"


@pytest.mark.parametrize("typed", ["no.such.thing=3", "trainer.max_step=1", "training.momentum=0.5"])
def test_a_setting_that_there_is_not_is_refused_with_a_plus_too(typed: str):
    with pytest.raises(UserError, match=typed.split("=")[0]):
        compose("train", [f"+{typed}"])


PATHS = [
    "a b",
    "a'b",
    'a"b',
    "a\\",
    "/a/${b}",
    "\\${oc.env:HOME}",
    "a,b",
    "[1]",
    "{a:1}",
    "null",
    "1",
    "ä/日本",
    "a\tb",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_arrives_as_it_was_typed(path: str):
    assert compose("embed", ["dataset=folder", word("dataset.path", path)]).dataset.path == path


def test_home_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = compose(
        "generate", ["ckpt=~/runs/a", "cache_dir=~/cache", "run_dir=~/b", "init_from=~/c", "assignments=~/d::e"]
    )
    paths = (settings.ckpt, settings.cache_dir, settings.run_dir, settings.init_from, settings.assignments)
    assert paths == ("/home/me/runs/a", "/home/me/cache", "/home/me/b", "/home/me/c", "/home/me/d::e")


def test_settings_that_a_data_set_brings_for_temi_are_nothing_to_other_methods():
    assert compose("cluster", ["clustering=kmeans"]).clustering.num_clusters == 40
    with pytest.raises(UserError, match=r"clustering\.num_heads"):
        compose("cluster", ["clustering=kmeans", "clustering.num_heads=3"])


def test_what_may_not_be_read_is_not_blamed_on_where_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    labels, folder = tmp_path / "labels.csv", tmp_path / "folder"
    labels.touch()
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK or path not in (labels, folder))
    for path, closed in ((labels, labels), (folder / "inside.npy", folder)):
        said = path_problem(PermissionError(13, "Permission denied", str(path)))
        assert f"{closed} cannot be read. Make it readable" in said
        assert "run_dir" not in said
    assert "run_dir=" in path_problem(PermissionError(13, "Permission denied", str(tmp_path / "new")))
    assert "A file is expected" in path_problem(IsADirectoryError(21, "Is a directory", str(folder)))
