"""What is given in place of images is called by its name, and a line says how to go on."""

import io
import os
import pickle
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10

from datamodules.file_kinds import KINDS
from storage.errors import UserError
from storage.files import write_json

from ..opening import opened
from .bad_files import PNG
from .handmade import fits

HDF5 = b"\x89HDF\r\n\x1a\n" + b"\0" * 40
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
quick = settings(max_examples=150, deadline=None, derandomize=True)


def refusal(kind: str, path: Path, **options: object) -> str:
    with pytest.raises(UserError) as error:
        opened(kind, path, **options)
    return str(error.value)


def write_other_kinds(folder: Path) -> dict[str, str]:
    """Files by name, and what they must be called."""
    contents = {
        "h5": (HDF5, "an HDF5 file; set dataset=hdf5"),
        "pickle": (pickle.dumps(IMAGES), "a pickle, which may run code and is not opened"),
        "fits": (fits(np.zeros((2, 2), np.int16)), "a FITS file"),
        "mat": (b"MATLAB 5.0 MAT-file" + b" " * 120, "a MATLAB file"),
        "parquet": (b"PAR1" + b"\0" * 40, "a Parquet file; set dataset=hf"),
        "empty": (b"", "an empty file of 0 bytes"),
        "html": (b"<!DOCTYPE html><html>", "a web page"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        "rar": (b"Rar!\x1a\x07\0", "a RAR archive; unpack it and set dataset=folder"),
        "gz": (b"\x1f\x8b\x08\0", "a compressed file"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    torch.save(torch.zeros(3), folder / "pt")
    with tarfile.open(folder / "tar", "w") as archive:
        archive.add(folder / "h5")
    return {name: words for name, (_, words) in contents.items()} | {"pt": "a file of PyTorch", "tar": "a tar archive"}


@pytest.mark.parametrize(
    ("kind", "suffix"), [("array", ".npy"), ("array", ".npz"), ("zip", ".zip"), ("folder", ".png")]
)
def test_other_files_are_called_by_their_name(kind: str, suffix: str, tmp_path: Path) -> None:
    for name, words in write_other_kinds(tmp_path).items():
        if (kind, suffix, name) in {("array", ".npz", "pt"), ("zip", ".zip", "pt")}:
            continue  # which are archives as well
        path = (tmp_path / name).rename(tmp_path / f"{name}{suffix}")
        assert words in refusal(kind, path)


def test_what_lies_in_a_folder_without_images(tmp_path: Path) -> None:
    for name, words in (
        ("a.npy", "For one array set dataset=npy; for many save them as one array"),
        ("a.h5", "Set dataset=hdf5"),
        ("a.parquet", "Set dataset=hf"),
        ("a.zip", "Set dataset=zip"),
    ):
        folder = tmp_path / f"{name} folder"
        folder.mkdir()
        (folder / name).write_bytes(b"")
        assert words in refusal("folder", folder)
    assert "set dataset=folder" in refusal("array", tmp_path)
    (tmp_path / "one.png").write_bytes(PNG)
    assert "give the folder that holds the images" in refusal("folder", tmp_path / "one.png")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((6, 13, 64, 64), "looks like [N, C, H, W]; expected [N, H, W, C]. Save array.transpose(0, 2, 3, 1), and set "),
        ((6, 3, 10, 12), "looks like [N, C, H, W]"),
        ((6, 224, 7, 7), "dataset.channels=224"),
        ((6, 5, 24, 32), "set dataset.channels=5. If the last axis holds the channels, set dataset.channels=32"),
        ((24, 40, 3, 50), "looks like [H, W, C, N]"),
        ((24, 40, 1, 50), "looks like [H, W, C, N]"),
        ((32, 32, 3, 50), "looks like [H, W, C, N]; expected [N, H, W, C]. Save array.transpose(3, 0, 1, 2)"),
        ((48, 64, 3), "looks like one image [H, W, C]; expected [N, H, W, C]. Save array[None]"),
        ((12, 300), "Rows of pixels: save array.reshape(-1, H, W)"),
        ((), "expected numbers [N, H, W] or [N, H, W, C]"),
        ((5,), "expected numbers [N, H, W] or [N, H, W, C]"),
        ((0, 8, 8), "expected numbers [N, H, W] or [N, H, W, C] with images in it"),
        ((2, 2, 8, 8, 3), "expected numbers [N, H, W] or [N, H, W, C]"),
    ],
)
def test_arrays_of_other_layouts(shape: tuple[int, ...], words: str, tmp_path: Path) -> None:
    array = np.zeros(shape, np.uint8)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", images=array, labels=np.zeros(6, np.int64))
    for name in ("a.npy", "a.npz"):
        assert words in refusal("array", tmp_path / name, channels=3)


def test_channels_that_are_asked_for_are_taken_for_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((6, 13, 64, 64), np.uint8))
    assert len(opened("array", tmp_path / "a.npy", channels=64)) == 6
    np.save(tmp_path / "wide.npy", np.zeros((6, 64, 3, 3), np.uint8))
    assert len(opened("array", tmp_path / "wide.npy", channels=3)) == 6


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    ragged = np.array([np.zeros((2, 2)), np.zeros((3, 3))], dtype=object)
    np.save(tmp_path / "a.npy", ragged, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=ragged)
    for name in ("a.npy", "a.npz"):
        assert "it holds Python objects, which are not unpickled" in refusal("array", tmp_path / name)


def test_parquet_that_says_nothing_of_images(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    images = [PNG, PNG]
    pairs = pyarrow.array([{"bytes": PNG, "path": None}] * 2, pyarrow.struct({"bytes": "binary", "path": "string"}))
    for name, columns in (("struct", {"picture": pairs}), ("bytes", {"picture": images, "label": [0, 1]})):
        (tmp_path / name).mkdir()
        parquet.write_table(pyarrow.table(columns), tmp_path / name / "train.parquet")
        source = opened("hf", tmp_path / name)
        assert opened("hf", tmp_path / name / "train.parquet").fingerprint == source.fingerprint
        assert np.array_equal(np.asarray(source.image(1)), np.asarray(source.image(0)))
        assert np.asarray(source.image(0)).shape == (24, 32, 3)
    (tmp_path / "none").mkdir()
    parquet.write_table(pyarrow.table({"x": [1, 2]}), tmp_path / "none/train.parquet")
    assert "no column of images or of encoded images (PNG, JPEG, … as bytes)" in refusal("hf", tmp_path / "none")
    assert "no column of images" in refusal("hf", tmp_path / "none/train.parquet")
    two = pyarrow.table({"left": images, "right": images, "label": [0, 1]})
    parquet.write_table(two, tmp_path / "two.PARQUET")
    assert "which column holds the images?" in refusal("hf", tmp_path / "two.PARQUET")
    assert len(opened("hf", tmp_path / "two.PARQUET", image_key="right")) == 2
    (tmp_path / "x.txt").touch()
    assert "none of .parquet, .arrow, .tar. Set dataset.path to the folder" in refusal("hf", tmp_path / "x.txt")


def test_a_folder_that_datasets_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are files beside the table: compared with what was listed, and none of a run's."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    folder = tmp_path / "images"
    for number in range(3):
        path = folder / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGES[number]).save(path)
    source = opened("hf", folder)
    assert len(source.fingerprint) == 16
    assert np.array_equal(np.asarray(source.image(0)), IMAGES[0])
    Image.fromarray(IMAGES[3]).save(folder / "1.png")
    os.utime(folder / "1.png", (1, 1))
    with pytest.raises(UserError, match=r"1\.png has changed"):
        source.image(1)
    write_json(folder / "runs/a/settings.json", {"settings": {}, "inputs": {}})
    Image.fromarray(IMAGES[4]).save(folder / "runs/a/grid.png")
    assert "runs/a is a run or a cache of this project" in refusal("hf", folder)


def test_shards_of_webdataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of a picture, a class and a caption; a column of other bytes; and one that holds no class."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    for shard in range(2):
        with tarfile.open(tmp_path / f"shards-{shard:03d}.tar", "w") as archive:
            for number in range(3):
                picture = io.BytesIO()
                Image.fromarray(IMAGES[3 * shard + number]).save(picture, "png")
                for suffix, content in (("png", picture.getvalue()), ("cls", b"%d" % number), ("txt", b"a leaf")):
                    entry = tarfile.TarInfo(f"leaves/{shard}{number}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in tmp_path.glob("*.tar"):
        path.rename(folder / path.name)
    source = opened("hf", folder)
    assert source.labels is not None
    assert (len(source), source.labels.tolist()) == (6, [0, 1, 2, 0, 1, 2])
    for row in range(6):
        assert np.array_equal(np.asarray(source.image(row)), IMAGES[row])
    one = opened("hf", folder / "shards-001.tar", label_key="txt")
    assert (len(one), one.class_names) == (3, ["a leaf"])
    assert np.array_equal(np.asarray(one.image(0)), IMAGES[3])
    (folder / "shards-001.tar").write_bytes((folder / "shards-001.tar").read_bytes()[:700])
    assert "the library `datasets` cannot load this" in refusal("hf", folder / "shards-001.tar")


def test_a_download_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(dataset: CIFAR10) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(CIFAR10, "download", fail)
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "new/deep"):
        assert "no network" in refusal("cifar10", folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


# Properties -----------------------------------------------------------------------------------------------------------


@quick
@given(st.sampled_from([pattern for pattern, _ in KINDS]), st.binary(max_size=80))
def test_any_bytes_as_an_array(tmp_path_factory: pytest.TempPathFactory, pattern: bytes, rest: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npy"
    path.write_bytes(pattern.replace(b"\\", b"") + rest)
    assert str(path) in refusal("array", path)


@quick
@given(
    dtype=st.sampled_from(
        ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "b1", "c8", "U3", "S2", "M8[s]"]
    ),
    order=st.sampled_from("<>"),
    shape=st.lists(st.integers(0, 9), max_size=5).map(tuple),
    fortran=st.booleans(),
)
def test_any_array_is_read_as_it_is_or_refused(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, order: str, shape: tuple[int, ...], fortran: bool
) -> None:
    """uint8, uint16 and bool have a range; of the others nothing says it."""
    values = np.random.default_rng(0).integers(0, 2 if dtype == "b1" else 256, shape)
    array = (values * (257 if dtype == "u2" else 1)).astype(order + dtype)
    path = tmp_path_factory.getbasetemp() / "array.npy"
    np.save(path, np.asfortranarray(array) if fortran else array)
    source, reason = None, ""
    try:
        source = opened("array", path, channels=shape[3] if len(shape) == 4 else 1)
    except UserError as error:
        reason = str(error)
    fitting = len(shape) in (3, 4) and 0 not in shape and dtype in ("u1", "u2", "b1")
    assert (source is not None) == (fitting and "looks like" not in reason)
    if source is None:
        return
    for row in range(len(array)):
        seen = values[row] * (255 if dtype == "b1" else 1)
        assert np.array_equal(np.asarray(source.image(row)), seen if seen.ndim == 3 else seen[..., None])
