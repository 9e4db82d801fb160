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

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.image_files import FolderReader
from storage.errors import UserError
from storage.files import own_folder, write_json, write_sealed_json

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


def test_a_folder_and_a_zip_list_the_same_images_by_sorted_path(tree: Path, tmp_path: Path):
    folder, archive = opened("folder", tree), opened("zip", zip_folder(tree, tmp_path / "tree.zip"))
    assert archive.ids == folder.ids == TREE_IDS
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


def test_what_this_project_wrote_below_a_data_set_is_not_listed(tree: Path, tmp_path: Path):
    """Caches and runs, wherever they lie and by whatever link they are reached; but what only looks like one is."""
    write_sealed_json(tree / "b/earlier/settings.json", {"settings": {}, "inputs": {}})
    write_json(tree / "runs/digits/train/1/settings.json", {"settings": {}, "inputs": {}})  # of a version before seals
    (tree / "old-cache").mkdir()
    (tree / "old-cache/file_digests.sqlite").touch()
    own_folder(tree / "cache/surveys")
    write_json(tmp_path / "elsewhere/settings.json", {"settings": {}, "inputs": {}})
    (tree / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    write_json(tree / "mine/settings.json", {"settings": "of another program"})
    (tree / "b/empty").mkdir()
    for folder in (
        "b/earlier",
        "b/earlier/grids",
        "runs/digits/train/1",
        "old-cache/data",
        "cache/surveys",
        "linked",
        "mine",
    ):
        save_image(tree / folder / "grid.png")
    source = opened("folder", tree)
    assert source.ids == [*TREE_IDS[:3], "mine/grid.png", *TREE_IDS[3:]]
    assert source.own_output == ["b/earlier", "cache", "linked", "old-cache", "runs"]
    assert FolderReader(DatasetSettings(kind="folder", path=str(tree))).folders == {"a", "b", "b/empty", "mine", "ünï"}
    with pytest.raises(UserError, match="holds a run"):
        opened("folder", tree / "b/earlier")
    assert opened("folder", tree / "b/earlier/grids").ids == ["grid.png"]


def test_the_images_of_a_split_are_compared_with_their_own_files(tree: Path):
    for number, split in enumerate(("test", "train")):
        save_image(tree / f"split/{split}/a/{number}.png", size=(5 + number, 6))
    source = opened("folder", tree / "split")
    assert source.ids == ["train/a/1.png"]
    assert np.asarray(source.image(0)).shape == (6, 6, 3)


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


def test_images_held_out_are_chosen_by_their_ids_alone():
    whole, source = opened("digits"), opened("digits", holdout=0.1)
    apart = source.held_out
    assert apart is not None
    assert sorted([*source.ids, *apart.ids]) == source.undivided.ids == whole.ids
    assert 140 < len(apart) < 220
    sets = [set(held.ids) for share in (0.05, 0.1, 0.5) if (held := opened("digits", holdout=share).held_out)]
    assert sets[0] < sets[1] < sets[2]
    part = opened("digits", holdout=0.1, max_images=500)  # without most of the others
    assert part.held_out is not None
    assert set(part.held_out.ids) == set(apart.ids) & set(opened("digits", max_images=500).ids)
    assert len({whole.fingerprint, source.fingerprint, apart.fingerprint, part.fingerprint}) == 4
    assert source.undivided.fingerprint == whole.fingerprint
    for each in (source, apart, part, part.held_out):
        row = len(each) // 2
        place = int(each.positions[row])
        assert (each.ids[row], each.undivided.ids[each.places[row]]) == (whole.ids[place], each.ids[row])
        np.testing.assert_array_equal(np.asarray(each.image(row)), np.asarray(whole.image(place)))
        assert each.labels is not None
        assert whole.labels is not None
        assert each.labels[row] == whole.labels[place]
    for share, which in ((0.001, "none"), (0.99999, "all")):
        with pytest.raises(UserError, match=which):
            opened("digits", holdout=share, max_images=20)


def test_messages_for_what_cannot_be_opened(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_text("no zip")
    zip_folder(tmp_path / "empty", tmp_path / "empty.zip")
    for kind, path, message in (
        ("folder", tmp_path / "absent", "no such folder"),
        ("folder", tmp_path / "empty", "no images"),
        ("folder", None, "dataset.path=FOLDER"),
        ("folder", tmp_path / "bad.zip", "dataset=zip"),
        ("zip", tmp_path / "empty", "dataset=folder"),
        ("zip", tmp_path / "absent.zip", "no such file"),
        ("zip", tmp_path / "bad.zip", "a ZIP file is expected"),
        ("zip", tmp_path / "empty.zip", "no images"),
    ):
        with pytest.raises(UserError, match=message):
            opened(kind, path)


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
        assert opened(kind, path, split="test").ids == [f"test/0000{row}" for row in range(3)]

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
