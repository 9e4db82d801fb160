"""Arrays with any channels and ranges, Hugging Face data sets, and the memory that streaming takes."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.image_store import ImageStore
from datamodules.images.images import decode
from datamodules.images.survey import survey
from storage.errors import UserError

from ..opening import opened
from .bad_files import encoded


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


# Arrays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 8, 8, 3), (5, 8, 8, 7)])
def test_arrays_of_any_channels_keep_their_values(shape: tuple[int, ...], tmp_path: Path) -> None:
    images = random_images(*shape)
    channels = shape[3] if len(shape) == 4 else 1
    source = opened("array", save(tmp_path / "x.npy", images))
    assert source.ids[:2] == ["train/00000", "train/00001"]
    stored = ImageStore(source, 8, channels).gather(torch.arange(5))
    np.testing.assert_array_equal(stored.permute(0, 2, 3, 1).numpy(), images.reshape(5, 8, 8, channels))


def test_each_channel_is_resized_as_a_grey_picture_would_be(tmp_path: Path) -> None:
    images = random_images(2, 20, 14, 5)
    source = opened("array", save(tmp_path / "x.npy", images))
    resized = decode(source, 1, 6, 5)
    for channel in range(5):
        square = Image.fromarray(images[1, 3:17, :, channel])
        expected = np.asarray(square.resize((6, 6), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(resized[channel].numpy(), expected)


def test_a_stated_range_becomes_0_to_255(tmp_path: Path) -> None:
    values = np.array([[[-1, 0], [0.5, 1]]], dtype=np.float32)
    source = opened("array", save(tmp_path / "x.npy", values), value_range=[-1, 1])
    assert decode(source, 0, 2, 1)[0].tolist() == [[0, 128], [191, 255]]
    deep = opened("array", save(tmp_path / "y.npy", np.array([[[0, 257], [32896, 65535]]], np.uint16)))
    assert decode(deep, 0, 2, 1)[0].tolist() == [[0, 1], [128, 255]]
    scan = opened("array", save(tmp_path / "z.npy", np.array([[[0, 4095]]], np.int16)), value_range=[0, 4095])
    assert decode(scan, 0, None, 1)[0].tolist() == [[0, 255]]
    mask = opened("array", save(tmp_path / "m.npy", np.array([[[True, False]]])))
    assert decode(mask, 0, None, 1)[0].tolist() == [[255, 0]]


def test_rows_that_cannot_be_used_are_named_or_skipped(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((6, 4, 4), dtype=np.float32)
    values[1, 0, 0], values[4, 2, 2] = np.nan, 1.5
    path = save(tmp_path / "x.npy", values)
    with pytest.raises(
        UserError, match=r"'train/00004' cannot be used: holds values from .* to 1\.5, outside of 0 to 1"
    ):
        decode(opened("array", path, value_range=[0, 1]), 4, 4, 1)
    source = opened("array", path, value_range=[0, 1], on_bad_file="skip")
    assert source.ids == ["train/00000", "train/00002", "train/00003", "train/00005"]
    np.testing.assert_array_equal(decode(source, 3, 4, 1)[0].numpy(), np.rint(values[5] * 255).astype(np.uint8))


def test_an_npy_file_stays_on_disk(tmp_path: Path) -> None:
    """Neither this process nor a copy of the source for another one holds the array."""
    source = opened("array", save(tmp_path / "x.npy", random_images(400, 32, 32, 3)))
    assert isinstance(source._reader.images, np.memmap)  # type: ignore[attr-defined]
    copy = pickle.dumps(source)
    assert len(copy) < 100_000
    np.testing.assert_array_equal(pickle.loads(copy).image(399), source.image(399))


def test_an_archive_names_its_arrays(tmp_path: Path) -> None:
    images = random_images(6, 4, 4, 3)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.arange(6)[:, None] % 3, val_images=images[:2])
    source = opened("array", tmp_path / "x.npz")
    assert list(source.left_out) == ["array val_images (dataset.image_key=val_images takes it)"]
    assert source.labels is not None
    assert (len(source), source.labels.tolist()) == (6, [0, 1, 2, 0, 1, 2])
    assert len(opened("array", tmp_path / "x.npz", image_key="val_images", label_key=None, max_images=2)) == 2
    np.savez(tmp_path / "y.npz", one=images, two=images)
    with pytest.raises(UserError, match=r"^[^(]*holds 2 arrays; there are one, two\. Set dataset\.image_key=NAME"):
        opened("array", tmp_path / "y.npz")
    (tmp_path / "z.npz").write_bytes((tmp_path / "y.npz").read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be read as a plain array"):
        opened("array", tmp_path / "z.npz")


# Hugging Face ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve pictures that `save_to_disk` wrote, in two splits."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    pictures = [Image.fromarray(image) for image in random_images(12, 9, 8, 3)]
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "species": datasets.ClassLabel(names=["cat", "dog", "owl"]),
            "note": datasets.Value("string"),
        }
    )
    rows = {"picture": pictures, "species": [number % 2 for number in range(12)], "note": ["x"] * 12}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(3))}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_a_saved_data_set_is_read_with_its_classes(hugging_face: Path, tmp_path: Path) -> None:
    source = opened("hf", hugging_face, cache_dir=tmp_path / "cache")
    images = random_images(12, 9, 8, 3)
    for index in (0, 11):
        np.testing.assert_array_equal(np.asarray(source.image(index)), images[index])
    assert source.labels is not None
    assert (source.labels.tolist(), source.class_names) == ([0, 1] * 6, ["cat", "dog", "owl"])
    found, _ = survey(source, tmp_path / "cache")
    assert (found.sizes, found.class_counts) == ([(8, 9, 12)], [6, 6, 0])
    test = opened("hf", hugging_face, split="test")
    assert (len(test), test.ids[0]) == (3, "test/00000")
    assert len(opened("hf", hugging_face, split="all")) == 15
    assert test.fingerprint != source.fingerprint == opened("hf", hugging_face).fingerprint
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(source)).image(5)), images[5])


@pytest.mark.parametrize(
    ("feature", "values", "expected", "names"),
    [
        ("classes", [2, None, -1, 0], [2, -1, -1, 0], ["cat", "dog", "owl"]),
        ("int64", [2_000_000_000, None, 7, 7], [1, -1, 0, 0], ["7", "2000000000"]),
        ("int8", [1, -1, 0, 1], [1, -1, 0, 1], None),
        ("bool", [True, None, False, True], [1, -1, 0, 1], None),
        ("float32", [1.0, None, float("nan"), 0.0], [1, -1, -1, 0], None),
        ("string", ["owl", None, "", "cat"], [1, -1, -1, 0], ["cat", "owl"]),
        ("float32", [1.5, 2.0, 2.0, 1.0], None, None),
        ("string", [None, None, "", ""], None, None),
        (["int64"], [[1], [2], [1, 2], []], None, None),
        ({"a": "int64"}, [{"a": 1}] * 4, None, None),
        ("picture", random_images(4, 8, 8), None, None),
    ],
)
def test_columns_of_labels(
    tmp_path: Path, feature: Any, values: Any, expected: list[int] | None, names: list[str] | None
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def made(feature: Any) -> Any:
        if feature in ("classes", "picture"):
            return datasets.ClassLabel(names=["cat", "dog", "owl"]) if feature == "classes" else datasets.Image()
        return datasets.Value(feature) if isinstance(feature, str) else feature

    if isinstance(feature, list):
        feature = [datasets.Value(feature[0])]
    elif isinstance(feature, dict):
        feature = {name: datasets.Value(kind) for name, kind in feature.items()}
    pictures = [Image.fromarray(image) for image in random_images(4, 9, 8, 3)]
    values = [Image.fromarray(value) for value in values] if isinstance(values, np.ndarray) else values
    features = datasets.Features({"image": datasets.Image(), "label": made(feature)})
    datasets.Dataset.from_dict({"image": pictures, "label": values}, features=features).save_to_disk(tmp_path / "d")
    source = opened("hf", tmp_path / "d", image_key="image")
    assert (None if source.labels is None else source.labels.tolist(), source.class_names) == (expected, names)
    assert bool(source.labels_note) == (expected is None)
    assert opened("hf", tmp_path / "d", image_key="image", labels="none").labels is None


def test_a_folder_of_images_is_a_data_set_too(hugging_face: Path, tmp_path: Path) -> None:
    for number, image in enumerate(random_images(6, 9, 8, 3)):
        path = tmp_path / "tree" / ("owl" if number % 2 else "emu") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    source = opened("hf", tmp_path / "tree")
    assert (len(source), source.class_names) == (6, ["emu", "owl"])
    before = source.fingerprint
    Image.fromarray(random_images(9, 8, 3, seed=9)).save(tmp_path / "tree/owl/1.png")
    assert opened("hf", tmp_path / "tree").fingerprint != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "no split 'valid'; there are train, test"),
        ({"image_key": "note"}, "dataset.image_key=note: no column of images or of encoded images; columns: picture"),
        ({"label_key": "colour"}, "dataset.label_key=colour: no such column"),
    ],
)
def test_splits_and_columns_that_are_not_there(hugging_face: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        opened("hf", hugging_face, **options)  # type: ignore[arg-type]
    assert message in str(error.value)


# Memory ---------------------------------------------------------------------------------------------------------------

STREAM = """
import gc, sys, torch
from pathlib import Path
from datamodules.images.image_store import ImageStore
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import open_source

store = ImageStore(open_source(DatasetSettings(kind=sys.argv[1], path=sys.argv[2])), 16, 3, memory_gb=0)
order = torch.randperm(len(store.source), generator=torch.Generator().manual_seed(0))

def anonymous_mb(batches):
    for batch in batches:
        store.gather(batch)
    gc.collect()
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

before = anonymous_mb([order[:200]])
print(anonymous_mb(order.split(200)) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("kind", ["folder", "zip", "array"])
def test_memory_does_not_grow_while_images_stream(kind: str, tmp_path: Path) -> None:
    """20,000 images of 3 kB: decoding all of them leaves less than 8 MB behind."""
    images = random_images(20, 32, 32, 3)
    path = {"folder": tmp_path / "tree", "zip": tmp_path / "x.zip", "array": tmp_path / "x.npy"}[kind]
    contents = [encoded(image, "PNG") for image in images]
    if kind == "array":
        np.save(path, np.tile(images, (1000, 1, 1, 1)))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(20_000):
                archive.writestr(f"{number}.png", contents[number % 20])
    else:
        path.mkdir()
        for number in range(20_000):
            (path / f"{number}.png").write_bytes(contents[number % 20])
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", STREAM, kind, str(path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout) < 8
