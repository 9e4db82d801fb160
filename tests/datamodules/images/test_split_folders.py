"""Which folders are those of splits, and what is taken of them."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images.sources import ImageSource
from datamodules.images.split_folders import find_splits
from datamodules.images.survey import survey
from storage.errors import UserError

from ..opening import opened


def tree(root: Path, places: Sequence[str], kind: str) -> Path:
    """Images at these places, all different, as a folder or a ZIP."""
    rng = np.random.default_rng(0)
    for place in places:
        path = root / "tree" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    if kind == "folder":
        return root / "tree"
    with zipfile.ZipFile(root / "tree.zip", "w") as archive:
        for place in places:
            archive.write(root / "tree" / place, place)
    return root / "tree.zip"


def zipped(folder: Path) -> Path:
    """The folder as a ZIP, as `zip -r` makes it: with entries for the folders."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return folder.with_suffix(".zip")


TRAIN = ["train/cat/1.png", "train/cat/2.png", "train/dog/3.png"]
TEST = ["test/cat/4.png", "test/dog/5.png"]


def classes(source: ImageSource) -> list[str]:
    assert source.labels is not None
    assert source.class_names is not None
    return [source.class_names[label] for label in source.labels.tolist()]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_classes_lie_below_the_splits(tmp_path: Path, kind: str) -> None:
    path = tree(tmp_path, [*TRAIN, *TEST], kind)
    train = opened(kind, path, labels="folders")
    assert (train.ids, classes(train)) == (TRAIN, ["cat", "cat", "dog"])
    assert survey(train, tmp_path)[0].split == "train (3); left out: test (2). dataset.split=all takes all"
    test = opened(kind, path, labels="folders", split="test")
    assert (test.ids, classes(test)) == (TEST, ["cat", "dog"])
    whole = opened(kind, path, labels="folders", split="all")
    assert (whole.ids, classes(whole)) == ([*TEST, *TRAIN], ["cat", "dog", "cat", "cat", "dog"])
    assert survey(whole, tmp_path)[0].split == "all: test (2), train (3)"
    assert len({source.fingerprint for source in (train, test, whole)}) == 3
    assert len({source.state for source in (train, test, whole)}) == 3
    np.testing.assert_array_equal(np.asarray(test.image(1)), np.asarray(whole.image(1)))
    assert opened(kind, path).ids == TRAIN  # without labels, too
    with pytest.raises(UserError, match=r"dataset\.split=val: there is no such folder; there are test, train\."):
        opened(kind, path, split="val")


@pytest.mark.parametrize(
    ("places", "split", "taken", "depth"),
    [
        (["Train/cat/1.png", "VALID/cat/2.png"], "train", [0], 0),
        (["Train/cat/1.png", "VALID/cat/2.png"], "val", [1], 0),
        (["training/1.png", "dev/2.png", "eval/3.png"], "train", [0], 0),
        (["training/1.png", "dev/2.png", "eval/3.png"], "eval", [2], 0),
        (["training/1.png", "dev/2.png", "eval/3.png"], "test", [2], 0),
        (["images/train/cat/1.png", "images/validation/cat/2.png"], "train", [0], 1),
        (["data/images/train/1.png", "data/images/val/2.png", "data/masks/train/3.png"], "train", [0, 2], 2),
        (["cat/train/1.png", "cat/test/2.png", "dog/train/3.png"], "train", [0, 2], 1),
        (["train2017/1.png", "val2017/2.png", "test2017/3.png"], "train", [0], 0),
        (["training_set/cat/1.png", "test_set/cat/2.png"], "train", [0], 0),
        (["train/1.png", "test/2.png", "sheet.png", "unlabeled/3.png"], "train", [0], 0),
        (["train/1.png", "test/2.png", "sheet.png", "unlabeled/3.png"], "unlabeled", [3], 0),
        (["train/1.png", "test/2.png", "sheet.png", "unlabeled/3.png"], "All", [0, 1, 2, 3], 0),
        (["only/test/1.png", "only/test/2.png"], "test", [0, 1], 1),
        (["train/train/1.png", "test/test/2.png"], "train", [0], 0),
        (["seg_train/seg_train/sea/1.png", "seg_test/seg_test/sea/2.png", "seg_pred/3.png"], "train", [0], 0),
        (["DIV2K_train_HR/1.png", "DIV2K_valid_HR/2.png"], "val", [1], 0),
        (["ILSVRC2012_img_train/n01/1.png", "ILSVRC2012_img_val/n01/2.png"], "train", [0], 0),
        (["trainA/1.png", "trainB/2.png", "testA/3.png", "testB/4.png"], "train", [0, 1], 0),
        (["train/1.png", "train_masks/2.png", "test/3.png", "test_masks/4.png"], "train", [0], 0),
        (["TrainSet/1.png", "TestSet/2.png"], "train", [0], 0),
    ],
)
def test_split_folders(places: list[str], split: str, taken: list[int], depth: int) -> None:
    found = find_splits(places, split)
    assert found is not None
    assert [row for row, place in enumerate(places) if found.takes(place)] == taken
    assert found.depth == depth


@pytest.mark.parametrize(
    "places",
    [
        ["train/1.png", "car/2.png", "bus/3.png"],  # a class of trains
        ["train/1.png", "train/2.png"],
        ["test/1.png"],
        ["train1/1.png", "train2/2.png"],
        ["cat/1.png", "dog/2.png"],
        ["training day/1.png", "testament/2.png", "valley/3.png"],
        ["bullet_train/1.png", "crash_test/2.png", "bus/3.png"],
        ["1.png", "2.png"],
    ],
)
def test_folders_that_are_no_splits(places: list[str]) -> None:
    assert find_splits(places, "train") is None
    assert find_splits(places, "all") is None
    if not any("test" in place for place in places):
        with pytest.raises(UserError, match="nor in folders of splits"):
            find_splits(places, "test")


@pytest.mark.parametrize("other", ["b/other/3.png", "b/bullet_train/3.png"])
@pytest.mark.parametrize("split", ["train", "test", "val"])
def test_splits_in_some_folders_and_not_in_others(other: str, split: str) -> None:
    """Nobody can say whether these are splits: no test image is taken for training unless all are asked for."""
    places = ["a/train/1.png", "a/test/2.png", other]
    with pytest.raises(UserError, match=r"others none, such as b\. Set dataset\.path"):
        find_splits(places, split)
    assert find_splits(places, "all") is None
    assert find_splits(["a/train/1.png", "a/test/2.png", "b/3.png"], "train") is not None  # b holds no folders


@pytest.mark.parametrize("split", ["train", "all"])
def test_splits_without_classes_give_no_labels(tmp_path: Path, split: str) -> None:
    path = tree(tmp_path, ["train/1.png", "train/2.png", "test/3.png"], "folder")
    assert opened("folder", path, split=split).labels is None
    with pytest.raises(UserError, match=r"test, train: splits, not classes.*lies in no class folder"):
        opened("folder", path, labels="folders", split=split)


def test_classes_of_one_split_alone_and_of_nested_ones(tmp_path: Path) -> None:
    path = tree(tmp_path, ["train/train/cat/1.png", "train/train/dog/2.png", "test/test/owl/3.png"], "folder")
    assert classes(opened("folder", path, labels="folders")) == ["cat", "dog"]
    assert classes(opened("folder", path, labels="folders", split="all")) == ["owl", "cat", "dog"]
    (path / "train/train/emu").mkdir()
    (path / "test/test/yak").mkdir()
    with pytest.raises(UserError, match=r"class folder 'emu' holds no image \(1 such"):
        opened("folder", path, labels="folders")


def test_a_split_of_one_class(tmp_path: Path) -> None:
    path = tree(tmp_path, ["images/train/cat/1.png", "images/train/dog/2.png", "images/test/dog/3.png"], "folder")
    assert classes(opened("folder", path, labels="folders", split="test")) == ["dog"]
    assert classes(opened("folder", path, labels="folders")) == ["cat", "dog"]


def test_bad_files_of_another_split_do_not_stop_this_one(tmp_path: Path) -> None:
    path = tree(tmp_path, [*TRAIN, *TEST], "folder")
    (path / "test/cat/scan.psd").write_bytes(b"")
    assert opened("folder", path).ids == TRAIN
    with pytest.raises(UserError, match=r"test/cat/scan\.psd"):
        opened("folder", path, split="all")
    (path / "train/cat/scan.psd").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/cat/scan\.psd"):
        opened("folder", path)


def test_labels_of_a_file_know_the_images_by_their_whole_path(tmp_path: Path) -> None:
    path = tree(tmp_path, [*TRAIN, *TEST], "folder")
    (tmp_path / "l.csv").write_text("id,label\n" + "".join(f"{place},{place[-5]}\n" for place in (*TEST, *TRAIN)))
    source = opened("folder", path, labels=str(tmp_path / "l.csv"))
    assert source.labels is not None
    assert source.labels.tolist() == [1, 2, 3]


def test_a_class_of_trains_below_splits(tmp_path: Path) -> None:
    path = tree(tmp_path, ["train/car/1.png", "train/train/2.png", "test/train/3.png", "test/test/4.png"], "folder")
    assert classes(opened("folder", path, labels="folders")) == ["car", "train"]
    assert classes(opened("folder", path, labels="folders", split="test")) == ["test", "train"]
    assert classes(opened("folder", path, labels="folders", split="all")) == ["test", "train", "car", "train"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_no_split_takes_the_place_of_one_without_images(tmp_path: Path, kind: str) -> None:
    path = tree(tmp_path, ["test/cat/1.png", "test/dog/2.png"], "folder")
    (path / "train" / "cat").mkdir(parents=True)
    (path / "train" / "cat" / "1.txt").write_text("not yet downloaded")
    if kind == "zip":
        path = zipped(path)
    with pytest.raises(UserError, match=r"dataset\.split=train: no images in train\. Set dataset\.split=test"):
        opened(kind, path)
    assert len(opened(kind, path, split="test")) == 2


@pytest.mark.parametrize("on_bad_file", ["stop", "skip"])
def test_no_split_takes_the_place_of_one_of_bad_files(tmp_path: Path, on_bad_file: str) -> None:
    path = tree(tmp_path, ["test/cat/1.png", "test/dog/2.png"], "folder")
    (path / "train").mkdir()
    (path / "train" / "photo.psd").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 1 files cannot be used as images:\n  'train/photo\.psd'"):
        opened("folder", path, on_bad_file=on_bad_file)


def test_an_empty_folder_called_train_beside_classes_says_nothing(tmp_path: Path) -> None:
    path = tree(tmp_path, ["cat/1.png", "dog/2.png"], "folder")
    (path / "train").mkdir()
    (path / "test").mkdir()
    assert len(opened("folder", path)) == 2
