"""Images and clusters for other people's trainers, read back by this project's own sources and by the others' way."""

import csv
import json
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import open_source

from .conftest import Cedm, summary

CLUSTERS = [7, 2, 7, 9, 2]  # of the ids 0…9, most without an image
READ = {
    "edm_zip": {"kind": "zip"},
    "folders": {"kind": "folder", "labels": "folders"},
    "hf": {"kind": "hf", "label_key": "cluster"},
}


@pytest.fixture
def images(workplace: Path) -> dict[str, bytes]:
    """Files of two formats in nested folders, by their id, and a cluster for each in their order."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), np.uint8)
    names = ["a/0.png", "a/1.jpg", "b/c/2.png", "b/c=1/3 .png", "b/4.jpg"]
    for name, image in zip(names, pixels, strict=True):
        Path("images", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(Path("images", name))
    names.sort()
    lines = [f"{name},{cluster}" for name, cluster in zip(names, CLUSTERS, strict=True)]
    Path("clusters.csv").write_text("\n".join(["id,cluster", *lines]))
    return {name: Path("images", name).read_bytes() for name in names}


@pytest.mark.parametrize("form", READ)
def test_what_is_exported_is_read_back_to_the_same_clusters(cedm: Cedm, images: dict[str, bytes], form: str) -> None:
    words = ["dataset=folder", "dataset.path=images", "assignments=clusters.csv", f"format={form}", "run_dir=run"]
    result = cedm("export_dataset", *words)
    assert result.code == 0, result.err
    with Path("run/classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["cluster"], row["num_images"]) for row in rows] == [
        ("0", "2", "2"), ("1", "7", "2"), ("2", "9", "1"),
    ]  # fmt: skip
    source = open_source(DatasetSettings(name="again", path=summary("run")["written"], **READ[form]))
    assert len(source) == len(images)
    assert source.labels is not None
    clusters = {}
    for row, (image_id, label) in enumerate(zip(source.ids, source.labels.tolist(), strict=True)):
        content = source.encoded(row)[0]
        (name,) = [name for name, stored in images.items() if stored == content]  # not a byte is changed
        assert form == "hf" or image_id.endswith(name)
        clusters[name] = int(rows[label]["cluster"])
    assert clusters == dict(zip(images, CLUSTERS, strict=True))
    assert "Nothing to do" in cedm("export_dataset", *words).out


@pytest.mark.parametrize("form", ["edm_zip", "folders"])
@pytest.mark.parametrize(("split", "count"), [("all", 5), ("test", 2)])
def test_the_command_that_reads_it_back_takes_all_of_it(
    cedm: Cedm, images: dict[str, bytes], form: str, split: str, count: int
) -> None:
    Path("images/a").rename("images/train")
    Path("images/b/c").rename("images/test")
    Path("images/b/c=1").rename("images/test/c")
    Path("images/b/4.jpg").rename("images/train/4.jpg")
    ids = sorted(path.relative_to("images").as_posix() for path in Path("images").rglob("*.*g"))
    Path("clusters.csv").write_text("\n".join(["id,cluster", *(f"{name},{len(name) % 2}" for name in ids)]))
    words = ["dataset=folder", "dataset.path=images", "assignments=clusters.csv", f"dataset.split={split}"]
    result = cedm("export_dataset", *words, f"format={form}", "run_dir=a run")
    assert result.code == 0, result.err
    read_by = shlex.split(result.out.rpartition("Read by ")[2])
    result = cedm("embed", *read_by, "backbone=pixels", "clustering=kmeans")
    assert f": {count} images" in result.out, result.err


def test_images_in_no_cluster_are_left_out_or_a_class(cedm: Cedm, images: dict[str, bytes]) -> None:
    rows = [f"{name};{number % 2 if number else -1}" for number, name in enumerate(images)]
    Path("ids.csv").write_text("\n".join(["id;cluster", *rows]))
    words = ["dataset=folder", "dataset.path=images", "assignments=ids.csv", "format=folders"]
    refused = cedm("export-dataset", *words)
    assert (refused.code, "noise=own" in refused.err, "noise=drop" in refused.err) == (2, True, True)
    assert cedm("export-dataset", *words, "noise=drop", "run_dir=drop").code == 0
    assert cedm("export-dataset", *words, "noise=own", "run_dir=own").code == 0
    dropped, own = summary("drop"), summary("own")
    assert (dropped["num_images"], dropped["num_classes"]) == (len(images) - 1, 2)
    assert (own["num_images"], own["num_classes"]) == (len(images), 3)
    first = next(iter(images))
    assert sorted(path.name for path in Path("own/images/2").rglob("*") if path.is_file()) == [Path(first).name]
    written = {path.read_bytes() for path in Path("drop/images").rglob("*") if path.is_file()}
    assert written == {content for name, content in images.items() if name != first}
    lonely = cedm("export-dataset", "noise=drop")
    assert (lonely.code, "noise=drop: it is about" in lonely.err) == (2, True)


def test_a_zip_is_that_of_edm(cedm: Cedm, images: dict[str, bytes]) -> None:
    words = ["dataset=folder", "dataset.path=images", "assignments=clusters.csv", "run_dir=run"]
    assert cedm("export_dataset", *words).code == 0
    with zipfile.ZipFile("run/images.zip") as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"]
        assert {name: archive.read(name) for name, _ in labels} == images
    assert [label for _, label in labels] == [1, 0, 1, 2, 0]


def test_arrays_become_png_files_and_no_clusters_are_refused(cedm: Cedm, workplace: Path) -> None:
    words = ["dataset.max_images=20", "clustering=random", "clustering.num_clusters=3"]
    assert cedm("cluster", *words).code == 0
    assert cedm("export_dataset", *words, "format=folders", "run_dir=run").code == 0
    source = open_source(DatasetSettings(kind="folder", name="again", path="run/images", labels="folders"))
    digits = open_source(DatasetSettings(max_images=20))
    by_id = {Path(image_id).stem: row for row, image_id in enumerate(source.ids)}
    for row, image_id in enumerate(digits.ids):
        assert np.array_equal(np.asarray(source.image(by_id[Path(image_id).stem])), digits.image(row)[..., 0])
    result = cedm("export_dataset", "conditioning=none")
    assert (result.code, "Leave conditioning= out" in result.err) == (2, True)
