"""Sources list what a researcher means by a folder, a ZIP or CIFAR; and say plainly what is wrong with the rest."""

import hashlib
import json
import multiprocessing
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from storage.errors import UserError

from ..opening import opened


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def zip_folder(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for entry in sorted(folder.rglob("*"), reverse=True):
            file.write(entry, entry.relative_to(folder))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for seed, name in enumerate(("b/2.PNG", "b/10.png", "a/x.jpg", "top.webp", "ünï/0.jfif")):
        save_image(root / name if not name.endswith("jfif") else root / "ünï/0.jpg", seed)
    (root / "ünï/0.jpg").rename(root / "ünï/0.jfif")
    for hidden in ("b/._2.png", ".cache/0.png", "b/.ipynb_checkpoints/2.png", "__MACOSX/b/2.png"):
        save_image(root / hidden)
    (root / "readme.txt").write_text("no image, and not meant to be one")
    return root


TREE_IDS = ["a/x.jpg", "b/10.png", "b/2.PNG", "top.webp", "ünï/0.jfif"]


def test_a_folder_lists_images_by_sorted_posix_path(tree: Path):
    source = opened("folder", tree)
    assert source.ids == TREE_IDS
    assert source.labels is None
    assert source.image(2).size == (5, 6)


def test_a_zip_lists_the_same_images_and_reads_the_same_pixels(tree: Path, tmp_path: Path):
    folder, archive = opened("folder", tree), opened("zip", zip_folder(tree, tmp_path / "tree.zip"))
    assert archive.ids == folder.ids
    for index in range(len(folder)):
        np.testing.assert_array_equal(np.asarray(archive.image(index)), np.asarray(folder.image(index)))


def test_links_in_circles_do_not_multiply_files(tree: Path):
    (tree / "b/again").symlink_to(tree, target_is_directory=True)
    (tree / "a/sideways").symlink_to(tree / "b", target_is_directory=True)
    assert opened("folder", tree).ids == TREE_IDS


def test_linked_folders_are_followed_and_broken_links_named(tree: Path, tmp_path: Path):
    save_image(tmp_path / "elsewhere/1.png")
    (tree / "z").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert opened("folder", tree).ids == [*TREE_IDS[:4], "z/1.png", TREE_IDS[4]]
    (tree / "a/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png"):
        opened("folder", tree)


def test_the_fingerprint_follows_contents_ids_and_labels_not_paths_and_times(tree: Path, tmp_path: Path):
    def fingerprint_of(root: Path) -> str:
        return opened("folder", root, cache_dir=tmp_path / "cache").fingerprint

    original = fingerprint_of(tree)
    moved = Path(shutil.copytree(tree, tmp_path / "moved", copy_function=shutil.copy))
    assert fingerprint_of(moved) == original == opened("folder", tree).fingerprint
    (moved / "b/2.PNG").rename(moved / "b/3.PNG")
    renamed = fingerprint_of(moved)
    (moved / "b/3.PNG").rename(moved / "b/2.PNG")
    save_image(moved / "b/2.PNG", seed=99)
    changed = fingerprint_of(moved)
    (tree / "dataset.json").write_text(json.dumps({"labels": [[image_id, 1] for image_id in TREE_IDS]}))
    labelled = fingerprint_of(tree)
    assert len({original, renamed, changed, labelled}) == 4


def test_labels_come_from_dataset_json_by_name(tree: Path, tmp_path: Path):
    pairs = [[image_id, number] for number, image_id in enumerate(TREE_IDS)]
    (tree / "dataset.json").write_text(json.dumps({"labels": [*pairs[::-1], ["not/there.png", 7]]}))
    for kind, path in (("folder", tree), ("zip", zip_folder(tree, tmp_path / "tree.zip"))):
        source = opened(kind, path)
        assert source.labels is not None
        assert source.labels.tolist() == [0, 1, 2, 3, 4]
    (tree / "dataset.json").write_text('{"labels": null}')
    assert opened("folder", tree).labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSONDecodeError"),
        ('{"classes": 3}', "KeyError"),
        ('{"labels": [["a/x.jpg", 1]]}', "4 of 5 images have no label"),
        (json.dumps({"labels": [[name, 0.5] for name in TREE_IDS]}), "is 0.5; expected an integer"),
        (json.dumps({"labels": [[name, -1] for name in TREE_IDS]}), "is -1; expected an integer"),
    ],
)
def test_wrong_labels_are_refused(tree: Path, text: str, message: str):
    (tree / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=message):
        opened("folder", tree)


def test_a_subset_is_evenly_spaced_and_knows_its_rows(tree: Path):
    source = opened("folder", tree, max_images=2)
    assert source.positions.tolist() == [0, 2]
    assert source.ids == ["a/x.jpg", "b/2.PNG"]
    assert source.total == 5
    assert len(opened("folder", tree, max_images=9)) == 5
    digits = opened("digits", max_images=100)
    assert digits.ids[:2] == ["train/00000", "train/00017"]
    assert digits.positions.diff().unique().tolist() == [17, 18]
    assert digits.fingerprint != opened("digits", max_images=101).fingerprint


def test_a_file_that_is_no_image_is_named(tree: Path):
    (tree / "b/10.png").write_text("not an image")
    (tree / "top.webp").write_bytes(b"")
    source = opened("folder", tree)
    with pytest.raises(UserError, match=r"'b/10.png' cannot be used: no image"):
        source.image(1)
    with pytest.raises(UserError, match=r"'top.webp' cannot be used: an empty file"):
        source.image(3)
    content = (tree / "b/2.PNG").read_bytes()
    (tree / "b/2.PNG").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"'b/2.PNG' cannot be used: "):
        source.image(2)


def test_a_damaged_zip_entry_is_named(tree: Path, tmp_path: Path):
    path = zip_folder(tree, tmp_path / "tree.zip")
    content = bytearray(path.read_bytes())
    place = content.index((tree / "b/2.PNG").read_bytes()[:60]) + 40
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"'b/2.PNG' cannot be used: "):
        opened("zip", path).image(2)


def test_messages_for_what_cannot_be_opened(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_text("no zip")
    zip_folder(tmp_path / "empty", tmp_path / "empty.zip")
    for kind, path, message in (
        ("folder", tmp_path / "absent", "no such folder"),
        ("folder", tmp_path / "empty", "no images"),
        ("folder", None, "dataset.path=FOLDER"),
        ("zip", tmp_path / "absent.zip", "no such file"),
        ("zip", tmp_path / "bad.zip", "not a readable ZIP"),
        ("zip", tmp_path / "empty.zip", "no images"),
        ("zipp", None, "one of digits"),
    ):
        with pytest.raises(UserError, match=message):
            opened(kind, path)
    with pytest.raises(UserError, match="max_images=0"):
        opened("digits", max_images=0)


def test_names_that_cannot_be_stored_are_refused(tree: Path):
    save_image(tree / "line\nbreak.png")
    with pytest.raises(UserError, match="rename it"):
        opened("folder", tree)


def _sum_of_image(source: object, index: int) -> int:
    return int(np.asarray(source.image(index)).sum())  # type: ignore[attr-defined]


def test_a_zip_can_be_read_from_forked_and_spawned_processes(tree: Path, tmp_path: Path):
    source = opened("zip", zip_folder(tree, tmp_path / "tree.zip"))
    expected = [_sum_of_image(source, index) for index in range(5)]  # the parent's handle is open and has moved
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_sum_of_image, [(source, index % 5) for index in range(200)]) == expected * 40
    assert _sum_of_image(pickle.loads(pickle.dumps(source)), 3) == expected[3]


def test_digits_are_the_whole_range_of_grey():
    source = opened("digits")
    image = source.image(0)
    assert isinstance(image, np.ndarray)
    assert (len(source), image.shape, image.dtype) == (1797, (8, 8, 1), np.uint8)
    assert image[0, :5, 0].tolist() == [0, 0, 80, 207, 143]  # 0, 0, 5, 13, 9 of 16
    assert source.labels is not None
    assert source.labels[:5].tolist() == [0, 1, 2, 3, 4]
    assert source.class_names == list("0123456789")


@pytest.mark.parametrize("dataset_class", [CIFAR10, CIFAR100])
def test_cifar_files_are_found_checked_and_read(
    dataset_class: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kind = dataset_class.__name__.lower()
    folder = tmp_path / dataset_class.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    pixels = {name: random.integers(0, 256, (3, 3072), dtype=np.uint8) for name, _ in dataset_class.train_list}
    label_key = "labels" if kind == "cifar10" else "fine_labels"
    train = [write(name, {"data": pixels[name], label_key: [0, 1, 2]}) for name in pixels]
    test = [
        write(name, {"data": pixels[next(iter(pixels))], label_key: [0, 1, 2]}) for name, _ in dataset_class.test_list
    ]
    meta = write(dataset_class.meta["filename"], {dataset_class.meta["key"]: ["cat", "dog", "owl"]})
    monkeypatch.setattr(dataset_class, "train_list", train)
    monkeypatch.setattr(dataset_class, "test_list", test)
    monkeypatch.setattr(dataset_class, "meta", {**dataset_class.meta, "md5": meta[1]})

    for path in (tmp_path, folder):
        source = opened(kind, path)
        assert len(source) == 3 * len(train)
        np.testing.assert_array_equal(source.image(1), pixels[train[0][0]][1].reshape(3, 32, 32).transpose(1, 2, 0))
        assert source.labels is not None
        assert source.labels.dtype == torch.int64
        assert source.labels[:3].tolist() == [0, 1, 2]
        assert source.class_names == ["cat", "dog", "owl"]
        assert source.ids[1] == "train/00001"

    (folder / train[0][0]).write_bytes(b"damaged")
    monkeypatch.setattr(dataset_class, "url", "file:///nonexistent/cifar.tar.gz")
    with pytest.raises(UserError, match=r"not found whole.*dataset\.path=FOLDER"):
        opened(kind, tmp_path)


def test_the_real_zip_opens_with_its_labels(real_data: Path):
    source = opened("zip", real_data / "cifar10-train.zip", max_images=1000)
    assert source.total == 50000
    assert source.ids[1] == "00000/img00000050.jpg"
    assert source.labels is not None
    assert source.labels.unique().tolist() == list(range(10))
    assert source.image(0).size == (32, 32)
