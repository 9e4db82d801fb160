"""Fashion-MNIST, STL-10 and MedMNIST, from files written here byte by byte."""

import gzip
import hashlib
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import STL10

from storage.errors import UserError

from ..opening import opened

RNG = np.random.default_rng(0)
FIRST = {"train": [9, 0, 0, 3, 1, 2], "t10k": [9, 2, 1, 1]}  # the first labels of Fashion-MNIST, and two more


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    """An idx file: two zeros, 8 for bytes, the number of axes, their lengths, the values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def refusal(kind: str, path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        opened(kind, path, **settings)
    return str(error.value)


def write_fashion(folder: Path, suffix: str = "", **first: list[int]) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for part, labels in (FIRST | first).items():
        images[part] = pixels(len(labels), 28, 28)
        for name, array in (("images-idx3", images[part]), ("labels-idx1", np.array(labels, np.uint8))):
            content = idx(array)
            (folder / f"{part}-{name}-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return images


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist(suffix: str, tmp_path: Path) -> None:
    below = tmp_path / ("" if suffix else "FashionMNIST/raw")  # as Debian has it, and as torchvision leaves it
    images = write_fashion(below, suffix)
    source = opened("fashion", tmp_path, channels=1)
    assert source.labels is not None
    assert source.labels.tolist() == FIRST["train"]
    assert source.class_names is not None
    assert [source.class_names[label] for label in (9, 0, 3)] == ["Ankle boot", "T-shirt/top", "Dress"]
    assert np.array_equal(np.asarray(source.image(4))[..., 0], images["train"][4])
    test = opened("fashion", tmp_path, split="test")
    assert test.ids[3] == "test/00003"
    assert np.array_equal(np.asarray(test.image(3))[..., 0], images["t10k"][3])
    assert "fashion has train, test" in refusal("fashion", tmp_path, name="fashion", split="val")


def test_files_that_are_not_fashion_mnist(tmp_path: Path) -> None:
    write_fashion(tmp_path, train=[5, 0, 4, 1, 9, 2])  # MNIST's
    assert "not the file of Fashion-MNIST (MNIST's have the same names)" in refusal("fashion", tmp_path)
    write_fashion(tmp_path, ".gz")
    file = tmp_path / "train-images-idx3-ubyte"
    file.unlink()
    file = file.with_name(f"{file.name}.gz")
    whole = file.read_bytes()
    for content in (whole[:-9], gzip.compress(gzip.decompress(whole)[:-1]), b"", b"\x1f\x8b", gzip.compress(b"\0\0")):
        file.write_bytes(content)
        assert "ownload it again" in refusal("fashion", tmp_path)
    file.write_bytes(whole)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert "no such file. Set dataset.path=FOLDER" in refusal("fashion", tmp_path)


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images, lists = (
        {part: pixels(count, 96, 96, 3) for part, count in (("train", 3), ("test", 2), ("unlabeled", 4))},
        [],
    )
    for part, array in images.items():
        by_column = array.transpose(0, 3, 2, 1)  # of each channel
        (folder / f"{part}_X.bin").write_bytes(by_column.tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes(range(1, len(array) + 1)))
        lists.append([f"{part}_X.bin", hashlib.md5((folder / f"{part}_X.bin").read_bytes()).hexdigest()])
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    monkeypatch.setattr(STL10, "train_list", lists)
    monkeypatch.setattr(STL10, "test_list", [lists[1], ["test_y.bin", hashlib.md5(b"\1\2").hexdigest()]])
    for path in (tmp_path, folder):
        source = opened("stl10", path, split="unlabeled")
        assert source.labels is None
        assert np.array_equal(np.asarray(source.image(3)), images["unlabeled"][3])
        again = pickle.loads(pickle.dumps(source))
        assert np.array_equal(np.asarray(again.image(1)), images["unlabeled"][1])
    assert len(pickle.dumps(source)) < 10_000  # the images stay on disk
    train = opened("stl10", tmp_path, split="train")
    assert train.labels is not None
    assert (train.labels.tolist(), train.class_names) == ([0, 1, 2], ["airplane", "bird", "car"])
    assert "unlabeled, train, test" in refusal("stl10", tmp_path, split="val")
    monkeypatch.setattr(STL10, "url", "file:///nonexistent/stl10.tar.gz")
    (folder / "unlabeled_X.bin").write_bytes(b"damaged")
    assert "not found whole" in refusal("stl10", tmp_path)


def write_medmnist(path: Path, images: np.ndarray, **more: np.ndarray) -> Path:
    """Each of the splits begins one image later."""
    arrays = {}
    for number, part in enumerate(("train", "val", "test")):
        arrays[f"{part}_images"] = images[number:]
        arrays[f"{part}_labels"] = np.arange(len(images) - number)[:, None] % 3
    np.savez(path, **arrays | more)
    return path


def test_medmnist(tmp_path: Path) -> None:
    images = pixels(6, 28, 28, 3)
    path = write_medmnist(tmp_path / "retinamnist.npz", images)
    for number, split in enumerate(("train", "val", "test")):
        source = opened("medmnist", path, split=split)
        assert source.ids == [f"{split}/{row:05d}" for row in range(6 - number)]
        assert np.array_equal(np.asarray(source.image(1)), images[1 + number])
        assert source.labels is not None
        assert source.labels.tolist() == [row % 3 for row in range(6 - number)]
    several = write_medmnist(tmp_path / "chestmnist.npz", images[..., 0], train_labels=np.ones((6, 14)))
    source = opened("medmnist", several, channels=1)
    assert source.labels is None
    assert "[6, 14]" in source.labels_note
    assert "train, val, test" in refusal("medmnist", path, split="all")
    for given in (Path("organmnist3d"), tmp_path / "organmnist3d_64.npz"):
        assert "npz')['train_images'][:, 14]" in refusal("medmnist", given)
    volumes = write_medmnist(tmp_path / "x.npz", pixels(6, 28, 28, 28))
    assert "[6, 28, 28, 28], which looks like volumes" in refusal("medmnist", volumes)


def test_a_name_of_medmnist_is_downloaded_by_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    medmnist = pytest.importorskip("medmnist")
    images = pixels(6, 64, 64, 3)
    monkeypatch.chdir(tmp_path)

    def download(self: Any) -> None:
        write_medmnist(Path(self.root) / f"{self.flag}{self.size_flag}.npz", images)

    monkeypatch.setattr(medmnist.dataset.MedMNIST, "download", download)
    source = opened("medmnist", Path("bloodmnist_64"))
    assert source.class_names == list(medmnist.INFO["bloodmnist"]["label"].values())
    assert np.array_equal(np.asarray(source.image(5)), images[5])
    assert "there are pathmnist," in refusal("medmnist", Path("mnist"))

    def fail(self: Any) -> None:
        raise RuntimeError("no network\n" * 99)

    monkeypatch.setattr(medmnist.dataset.MedMNIST, "download", fail)
    words = refusal("medmnist", Path("pathmnist"))
    assert "pathmnist.npz" in words
    assert words.endswith("Set dataset.path=FILE.npz.")
    monkeypatch.setitem(sys.modules, "medmnist", None)
    assert "needs the package medmnist. Run: pip install medmnist" in refusal("medmnist", Path("pathmnist"))
