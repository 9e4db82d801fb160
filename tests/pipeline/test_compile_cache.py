"""The compile cache: cleared where it is ours and damaged, and never where it is a user's."""

import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.settings.compile_cache import OURS, VARIABLE, keep_compiled_in, with_compile_cache
from storage.errors import UserError
from storage.files import own_folder


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, OURS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def failing(times: int, error: Callable[[Path], Exception], cache_dir: Path) -> Callable[[], list[str]]:
    """A command that leaves a file in the compile cache and fails so many times; it returns what lies there then."""
    calls: list[int] = []

    def run() -> list[str]:
        keep_compiled_in(str(cache_dir))
        folder = Path(os.environ[VARIABLE])
        calls.append(1)
        (folder / "ab").mkdir(exist_ok=True)
        (folder / f"ab/{len(calls)}.so").touch()
        if len(calls) <= times:
            raise error(folder / "ab/1.so")
        return sorted(path.name for path in folder.rglob("*.so"))

    return run


def too_short(path: Path) -> Exception:
    return ImportError(f"{path}: file too short")


def test_a_damaged_cache_is_cleared_and_compiled_anew_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert with_compile_cache(failing(0, too_short, tmp_path)) == ["1.so"]
    assert with_compile_cache(failing(1, too_short, tmp_path)) == ["2.so"]
    assert "file too short" in capsys.readouterr().err
    with pytest.raises(ImportError):
        with_compile_cache(failing(2, too_short, tmp_path))


def test_other_errors_clear_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        with_compile_cache(failing(1, lambda path: ValueError("mine"), tmp_path))
    assert [path.name for path in tmp_path.rglob("*.so")] == ["1.so"]


def test_a_command_that_compiles_nothing_makes_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="mine"):
        with_compile_cache(lambda: int("mine"))
    assert not list(tmp_path.iterdir())


def test_a_users_compile_cache_is_used_and_never_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = tmp_path / "torchinductor_mine"  # much like PyTorch's own
    mine.mkdir()
    (mine / "kept.so").touch()
    monkeypatch.setenv(VARIABLE, str(mine))
    with pytest.raises(UserError, match=f"{VARIABLE}={mine}.*file too short"):
        with_compile_cache(failing(1, too_short, tmp_path / "cache"))
    assert sorted(path.name for path in mine.rglob("*.so")) == ["1.so", "kept.so"]
    with pytest.raises(ValueError, match="mine"):
        with_compile_cache(failing(1, lambda path: ValueError("mine"), tmp_path / "cache"))
    assert sorted(path.name for path in tmp_path.rglob("*.so")) == ["1.so", "kept.so"]


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled/thesis.tex").touch()
    with_compile_cache(failing(1, too_short, tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compiled", "compiled-2"]
    assert (tmp_path / "compiled/thesis.tex").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give a folder to another user")
def test_machine_code_of_another_user_is_not_loaded(tmp_path: Path) -> None:
    os.chown(own_folder(tmp_path / "compiled"), 65534, 65534)
    keep_compiled_in(str(tmp_path))
    assert VARIABLE not in os.environ


def test_a_library_that_is_cut_is_removed_before_it_is_loaded(tmp_path: Path) -> None:
    """To load it is a bus error. The last part of a file may lie behind what loading looks at."""
    folder = own_folder(tmp_path / "compiled")
    (folder / "ab").mkdir()
    (folder / "locks").mkdir()
    header = struct.pack("<6s34xQ10x2H2x", b"\x7fELF\x02\x01", 100, 64, 2)  # two sections, told of from byte 100 on
    for name, size in {"whole": 228, "cut": 227, "linked": 90}.items():
        (folder / f"ab/{name}.so").write_bytes(header.ljust(size, b"\0"))
    (folder / "ab/text.so").write_text("no library")  # that is an error in words
    with FileLock(folder / "locks/linked.lock"):
        keep_compiled_in(str(tmp_path))
    assert sorted(path.stem for path in folder.glob("ab/*")) == ["linked", "text", "whole"]
