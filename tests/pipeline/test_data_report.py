"""`cedm embed` says what it understood of any images, as docs/data.md promises; and stops in plain words."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import TINY_EDM, TINY_TEMI, Cedm

DOCS = (Path(__file__).parents[2] / "docs/data.md").read_text()
ROWS = re.findall(r"^\| .+ \| `cedm (embed .+)` \|$", DOCS, re.MULTILINE)
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
    np.save("FILE.npy", pictures())
    np.save("FLOATS.npy", (pictures() / 255).astype(np.float32))
    np.save("BANDS.npy", pictures(channels=5))
    np.savez("FILE.npz", images=pictures(), labels=np.arange(12) % 4)
    (workplace / "FILE.csv").write_text(
        "id,label\n" + "".join(f"{path.relative_to(folder)},{path.stem}\n" for path in folder.rglob("*.png"))
    )
    return folder


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 13
    assert {re.findall(r"dataset=(\w+)", row)[0] for row in ROWS} == {
        path.stem for path in (Path(__file__).parents[2] / "configs/dataset").glob("*.yaml")
    }


@pytest.mark.parametrize("row", [row for row in ROWS if "dataset=cifar" not in row and "ylecun" not in row])
def test_every_row_of_the_table(cedm: Cedm, images: Path, row: str) -> None:
    if "dataset=hf" in row:
        pytest.importorskip("datasets")
    result = cedm(*shlex.split(row), *([] if "digits" in row else SMALL))
    assert result.code == 0, result.err
    count = "1,797" if "digits" in row else "12"
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
        "folder: 14 images\n",
        "sizes          10×10 (13), 30×30 (1)\n",
        "modes          PNG RGB 13, PNG RGBA 1\n",
        "duplicates     1, exact copies such as cat/copy.png of cat/1.png\n",
        "left out       .txt files (1)\n",
        "skipped        1, which cannot be used:\n               web.jpg: a web page",
    ):
        assert line in skipped.out
    monkeypatch.setattr("datamodules.images.sources.ImageSource.header", None)  # nothing is looked at again
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
        (["dataset=npy", "dataset.path=FLOATS.npy"], ["FLOATS.npy", "float32", "dataset.value_range=[0,1]"]),
        (
            ["dataset=npy", "dataset.path=FLOATS.npy", "dataset.value_range=[0,0.5]"],
            ["'train/00000'", "outside of 0 to"],
        ),
        (["dataset=npy", "dataset.path=FLOATS.npy", "dataset.value_range=[1,0]"], ["[LOW,HIGH]"]),
        (["dataset=npy", "dataset.path=BANDS.npy"], ["5 channels", "dataset.channels=5", "backbone=pixels"]),
        (["dataset=npy", "dataset.path=FIRST.npy"], ["[N, C, H, W]", "transpose(0, 2, 3, 1)"]),
        (["dataset=npy", "dataset.path=OBJECTS.npy"], ["OBJECTS.npy", "plain array"]),
        (["dataset=npy", "dataset.path=NAN.npy", "dataset.value_range=[0,1]"], ["'train/00003'", "NaN"]),
        (["dataset=npy", "dataset.path=FILE.npz", "dataset.image_key=pixels"], ["'pixels'", "images, labels"]),
        (["dataset=npy", "dataset.path=gone.npy"], ["gone.npy", "no such file"]),
        (["dataset=npy", "dataset.path=FILE.npy", "dataset.labels=folders"], ["folders and ZIPs"]),
        (["dataset=folder", "dataset.path=FILE.zip"], ["FILE.zip", "dataset=zip"]),
        (["dataset=folder", "dataset.path='caf\udce9'"], ["caf\\xe9", "no UTF-8 text"]),
        (["dataset=folder", "dataset.path=FOLDER", "dataset.channels=5"], ["dataset.channels=5", "dataset=npy"]),
        (["dataset=folder", "dataset.path=FOLDER", "dataset.on_bad_file=ignore"], ["dataset.on_bad_file=skip"]),
        (["dataset=folder", "dataset.path=FOLDER", "dataset.labels=gone.csv"], ["gone.csv", "dataset.labels=folders"]),
        (["dataset=folder", "dataset.path=FOLDER/cat", "dataset.labels=folders"], ["'1.png'", "no class folder"]),
        (["dataset=folder", "dataset.path=FOLDER/cat", "dataset.labels=FILE.csv"], ["8 of 8 images have no label"]),
        (["dataset=hf", "dataset.path=nowhere/at-all"], ["nowhere/at-all", "save_to_disk"]),
    ],
)
def test_mistakes_with_data(
    cedm: Cedm, images: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], expected: list[str]
) -> None:
    np.save("FIRST.npy", pictures().transpose(0, 3, 1, 2))
    np.save("OBJECTS.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    broken = (pictures() / 255).astype(np.float32)
    broken[3, 0, 0, 0] = np.nan
    np.save("NAN.npy", broken)
    if "dataset=hf" in settings:
        pytest.importorskip("datasets")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    result = cedm("embed", *settings, *SMALL)
    assert result.code == 2, result.out
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    for words in expected:
        assert words in result.err
    assert not Path("runs").exists()
    assert not list(Path().glob("**/*.tmp*"))
    assert not list(Path("cache").rglob("*.safetensors"))


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


@pytest.mark.slow
def test_a_mistake_as_a_process_of_its_own(images: Path) -> None:
    """Exit code, streams and folders as a shell sees them; the current folder keeps what it had."""
    (images / "cat/1.png").write_bytes((images / "cat/1.png").read_bytes()[:200])
    before = sorted(Path().rglob("*"))
    typed = ["dataset=folder", "dataset.path=FOLDER", *SMALL]
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", "embed", *typed],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "error: folder: 'cat/1.png' cannot be used: truncated or damaged" in result.stderr
    assert "Traceback" not in result.stderr
    kept = [path for path in Path().rglob("*") if path not in before and "cache" not in path.parts]
    assert kept == []
