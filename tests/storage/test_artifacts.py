"""Artifacts are whole or an error: truncated, altered, mislabelled and half-made files, and remembered digests."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import storage.artifacts as artifacts
import storage.digests as digests
import storage.files as files
from storage.artifacts import entry_path, make_once, read_artifact, write_artifact
from storage.digests import file_digest
from storage.errors import DamagedArtifactError, MissingArtifactError, UserError
from storage.files import lock_of, remembered_json
from storage.fingerprints import fingerprint


def example_tensors() -> dict[str, torch.Tensor]:
    values = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "values": values,
        "column": values[:, 1],  # a strided view that shares the memory of `values`
        "row": values[1],
        "half": values.bfloat16(),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "mask": torch.tensor([True, False]),
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "embeddings.safetensors"
    write_artifact(path, "embeddings", example_tensors(), {"seed": 3, "grid": {2: 1, 10: float("nan")}})
    return path


def test_round_trip_keeps_every_tensor_and_the_metadata(written: Path):
    artifact = read_artifact(written, "embeddings")
    assert artifact.tensors.keys() == example_tensors().keys()
    for name, tensor in example_tensors().items():
        assert artifact.tensors[name].dtype == tensor.dtype
        assert torch.equal(artifact.tensors[name], tensor)
    assert artifact.meta == {"seed": 3, "grid": {"2": 1, "10": None}}


def test_every_flipped_byte_and_every_truncation_is_noticed(written: Path):
    content = written.read_bytes()
    for position in range(len(content)):
        written.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(UserError, match=written.name):
            read_artifact(written, "embeddings")
    for length in range(0, len(content), 7):
        written.write_bytes(content[:length])
        with pytest.raises(DamagedArtifactError):
            read_artifact(written, "embeddings")


def test_messages_for_missing_wrong_kind_and_newer_format(written: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MissingArtifactError, match=r"no such file \(embeddings\)"):
        read_artifact(written.with_name("other.safetensors"), "embeddings")
    with pytest.raises(UserError, match="holds 'embeddings'; expected 'neighbours'"):
        read_artifact(written, "neighbours")
    monkeypatch.setattr(artifacts, "FORMAT_VERSION", 2)
    write_artifact(written, "embeddings", {}, {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer version"):
        read_artifact(written, "embeddings")


def test_make_once_sets_a_damaged_file_aside_and_makes_it_again(written: Path, caplog: pytest.LogCaptureFixture):
    content = bytearray(written.read_bytes())
    content[-1] ^= 1
    written.write_bytes(content)
    made = make_once(written, "embeddings", lambda: ({"values": torch.ones(2)}, {"seed": 4}))
    assert made.meta == {"seed": 4}
    assert written.with_name(f"{written.name}.damaged").read_bytes() == content
    assert "Set aside" in caplog.text

    def forbidden() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        raise AssertionError("an artifact that is there was made again")

    assert make_once(written, "embeddings", forbidden).meta == {"seed": 4}


def _make_in_process(path: Path, log_path: Path) -> None:
    def make() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        with log_path.open("a") as file:
            file.write("made\n")
        return {"values": torch.ones(1000)}, {}

    make_once(path, "embeddings", make)


def test_processes_that_want_the_same_artifact_make_it_once(tmp_path: Path):
    log_path = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_make_in_process, args=(tmp_path / "a.safetensors", log_path)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log_path.read_text() == "made\n"


def test_fingerprint_depends_on_content_alone():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, hashed = tmp_path / "image.png", []
    hash_file = digests._hash_file
    monkeypatch.setattr(digests, "SETTLED_AFTER_NS", -1)
    monkeypatch.setattr(digests, "_hash_file", lambda path: hashed.append(path) or hash_file(path))
    path.write_bytes(b"one")
    first = file_digest(path, tmp_path / "cache")
    assert file_digest(path, tmp_path / "cache") == first == hash_file(path)
    assert len(hashed) == 1
    stat_before = path.stat()
    path.write_bytes(b"two")  # same size and, restored, the same mtime: the ctime gives it away
    os.utime(path, ns=(stat_before.st_atime_ns, stat_before.st_mtime_ns))
    assert file_digest(path, tmp_path / "cache") == hash_file(path) != first


@pytest.mark.parametrize("what", ["digests", "survey"])
def test_of_processes_that_start_together_one_reads_the_files(tmp_path: Path, what: str) -> None:
    """As torchrun's ranks: the others wait for its digests, or for what it found out about the images."""
    path, log = tmp_path / "image.png", tmp_path / "log"
    path.write_bytes(b"pixels")
    os.utime(path, (1, 1))
    hash_file = digests._hash_file

    def slow(path: Path) -> str:
        with log.open("a") as file:
            file.write("read\n")
        time.sleep(0.3)
        return hash_file(path)

    def work() -> str:
        if what == "survey":
            return remembered_json(tmp_path / "cache/survey.json", 1, lambda: {"found": slow(path)})["found"]
        return file_digest(path, tmp_path / "cache")

    pids = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "SETTLED_AFTER_NS", -1)
        patch.setattr(digests, "_hash_file", slow)
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = 0 if work() == hash_file(path) else 2
                finally:
                    os._exit(code)
            pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    assert log.read_text() == "read\n"


def test_who_waits_says_so_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "TOLD_AFTER", 0.01)
    monkeypatch.setattr(files, "LONGEST_WAIT", 0.01)
    with lock_of(tmp_path / "survey.json"), lock_of(tmp_path / "survey.json"):
        assert "another process" in caplog.text
        assert "after an hour" in caplog.text


def test_a_damaged_memory_of_digests_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "image.png"
    path.write_bytes(b"pixels")
    os.utime(path, (1, 1))
    expected = file_digest(path, tmp_path)
    for damage in (b"no database at all" * 100, bytes(4096)):
        (tmp_path / "file_digests.sqlite").write_bytes(damage)
        assert file_digest(path, tmp_path) == expected
    assert "file_digests.sqlite is damaged" in caplog.text


def test_an_entry_is_believed_by_what_it_says_not_by_its_name(written: Path, caplog: pytest.LogCaptureFixture):
    """Entries that are swapped, of another kind, of another program, or no file; each is left as it is, and named."""
    made_from = {"seed": 3, "grid": {2: 1}}
    second = written.with_name("embeddings-2.safetensors")
    assert entry_path(written, "embeddings", made_from) == written
    assert entry_path(written, "embeddings", {"seed": 3, "unknown to earlier versions": 1}) == written
    for other in ({"seed": 4}, {"seed": 3, "grid": {2: 2}}, {"seed": 3, "grid": {3: 1}}, {"nothing of it": 1}):
        assert entry_path(written, "embeddings", other) == second
    assert entry_path(written, "neighbours", made_from) == second
    assert "embeddings.safetensors: holds embeddings made from other grid" in caplog.text
    save_file({"values": torch.ones(1)}, second)
    (written.parent / "embeddings-3.safetensors").mkdir()
    (written.parent / "embeddings-4.safetensors").symlink_to("nowhere")
    text = written.parent / "embeddings-5.safetensors"
    text.write_text("mine\n")
    before = {path: path.read_bytes() for path in (written, second, text)}
    sixth = entry_path(written, "neighbours", made_from)
    assert sixth.name == "embeddings-6.safetensors"
    made = make_once(sixth, "neighbours", lambda: ({"values": torch.zeros(2)}, {"seed": 3}))
    assert made.tensors["values"].tolist() == [0, 0]
    assert entry_path(written, "neighbours", made_from) == sixth
    assert {path: path.read_bytes() for path in before} == before


def test_an_entry_with_a_flipped_bit_is_damaged_and_not_taken_for_another(written: Path):
    content = written.read_bytes()
    place = content.index(b'\\"seed\\": 3') + 10
    written.write_bytes(content[:place] + b"5" + content[place + 1 :])
    assert entry_path(written, "embeddings", {"seed": 3}) == written
    with pytest.raises(DamagedArtifactError):
        read_artifact(written, "embeddings")


def test_remembered_json_of_something_else_is_left_as_it_is(tmp_path: Path):
    path = tmp_path / "bad.json"
    assert remembered_json(path, "one", lambda: {"a": 1}) == {"a": 1}
    content = path.read_bytes()
    assert remembered_json(path, "two", lambda: {"a": 2}) == {"a": 2}
    assert path.read_bytes() == content
    for made_from, found in (("one", 1), ("two", 2)):
        assert remembered_json(path, made_from, dict) == {"a": found}
    path.write_bytes(content[:-9])
    assert remembered_json(path, "one", lambda: {"a": 3}) == {"a": 3}
    assert path.with_name("bad.json.damaged").read_bytes() == content[:-9]


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A folder that every user may enter and read, as pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


AS_ANOTHER_USER = """
import filelock, os, sys
from pathlib import Path
from storage.artifacts import entry_path, make_once
from storage.digests import file_digests
from storage.files import remembered_json
os.setgid(65534)
os.setuid(65534)
place = Path(sys.argv[1])
print(file_digests([place / "a.png", place / "b.png"], place / "cache"))
print(remembered_json(place / "cache/known.json", 1, dict))
print(remembered_json(place / "cache/new.json", 1, lambda: {"b": 2}))
found = entry_path(place / "cache/a.safetensors", "embeddings", {"seed": 3})
print(found.name, make_once(found, "embeddings", dict).meta["seed"])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
@pytest.mark.parametrize("damaged", [False, True])
def test_another_users_cache_is_read_and_done_without_where_it_cannot_be(anyones: Path, damaged: bool):
    place, cache = anyones, anyones / "cache"
    for name in ("a.png", "b.png"):
        (place / name).write_bytes(name.encode())
        os.utime(place / name, (1, 1))
    file_digest(place / "a.png", cache)
    remembered_json(cache / "known.json", 1, lambda: {"a": 1})
    write_artifact(cache / "a.safetensors", "embeddings", {}, {"seed": 3})
    if damaged:
        (cache / "file_digests.sqlite").write_bytes(b"no database at all" * 100)
    before = {path: path.read_bytes() for path in cache.iterdir()}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER, str(place)], capture_output=True, text=True, env=environment
    )
    expected = [digests._hash_file(place / name) for name in ("a.png", "b.png")]
    assert done.stdout.splitlines() == [str(expected), "{'a': 1}", "{'b': 2}", "a.safetensors 3"], done.stderr
    assert {path: path.read_bytes() for path in cache.iterdir()} == before
