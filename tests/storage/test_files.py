"""Files that are written whole, set aside, remembered and sealed; what others left is left alone."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from storage.artifacts import lock_of, write_artifact
from storage.errors import DamagedArtifactError
from storage.files import (
    atomic_path,
    is_own,
    own_folder,
    read_sealed_json,
    remembered_json,
    remove_abandoned,
    set_aside,
    write_json,
    write_sealed_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "summary.json"
    write_json(path, {"fid": float("inf"), "shape": (2, 3)})
    assert json.loads(path.read_text()) == {"fid": None, "shape": [2, 3]}

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_half()
    assert json.loads(path.read_text())["shape"] == [2, 3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOENT])
def test_where_no_folder_can_be_made_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    """On a read-only file system, and on one that holds no files, as /proc."""

    def refuse(path: Path, mode: int = 0o777) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    for place in (tmp_path, tmp_path / "deep/er"):
        with pytest.raises(PermissionError, match=os.strerror(number)):
            write_json(place / "a.json", {})
        assert remembered_json(place / "a.json", 1, lambda: {"a": 2}) == {"a": 2}
        with lock_of(place / "deep/est/a"):
            pass
        assert own_folder(place / "new") == place / "new"


def test_files_are_written_where_there_is_no_fcntl(tmp_path: Path):
    code = "import sys; sys.modules['fcntl'] = None; from storage.files import write_json; write_json(sys.argv[1], {})"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=True)
    assert json.loads((tmp_path / "a.json").read_text()) == {}


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_left_alone(tmp_path: Path):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with atomic_path(tmp_path / "deep" / "a.json") as temporary:
            temporary.write_text("half")
            os.write(write_end, b"written")
            time.sleep(60)
        os._exit(1)
    os.read(read_end, 7)
    remove_abandoned(tmp_path)
    assert [path.read_text() for path in tmp_path.rglob("a.json")] == ["half"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    remove_abandoned(tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    assert not list((tmp_path / "deep").iterdir())


def test_folders_of_other_programs_are_not_taken_for_abandoned_ones(tmp_path: Path):
    names = (
        ".mywork.tmp",
        ".x.tmp",
        ".x.0123abcd.tmp",
        ".a.json.0123456789abcdef.tmp",
        "cache.tmp",
        "deep/.y.89abcdef.tmp",
    )
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "thesis.txt").write_text("three years")
        (tmp_path / name / ".lock").touch()
    (tmp_path / ".z.00000000.tmp").symlink_to(tmp_path / ".x.tmp", target_is_directory=True)
    before = sorted(tmp_path.rglob("*"))
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_own_folder_is_marked_and_nobody_elses(tmp_path: Path):
    (tmp_path / "surveys").mkdir()
    (tmp_path / "surveys/mine.png").touch()
    own = own_folder(tmp_path / "surveys")
    assert own == own_folder(tmp_path / "surveys") == tmp_path / "surveys-2"
    assert [is_own(own), is_own(tmp_path / "surveys"), is_own(tmp_path)] == [True, False, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["surveys", "surveys-2"]


def test_a_second_damaged_file_does_not_take_the_place_of_the_first(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    for content in ("first", "second"):
        path.write_text(content)
        set_aside(path)
    assert sorted(found.read_text() for found in tmp_path.iterdir()) == ["first", "second"]


def test_tidying_up_beside_a_living_writer_disturbs_neither(tmp_path: Path):
    """Its temporary folders come and go while another command looks for abandoned ones."""
    pid = os.fork()
    if pid == 0:
        try:
            for number in range(100_000):
                write_json(tmp_path / f"{number % 3}" / "a.json", {"number": number})
        finally:
            os._exit(1)
    try:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            remove_abandoned(tmp_path)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # the writer goes on
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_files_are_readable_by_others_unless_the_umask_forbids_it(tmp_path: Path):
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            write_artifact(tmp_path / "a.safetensors", "embeddings", {"values": torch.ones(1)}, {})
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode


def test_a_sealed_file_has_no_bit_to_spare(tmp_path: Path):
    path = tmp_path / "set-1.json"
    assert read_sealed_json(path) is None
    data = {"distances": [1.5, None], "files": {"05.png": "truncated"}}
    write_sealed_json(path, data)
    assert read_sealed_json(path) == data
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with suppress(DamagedArtifactError):
            assert {key: value for key, value in (read_sealed_json(path) or {}).items() if key in data} == data
