"""`cedm embed` says what it understood of any images, as docs/data.md promises; and stops in plain words."""

import json
import re
import shlex
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from ..datamodules.images.handmade import fits
from .conftest import TINY_EDM, TINY_TEMI, Cedm, summary

DOCS = (Path(__file__).parents[2] / "docs/data.md").read_text()
ROWS = re.findall(r"^\| .+ \| `cedm (embed dataset=.+)` \|$", DOCS, re.MULTILINE)  # of images
DOWNLOADS = "dataset=(cifar|fashion|stl10)|ylecun|bloodmnist"  # which tests of their own open from files
SMALL = ["backbone=pixels", "dataset.resolution=8", "clustering.num_neighbours=3"]


def pictures(count: int = 12, channels: int = 3, size: int = 10) -> np.ndarray:
    """uint8 [N, H, W, C]."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.fixture
def images(workplace: Path) -> Path:
    """The files that the table's commands name: FOLDER, FILE.zip, FILE.npy, …"""
    folder = workplace / "FOLDER"
    for number, image in enumerate(pictures()):
        path = folder / ("cat" if number % 3 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    with zipfile.ZipFile("FILE.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    (workplace / "SKY").mkdir()
    for number, image in enumerate(pictures(channels=1)):
        (workplace / f"SKY/{number}.fits").write_bytes(fits(image[..., 0].astype(np.int16) * 16))
    parquet.write_table(
        pyarrow.table({"COLUMN": [path.read_bytes() for path in folder.rglob("*.png")]}), "FILE.parquet"
    )
    np.save("FILE.npy", pictures())
    np.save("FLOATS.npy", (pictures() / 255).astype(np.float32))
    np.save("BANDS.npy", pictures(channels=5))
    np.savez("FILE.npz", images=pictures(), labels=np.arange(12) % 4)
    np.savez("retinamnist.npz", train_images=pictures(), train_labels=np.arange(12)[:, None] % 5)
    with h5py.File("Galaxy10.h5", "w") as file:
        file["images"], file["ans"] = pictures(), np.arange(12) % 3
    (workplace / "FILE.csv").write_text(
        "id,label\n" + "".join(f"{path.relative_to(folder)},{path.stem}\n" for path in folder.rglob("*.png"))
    )
    return folder


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 13
    datasets = {path.stem for path in (Path(__file__).parents[2] / "configs/dataset").glob("*.yaml")}
    assert {re.findall(r"dataset=(\w+)", row)[0] for row in ROWS} == datasets - {"embeddings"}


@pytest.mark.parametrize("row", [row for row in ROWS if not re.search(DOWNLOADS, row)])
def test_every_row_of_the_table(cedm: Cedm, images: Path, row: str) -> None:
    if "dataset=hf" in row:
        pytest.importorskip("datasets")
    brought = {"dataset=digits": "1,797", "dataset=emoji": "1,914"}
    result = cedm(*shlex.split(row), *([] if "digits" in row else SMALL))
    assert result.code == 0, result.err
    count = brought.get(row.split()[1], "12")
    assert f": {count} images\n" in result.out
    report = json.loads(next(Path("runs").rglob("data.json")).read_text())
    assert report["num_images"] == int(count.replace(",", ""))
    with Image.open(next(Path("runs").rglob("data.png"))) as picture:
        assert picture.width > 300


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["dataset=folder", "dataset.path=FOLDER", "dataset.labels=folders"], "2 classes of 4 to 8 images"),
        (["dataset=folder", "dataset.path=FOLDER", "dataset.labels=FILE.csv"], "12 classes of 1 to 1 images"),
        (["dataset=npy", "dataset.path=FILE.npz"], "4 classes of 3 to 3 images"),
    ],
)
def test_labels_are_shown_and_used(cedm: Cedm, images: Path, settings: list[str], words: str) -> None:
    assert words in cedm("embed", *settings, *SMALL).out
    result = cedm("cluster", *settings, *SMALL[:2], "clustering=labels")
    assert result.code == 0, result.err
    assert words.split()[0] in result.out


@pytest.mark.parametrize(
    ("labels", "line", "scored", "refused"),
    [
        ("null", "none: FOLDER/dataset.json: holds several values for an image, [0, 1]", {}, "has no labels (FOLDER/"),
        ("none", "none: dataset.labels=none leaves them out\n", {}, "has no labels (dataset.labels=none"),
        (
            "SOME.csv",
            "2 classes of 1 to 2 images (cat, dog); 9 without a label\n",
            {"num_labelled": 3},
            "9 of 12",
        ),
        ("IDS.csv", "3 classes of 4 to 4 images (2000000000, 3000000000, 4000000000)\n", {"num_labelled": None}, ""),
    ],
)
def test_labels_do_not_stand_in_the_way(
    cedm: Cedm, images: Path, labels: str, line: str, scored: dict[str, int | None], refused: str
) -> None:
    """What is no label is left out with a note; some labels are enough for all but training on them."""
    typed = ["dataset=folder", "dataset.path=FOLDER", f"dataset.labels={labels}", *SMALL]
    ids = [path.relative_to(images).as_posix() for path in sorted(images.rglob("*.png"))]
    (images / "dataset.json").write_text(json.dumps({"labels": [[name, [0, 1]] for name in ids]}))
    some = [*(f"{name},{name[:3]}\n" for name in ids[6:9]), "x.png,owl\n"]
    Path("SOME.csv").write_text("id,label\n" + "".join(some))
    numbers = [f"{name},{(int(name[4:-4]) % 3 + 2) * 10**9}\n" for name in ids]
    Path("IDS.csv").write_text("id,label\n" + "".join(numbers))
    embedded = cedm("embed", *typed, "clustering=kmeans")
    assert (embedded.code, f"labels         {line}" in embedded.out) == (0, True), embedded
    clustered = cedm("cluster", *typed, "clustering=kmeans", "clustering.num_clusters=3", "map_images=0", "run_dir=run")
    assert clustered.code == 0, clustered.err
    found = summary("run")
    assert {name: found.get(name) for name in scored} == scored
    assert ("nmi" in found) == bool(scored)
    trained = cedm("cluster", *typed, "clustering=labels")
    assert (trained.code, refused in trained.err) == (2 if refused else 0, True), trained.err


def test_what_was_understood_is_told_once_made_and_told_again(
    cedm: Cedm, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "cat/copy.png").write_bytes((images / "cat/1.png").read_bytes())
    Image.fromarray(pictures(size=30, channels=4)[0]).save(images / "large.png")
    (images / "notes.txt").write_text("")
    (images / "web.jpg").write_text("<html>not found</html>")
    typed = ["dataset=folder", f"dataset.path={images}", *SMALL]
    stopped = cedm("embed", *typed)
    assert stopped.code == 2
    assert "1 of 15 files cannot be used as images:\n  'web.jpg': a web page" in stopped.err
    assert "dataset.on_bad_file=skip" in stopped.err
    assert not Path("runs").exists()
    assert not list(Path("cache").rglob("*.safetensors"))
    skipped = cedm("embed", *typed, "dataset.on_bad_file=skip")
    assert skipped.code == 0, skipped.err
    for line in (
        "FOLDER: 14 images\n",
        "sizes          10×10 (13), 30×30 (1)\n",
        "modes          PNG RGB 13, PNG RGBA 1\n",
        "duplicates     1, exact copies such as cat/copy.png of cat/1.png\n",
        "left out       .txt files (1)\n",
        "skipped        1, which cannot be used:\n               web.jpg: a web page",
    ):
        assert line in skipped.out
    monkeypatch.setattr("datamodules.images.sources.ImageSource.decoded", None)  # nothing is looked at again
    again = cedm("embed", *typed, "dataset.on_bad_file=skip")
    assert "duplicates     1, exact" in again.out
    assert "Nothing to do" in again.out
    monkeypatch.undo()
    trained = cedm("cluster", *typed, "dataset.on_bad_file=skip", "clustering=random", "clustering.num_clusters=2")
    assert trained.code == 0, trained.err


def test_small_and_nearly_black_images_are_mentioned(cedm: Cedm, workplace: Path) -> None:
    np.save("scans.npy", np.random.default_rng(0).integers(0, 4096, (9, 8, 8), dtype=np.uint16))
    typed = ["embed", "dataset=npy", "dataset.path=scans.npy", "dataset.channels=1", *SMALL]
    result = cedm(*typed, "dataset.resolution=16")
    assert "nearly black" in result.out
    assert "enlarged       9 images are smaller than dataset.resolution=16" in result.out
    assert "nearly black" not in cedm(*typed, "dataset.value_range=[0,4095]").out


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["dataset=npy", "dataset.path=FLOATS.npy"], "dataset.value_range=[0,1]"),
        (["dataset=npy", "dataset.path=BANDS.npy", "dataset.channels=3"], "dataset.channels=5"),
        (["dataset=npy", "dataset.path=gone.npy"], "gone.npy"),
        (["dataset=folder", "dataset.path=FILE.zip"], "dataset=zip"),
        (["dataset=folder", "dataset.path='caf\udce9'"], "caf\\xe9"),
        (["dataset=folder", "dataset.path=FOLDER/cat", "dataset.labels=FILE.csv"], "8 of 8 images have no label"),
    ],
)
def test_mistakes_with_data(cedm: Cedm, images: Path, settings: list[str], expected: str) -> None:
    result = cedm("embed", *settings, *SMALL)
    assert (result.code, expected in result.err, "Traceback" in result.err) == (2, True, False), result.err
    assert not Path("runs").exists()
    assert not [*Path().glob("**/*.tmp*"), *Path("cache").rglob("*.safetensors")]


def test_a_data_set_of_splits_is_trained_on_its_training_images(cedm: Cedm, workplace: Path) -> None:
    for number, image in enumerate(pictures(count=40)):
        path = workplace / "tree" / ("Train", "test")[number % 4 == 3] / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    typed = ["dataset=folder", "dataset.path=tree", "dataset.labels=folders", *SMALL[:2], "clustering=labels"]
    said = "Train (30); left out: test (10). dataset.split=all takes all\n"
    embedded = cedm("embed", *typed)
    assert (embedded.code, f"split          {said}" in embedded.out) == (0, True), embedded
    assert "labels         2 classes of 10 to 20 images (cat, dog)\n" in embedded.out
    clustered = cedm("cluster", *typed, "run_dir=clusters")
    assert (clustered.code, said in clustered.out) == (0, True), clustered
    assert summary("clusters")["num_clusters"] == 2
    tiny = [*TINY_EDM, "network=ddpmpp_small", "training.batch_size=16", "trainer.precision=32-true"]
    trained = cedm("train", *typed, *tiny, "training.duration_kimg=0.016", "evaluation.backbone=null")
    assert (trained.code, said in trained.out) == (0, True), trained
    assert "data        30 images" in trained.out
    assert "test (10); left out: Train (30)" in cedm("embed", *typed, "dataset.split=test").out


def test_what_training_does_not_see_is_told(cedm: Cedm, workplace: Path) -> None:
    folder = workplace / "mixed"
    folder.mkdir()
    for number, image in enumerate(pictures(4)):
        Image.fromarray(image).save(folder / f"square{number}.png")
    for number, (width, height) in enumerate([(20, 16), (40, 20), (16, 64)]):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            folder / f"wide{number}.png"
        )
    Image.new("RGB", (16, 16), "navy").save(folder / "blank.jpg")
    Image.new("RGBA", (16, 16), (200, 10, 10, 0)).save(folder / "transparent.png")  # seen as white
    typed = ["dataset=folder", "dataset.path=mixed", "backbone=pixels", "clustering.num_neighbours=3"]
    result = cedm("embed", *typed, "dataset.resolution=16")
    for line in (
        "cut off        3 images are not square: training sees the central square, without 50% of the pixels (median; "
        "75% of 16×64)\n",
        "enlarged       4 images are smaller than dataset.resolution=16; of the smallest 10×10 pixels are drawn 1.6 ",
        "blank          2 images of one colour throughout, such as blank.jpg\n",
    ):
        assert line in result.out
    for fit, line in {
        "pad": "padded         3 images are not square: bars are 50% of what training sees (median; 75% of 16×64)\n",
        "stretch": "stretched      3 images are not square: the shorter side is drawn 2 times as long (median; ",
    }.items():
        again = cedm("embed", *typed, "dataset.resolution=16", f"dataset.fit={fit}")
        assert line in again.out, again
        assert "Nothing to do" not in again.out  # the pixels are others
    report = json.loads(next(Path("runs").rglob("data.json")).read_text())
    assert (report["num_distinct"], report["num_blank"], report["blank"]) == (9, 2, ["blank.jpg", "transparent.png"])
    assert not {"cut off", "enlarged", "blank"} & {line[:15].strip() for line in cedm("embed").out.splitlines()}


def test_identical_images_end_before_a_model_is_trained(cedm: Cedm, workplace: Path) -> None:
    for name in ("same", "black"):
        (workplace / name).mkdir()
    for number in range(8):
        image = Image.fromarray(pictures(1)[0])
        image.save(workplace / f"same/{number}.png", compress_level=number)  # the same pixels in other bytes
        Image.new("RGB", (10 + number, 10)).save(workplace / f"black/{number}.png")
    same, black = (["dataset=folder", f"dataset.path={name}", *SMALL] for name in ("same", "black"))
    stopped = cedm("embed", *same)
    assert (stopped.code, "all 8 images have the same pixels, so they are one cluster" in stopped.err) == (2, True)
    assert not Path("runs").exists()
    assert cedm("embed", *same, "conditioning=none").code == 0
    assert cedm("embed", *black).code == 0
    for clustering in (["clustering=kmeans", "clustering.num_clusters=2"], [*TINY_TEMI, "clustering.batch_size=4"]):
        stopped = cedm("cluster", *black, *clustering)
        assert (stopped.code, "all 8 images have the same embedding" in stopped.err) == (2, True), stopped.err
    Path("one.csv").write_text("id,label\n" + "".join(f"{number}.png,dark\n" for number in range(8)))
    labelled = [*black, "dataset.labels=one.csv", "clustering=labels"]
    assert "Warning: all images are in one cluster" in cedm("cluster", *labelled).out
    stopped = cedm("train", *labelled, *TINY_EDM)
    assert (stopped.code, "Set conditioning=none to train without clusters" in stopped.err) == (2, True)
    assert not list(Path("runs").rglob("train-*"))


def test_all_damaged_images_are_named_before_the_embedding(cedm: Cedm, images: Path) -> None:
    for name in ("cat/1", "dog/3", "dog/6"):
        path = images / f"{name}.png"
        path.write_bytes(path.read_bytes()[:-60])
    stopped = cedm("embed", "dataset=folder", f"dataset.path={images}", *SMALL)
    assert (stopped.code, "3 of 12 files cannot be used as images" in stopped.err) == (2, True), stopped.err


@pytest.mark.slow
def test_five_channels_go_through_all_stages(cedm: Cedm, images: Path) -> None:
    np.save("BANDS.npy", pictures(count=80, channels=5, size=8))
    typed = ["dataset=npy", "dataset.path=BANDS.npy", "dataset.channels=5", *SMALL, "network=ddpmpp_small"]
    typed += [
        *TINY_TEMI,
        *TINY_EDM,
        "clustering.batch_size=16",
        "evaluation.backbone=pixels",
        "trainer.precision=32-true",
    ]
    for stage in ("embed", "cluster", "train"):
        result = cedm(stage, *typed)
        assert result.code == 0, result.err
    denoiser = next(Path("runs").rglob("train-*/*/denoiser.safetensors"))
    refused = cedm("generate", f"ckpt={denoiser}", "num=6", "steps=2")
    assert (refused.code, "format=npy" in refused.err) == (2, True)
    result = cedm("generate", f"ckpt={denoiser}", "num=6", "steps=2", "format=npy", "run_dir=generated")
    assert result.code == 0, result.err
    made = np.load("generated/images.npy")
    assert (made.shape, made.dtype) == ((6, 8, 8, 5), np.uint8)
    again = cedm("embed", "dataset=npy", "dataset.path=generated/images.npy", "dataset.channels=5", *SMALL)
    assert again.code == 0, again.err
