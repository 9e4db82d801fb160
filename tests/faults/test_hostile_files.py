"""Hostile files: one message, no more memory than the file can mean, and nothing that a terminal obeys."""

import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from storage.artifacts import _checksum

from .conftest import Trials
from .jobs import Forks
from .test_cache import make_images

pytestmark = pytest.mark.faults

READER = """
import json, os, resource, sys, time
from pathlib import Path
import torch
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import open_source
from datamodules.images.survey import survey
from datamodules.embeddings.embedding_files import read_embedding_file
from datamodules.plain_files import read_csv
from datamodules.pseudo_labels.assignment_files import read_cluster_ids
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.diffusion.interop import read_edm_pickle
from metrics.frechet import Statistics
from pipeline.running.finished_run import read_any_summary
from storage.artifacts import read_artifact
from storage.errors import UserError

def images(path):
    source = open_source(DatasetSettings(kind=path.suffix[1:].replace("npz", "npy"), name="x", path=str(path)))
    survey(source, "cache")
    source.image(0)

for name, read, path in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        signal = "it was read"
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            eval(read)(Path(path))
        except (UserError, ValueError) as error:
            signal = f"refused: {error}"
        except BaseException as error:
            signal = f"{type(error).__name__}: {error}"
        print(json.dumps([name, signal]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def npy(shape: str, dtype: str = "|u1", fortran: str = "False") -> bytes:
    """An `.npy` file that promises an array, with four bytes behind it."""
    header = f"{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0\0\0\0"


def zipped(entries: dict[str, bytes | int]) -> bytes:
    """A compressed ZIP; a number is so many megabytes of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            with archive.open(name, "w", force_zip64=True) as entry:
                for part in [bytes(1 << 20)] * content if isinstance(content, int) else [content]:
                    entry.write(part)
    return file.getvalue()


def lying(field: int, size: int, value: int) -> bytes:
    """A ZIP of one image whose directory says another number, `field` bytes into its entry."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1 << 20))
    content = bytearray(file.getvalue())
    place = content.index(b"PK\x01\x02") + field
    content[place : place + size] = value.to_bytes(size, "little")
    return bytes(content)


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def deep(depth: int = 100_000) -> bytes:
    return b"[" * depth + b"]" * depth


def torch_file(value: object, compress: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    if not compress:
        return file.getvalue()
    with zipfile.ZipFile(file) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()})


def many_names(count: int, megabytes: int) -> bytes:
    """A ZIP whose directory has many entries, all of them the same place in the file."""
    whole = zipped({"x000000.npy": npy(f"({megabytes << 20},)")[:-4] + bytes(megabytes << 20)})
    start, end = whole.index(b"PK\x01\x02"), whole.rindex(b"PK\x05\x06")
    entries = b"".join(whole[start:end].replace(b"x000000", b"x%06d" % number) for number in range(count))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), start, 0)
    return whole[:start] + entries + tail


def artifact(tensors: dict[str, torch.Tensor], **header: Any) -> bytes:
    """An artifact with any header, and the checksum that goes with it."""
    return save(tensors, {"cedm": json.dumps({**header, "sha256": _checksum(header, tensors)})})


def head(**architecture: int) -> bytes:
    """A clustering head that is larger by what it says than by its weights."""
    meta = {"architecture": architecture, "backbone": {}, "temperature": 0.1}
    return artifact({"mean": torch.zeros(4), "std": torch.ones(4)}, kind="clustering-head", format=1, meta=meta)


def cedm_header(text: str) -> bytes:
    return safetensors(json.dumps({"__metadata__": {"cedm": text}}).encode())


EMBEDDINGS, ARTIFACT = "lambda path: read_embedding_file(str(path))", "lambda path: read_artifact(path, 'x')"
CASES: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "ZIP entry of zeros": ("images", "a.zip", lambda: zipped({"a.png": 1200})),
    "ZIP dataset.json of zeros": ("images", "a.zip", lambda: zipped({"a.png": b"x", "dataset.json": 1200})),
    "ZIP real size": ("images", "a.zip", lambda: lying(24, 4, 2**32 - 2)),
    "ZIP small real size": ("images", "a.zip", lambda: lying(24, 4, 10)),
    "ZIP compressed size": ("images", "a.zip", lambda: lying(20, 4, 2**32 - 2)),
    "ZIP place": ("images", "a.zip", lambda: lying(42, 4, 2**32 - 2)),
    "npy of 10^12": ("images", "a.npy", lambda: npy("(1000000000000, 8, 8)")),
    "npy of 10^9": (EMBEDDINGS, "a.npy", lambda: npy("(1000000000, 4)", "<f4")),
    "npy of -1": ("images", "a.npy", lambda: npy("(-1, 2, 2)")),
    "npy of nothing": (EMBEDDINGS, "a.npy", lambda: npy("(1000000000000, 0)", "<f4")),
    "npy of empty texts": (EMBEDDINGS, "a.npy", lambda: npy("(1000000000, 4)", "<U0")),
    "npy of objects": ("images", "a.npy", lambda: npy("(1, 2, 2)", "|O")),
    "npy deep header": ("images", "a.npy", lambda: npy("(" * 3000 + ")" * 3000)),
    "npz of 10^12": ("images", "a.npz", lambda: zipped({"images.npy": npy("(1000000000000, 8, 8)")})),
    "npz of zeros": (
        "images", "a.npz", lambda: zipped({"images.npy": npy("(3000000, 32, 32)") + bytes(100 << 20)})
    ),
    "reference of 10^12": (
        "Statistics.load_npz", "a.npz",
        lambda: zipped({"mu.npy": npy("(1000000,)", "<f8"), "sigma.npy": npy("(1000000, 1000000)", "<f8")}),
    ),
    "safetensors deep header": (ARTIFACT, "a.safetensors", lambda: safetensors(deep())),
    "safetensors deep text": (ARTIFACT, "a.safetensors", lambda: cedm_header(deep().decode())),
    "safetensors long header": (ARTIFACT, "a.safetensors", lambda: safetensors(b"{}", 2**40)),
    "safetensors overlap": (
        EMBEDDINGS, "a.safetensors",
        lambda: safetensors(json.dumps({
            name: {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]} for name in "ab"
        }).encode()) + b"\0\0\0\0",
    ),
    "pt that inflates": (EMBEDDINGS, "a.pt", lambda: torch_file(torch.zeros(1 << 20, 64), compress=True)),
    "pt of one value": (EMBEDDINGS, "a.pt", lambda: torch_file(torch.zeros(1).expand(10**9, 4))),
    "npz of one array by 1,000 names": (EMBEDDINGS, "a.npz", lambda: many_names(1000, 60)),
    "floats of 4 bits": (
        "lambda path: read_cluster_ids(path, '', None)", "a.safetensors",
        lambda: safetensors(b'{"x": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}') + bytes(4),
    ),
    "artifact without a kind": (ARTIFACT, "a.safetensors", lambda: artifact({"x": torch.zeros(2)}, meta={})),
    "head of 10^10": (
        "ClusteringHead.from_pretrained", "a.safetensors",
        lambda: head(embedding_dim=100_000, hidden_dim=100_000, num_clusters=3, bottleneck_dim=4),
    ),
    "summary that is deep": ("lambda path: read_any_summary(path.parent)", "summary.json", deep),
    "summary of other words": (
        "lambda path: read_any_summary(path.parent)", "summary.json", lambda: b'{"command": "train", "arguments": [1]}'
    ),
    "csv of one line": ("read_csv", "a.csv", lambda: b"id,cluster\n" + b"a," * (5 << 20)),
    "pickle of a high number": ("read_edm_pickle", "a.pkl", lambda: b"\x80\x04Nr\xff\xff\xff\x7f."),
}  # fmt: skip


def test_hostile_files(trials: Trials, tmp_path: Path) -> None:
    """Each is read in a process of its own."""
    row = f"{len(CASES)} files whose headers lie, or that inflate: refused by name, within 1 GB of memory"
    work = []
    for number, (case, (read, name, make)) in enumerate(CASES.items()):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(make())
        work.append([case, read, str(path)])
    process = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(work), capture_output=True, text=True, timeout=300, check=True, cwd=tmp_path,
    )  # fmt: skip
    ends = dict(map(json.loads, process.stdout.splitlines()))
    for _, case in trials.each(row, list(CASES), least=len(CASES)):
        assert ends[case].startswith("refused: "), (case, ends[case])
        assert "Unable to allocate" not in ends[case]  # refused by what the file says, not by the system
        assert len(ends[case]) < 1000


NAMES = ["a\x1b]0;title\x07", "b\x1b[2J", "c\x9b31m", "d\u202egnp", "e\rf\x08\x7f"]


def test_control_characters(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    row = "5 names with control characters, of images, suffixes, columns, settings: none is printed"
    for _, name in trials.each(row, NAMES):
        folder = tmp_path / name[0]
        make_images(folder / "images")
        Image.new("RGB", (16, 16)).save(folder / "images" / f"{name}.png")
        (folder / "images" / f"x.{name}").write_text("no image")
        (folder / "labels.csv").write_text(f"id,label{name}\n1.png,1\n")
        for words in ([], ["dataset.on_bad_file=skip", "dataset.labels=labels.csv"], [f"dataset.{name}=3"]):
            settings = ["dataset=folder", "dataset.path=images", "dataset.resolution=16", "backbone=pixels", *words]
            job = forks.start("embed", *settings, folder=folder)
            assert job.wait() == 2
            assert "error: " in job.words()
            assert job.words().replace("\n", "").replace("\r", "").isprintable()
