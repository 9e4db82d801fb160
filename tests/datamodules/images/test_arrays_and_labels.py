"""Arrays with any channels and ranges, Hugging Face data sets, and labels from folders and files."""

import csv
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.images import ImageStore, decode
from datamodules.images.survey import survey
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, made_for, read_assignments
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


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number, name in enumerate(("train/cat/1.png", "train/cat/more/2.png", "train/dog/3.png", "train/ëmu/4.png")):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_images(4, 4, 3, seed=number)).save(path)
    return tmp_path / "tree"


def test_class_folders(tree: Path) -> None:
    for root in (tree, tree / "train"):
        source = opened("folder", root, labels="folders")
        assert source.labels is not None
        assert (source.labels.tolist(), source.class_names) == ([0, 0, 1, 2], ["cat", "dog", "ëmu"])
    (tree / "train/owl").mkdir()
    with zipfile.ZipFile(tree.parent / "tree.zip", "w") as archive:
        for path in tree.rglob("*"):
            archive.write(path, path.relative_to(tree))
    for kind, root in (("folder", tree), ("folder", tree / "train"), ("zip", tree.parent / "tree.zip")):
        with pytest.raises(UserError, match="class folder 'owl' holds no image"):
            opened(kind, root, labels="folders")
    assert opened("folder", tree / "train").labels is None
    (tree / "train/owl").rmdir()
    Image.fromarray(random_images(4, 4, 3)).save(tree / "train/loose.png")
    with pytest.raises(UserError, match=r"'loose\.png' lies in no class folder"):
        opened("folder", tree / "train", labels="folders")


def test_a_csv_file_of_names_or_numbers(tree: Path, tmp_path: Path) -> None:
    ids = opened("folder", tree).ids

    def labels_from(text: str) -> tuple[list[int], list[str] | None]:
        (tmp_path / "l.csv").write_text(text, encoding="utf-8-sig")
        source = opened("folder", tree, labels=str(tmp_path / "l.csv"))
        assert source.labels is not None
        return source.labels.tolist(), source.class_names

    shuffled = [ids[2], ids[0], ids[3], ids[1]]
    assert labels_from("id,label\n" + "".join(f"{name},{name[6]}\n" for name in shuffled)) == (
        [0, 0, 1, 2],
        ["c", "d", "ë"],
    )
    assert labels_from("label,colour,id\n" + "".join(f"{len(name)},red,{name}\n" for name in shuffled))[0] == [
        len(name) for name in ids
    ]
    decomposed = "id,label\n" + "".join(f"{name},7\n" for name in ids).replace("ë", "e\u0308")  # as macOS writes it
    assert labels_from(decomposed)[0] == [7] * 4
    for text, message in (
        ("", "empty"),
        ("name,class\na,1\n", r"found 'name,class'.*dataset\.label_columns=\[name,class\]"),
        (
            "id,label\na.png,1\n",
            "4 of 4 images have no label, the first is 'train/cat/1.png'; the labels are for 'a.png'",
        ),
        ("id,label\na.png\n", "line 2 has not 2 columns"),
    ):
        with pytest.raises(UserError, match=message):
            labels_from(text)


def test_tables_as_other_programs_write_them(tree: Path, tmp_path: Path) -> None:
    """Separated by `;` or tabs, ids without suffix or folders, headings in capitals, some images missing."""

    def labels_from(text: str, columns: list[str] | None = None, suffix: str = ".csv") -> list[int]:
        (tmp_path / f"l{suffix}").write_text(text)
        source = opened("folder", tree, labels=str(tmp_path / f"l{suffix}"), label_columns=columns)
        assert source.labels is not None
        return source.labels.tolist()

    rows = (("lesion", "image_id", "dx"), ("a,b", "4", "nv"), ("", "1", "bkl"), ("c", "3", "nv"), ("d", "gone", "x"))
    for delimiter, suffix in ((",", ".csv"), (";", ".csv"), ("\t", ".csv"), ("\t", ".tsv")):
        with (tmp_path / "table").open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
        text = (tmp_path / "table").read_text()
        assert labels_from(text, ["image_id", "dx"], suffix) == [0, -1, 1, 1]
        with pytest.raises(UserError, match=r"found 'lesion,image_id,dx'.*dataset\.label_columns="):
            labels_from(text, None, suffix)
        with pytest.raises(UserError, match="the columns image_id,DX2 are expected"):
            labels_from(text, ["image_id", "DX2"], suffix)
    assert labels_from("ID;Label\ntrain/cat/1;5\ntrain/dog/3;7\n") == [5, -1, 7, -1]  # without suffixes
    assert labels_from("Id,LABEL\n3.png,7\n2.png,5\n") == [-1, 5, 7, -1]  # without folders
    assert labels_from("ID,id,label\n1,3.png,7\n") == [-1, -1, 7, -1]  # the exact name counts
    with pytest.raises(UserError, match="4 of 4 images have no label"):
        labels_from("id,label\ntest/cat/1.png,0\n")  # in another folder is another image
    with pytest.raises(UserError, match=r"divided by ',' and by ';'.*Save it with one of them"):
        labels_from("id,label;x\n3.png,7;y\n")
    Image.fromarray(random_images(4, 4, 3)).save(tree / "train/dog/1.png")
    with pytest.raises(UserError, match=r"'1' may be 'train/cat/1\.png' or 'train/dog/1\.png'"):
        labels_from("id,label\n1,0\n3,0\n")
    assert labels_from("id,label\n2,0\n3,0\n") == [-1, 0, -1, 0, -1]  # which are one image each


def test_columns_of_labels_are_those_of_a_table(tree: Path, tmp_path: Path) -> None:
    save(tmp_path / "l.npy", np.arange(4))
    for settings, message in (
        ({"labels": str(tmp_path / "l.npy"), "label_columns": ["a", "b"]}, r"l\.npy is no table"),
        ({"label_columns": ["a", "b"]}, r"it goes with dataset\.labels=FILE\.csv"),
        ({"label_columns": ["a"]}, r"\[IDS,LABELS\] is expected"),
    ):
        with pytest.raises(UserError, match=message):
            opened("folder", tree, **settings)  # type: ignore[arg-type]


def test_labels_in_other_files(tree: Path, tmp_path: Path) -> None:
    ids = opened("folder", tree).ids
    text = json.dumps({"labels": [[name, number] for number, name in reversed(list(enumerate(ids)))]})
    (tmp_path / "l.json").write_text(text)
    save(tmp_path / "l.npy", np.arange(4))
    (tree / "dataset.json").write_text(text)
    for settings in ({}, {"labels": str(tmp_path / "l.json")}, {"labels": str(tmp_path / "l.npy")}):
        source = opened("folder", tree, **settings)
        assert source.labels is not None
        assert source.labels.tolist() == [0, 1, 2, 3]
    (tree / "dataset.json").write_text('{"labels": null}')
    assert opened("folder", tree).labels is None


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ('{"classes": 3}', "holds no labels as EDM writes them"),
        ('["a.png", "b.png"]', "holds no labels as EDM writes them"),
        ('{"labels": {"a.png": 1}}', "holds no labels as EDM writes them"),
        ('{"labels": [["a.png"]]}', "holds no labels as EDM writes them"),
        ('{"labels": [["ID", 1]]}', "4 of 4 images have no label"),
        ('{"labels": [["train/dog/3.png", 1], ["train/dog/3.png", 2]]}', "'train/dog/3.png' has two labels, 1 and 2"),
        ([0.5, 1.0, 2.0, 1.0], "not whole, such as 0.5"),
        ([-1, None, float("nan"), ""], "no image has a label"),
        ([[1, 0], [0, 1], [1, 0], [0, 1]], r"several values for an image, \[1, 0\]"),
        ([[1], [0, 2], [], [0]], "several values for an image"),
        ([{"class": 1}, 1, 1, 1], "several values for an image"),
        (np.array([0.5, 1, 2, np.nan]), "not whole, such as 0.5"),
        (np.array([0, 1, 2, np.inf]), "not whole, such as inf"),
        (np.eye(4, dtype=np.uint8), "an array of shape .4, 4. .uint8."),
        (np.ones(4, dtype=np.complex64), "complex64"),
    ],
)
def test_what_is_no_label_does_not_stand_in_the_way(tree: Path, content: str | list | np.ndarray, note: str) -> None:
    whole, settings = opened("folder", tree, labels="none"), {}
    if isinstance(content, np.ndarray):
        settings = {"labels": str(save(tree.parent / "other.npy", content))}
    else:
        if isinstance(content, list):
            content = json.dumps({"labels": list(zip(whole.ids, content, strict=True))})
        (tree / "dataset.json").write_text(content)
    source = opened("folder", tree, **settings)
    assert (source.labels, source.ids, source.fingerprint) == (None, whole.ids, whole.fingerprint)
    assert re.search(note, source.labels_note), source.labels_note
    assert survey(source, tree.parent / "cache")[0].labels_note == source.labels_note


def test_labels_of_other_images_and_damaged_files_are_refused(tree: Path) -> None:
    with pytest.raises(UserError, match=r"labels of shape .5. for 4 images"):
        opened("folder", tree, labels=str(save(tree.parent / "five.npy", np.arange(5))))
    for text in ("{", "\udcff".encode(errors="surrogateescape"), "[" * 100_000):
        (tree / "dataset.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match=r"dataset\.labels=none to leave it out"):
            opened("folder", tree)
        assert len(opened("folder", tree, labels="none")) == 4


def test_partly_labelled_images(tree: Path) -> None:
    ids = opened("folder", tree).ids
    (tree / "dataset.json").write_text(json.dumps({"labels": [[ids[1], 3], [ids[3], -1], ["gone.png", 5]]}))
    source = opened("folder", tree)
    assert source.labels is not None
    assert source.labels.tolist() == [-1, 3, -1, -1]
    found, _ = survey(source, tree.parent / "cache")
    assert (found.class_counts, found.num_unlabelled) == ([0, 0, 0, 1], 3)
    part = opened("folder", tree, max_images=2)  # the first and the third
    assert (part.labels, part.labels_note) == (None, "none of the 2 images has a label")


def test_an_archive_whose_labels_are_none(tmp_path: Path) -> None:
    images = random_images(4, 8, 8)
    for labels, note in ((np.eye(4), "shape .4, 4."), (np.arange(3), "for 4 images"), (np.array([{}] * 4), "objects")):
        np.savez(tmp_path / "x.npz", images=images, labels=labels)
        source = opened("array", tmp_path / "x.npz")
        assert (len(source), source.labels) == (4, None)
        assert re.search(note, source.labels_note, re.IGNORECASE), source.labels_note
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([[2], [-1], [0], [2]], dtype=np.int8))
    source = opened("array", tmp_path / "x.npz")
    assert source.labels is not None
    assert source.labels.tolist() == [2, -1, 0, 2]


# Assignments of another data set --------------------------------------------------------------------------------------


def test_assignments_of_other_images_with_the_same_names_are_refused(tmp_path: Path) -> None:
    mine = opened("array", save(tmp_path / "mine.npy", random_images(20, 4, 4)))
    other = opened("array", save(tmp_path / "other.npy", random_images(20, 4, 4, seed=1)))
    path = tmp_path / "labels.safetensors"
    labels = PseudoLabels(torch.arange(20) % 4, 4, torch.ones(20), mine.ids, made_for(mine))
    labels.save(path)
    labels.save_csv(tmp_path / "labels.csv")
    assert read_assignments(str(path), mine).cluster_ids.tolist() == [row % 4 for row in range(20)]
    part = opened("array", tmp_path / "mine.npy", max_images=5)
    assert read_assignments(str(path), part).cluster_ids.tolist() == [0] * 5
    for source in (other, opened("array", tmp_path / "other.npy", max_images=5)):
        with pytest.raises(UserError, match=r"made for other images, of mine \(20\).*CSV file"):
            read_assignments(str(path), source)
    assert len(read_assignments(str(tmp_path / "labels.csv"), other)) == 20


# Memory ---------------------------------------------------------------------------------------------------------------

STREAM = """
import gc, sys, torch
from pathlib import Path
from datamodules.images.images import ImageStore
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
