"""Labels from class folders, tables and other files; what is no label, and labels of other images."""

import csv
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.survey import survey
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, made_for, read_assignments
from storage.errors import UserError

from ..opening import opened
from .test_arrays import random_images, save

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
        (f"{ids[1]},3\n{ids[2]},4\n", r"its first line is .*, an image and no heading\. Add the line id,label"),
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
