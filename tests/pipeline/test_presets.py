"""A data set of one's own: its name, the settings that follow from its images, and what a long training asks first."""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.running import finished_run, own_images
from pipeline.running.cost import Cost
from pipeline.settings.compose import compose
from pipeline.settings.dataset_names import choose_name, keep_record, names_of, plain_name
from pipeline.settings.presets import OwnImages, preset_values
from storage.errors import UserError

from .conftest import TINY_EDM, Cedm


def test_the_rule_on_a_grid() -> None:
    counts, sides = [1, 3, 30, 299, 3_000, 9_999, 10_000, 1_000_000], [1, 8, 13, 28, 47, 48, 50, 3_000]
    machines = [(False, False, 1), (False, True, 3), (True, True, 5), (True, True, 1)]
    for num_images, side, (gpu, packaged, channels) in itertools.product(counts, sides, machines):
        images = OwnImages(num_images, side, channels)
        name, values = preset_values("auto", images, gpu, packaged)
        assert name == ("published" if gpu and num_images >= 10_000 else "laptop")
        assert (name, values) == preset_values(name, images, gpu, packaged)
        assert values["dataset.channels"] == channels
        resolution = values["dataset.resolution"]
        if name == "published":
            assert (resolution, values.get("network")) == ((64, None) if side >= 48 else (32, "ddpmpp"))
            assert values["clustering.num_clusters"] == min(400, num_images // 100)
            continue
        assert (resolution % 4, max(8, min(32, side - 3)) <= resolution <= max(8, side)) == (0, True)
        assert values["backbone"] == ("efficientnet_lite0" if packaged and channels != 5 else "pixels")
        assert values["evaluation.backbone"] == values["backbone"]
        assert 2 <= values["clustering.num_clusters"] <= 100
        assert max(values[f"{group}.batch_size"] for group in ("clustering", "training")) <= num_images
        assert 48 <= values["training.duration_kimg"] <= 200


@pytest.mark.parametrize("preset", ["laptop", "published"])
@pytest.mark.parametrize("side", [8, 13, 28, 50, 100])
def test_every_choice_makes_a_network(preset: str, side: int) -> None:
    _, values = preset_values(preset, OwnImages(3_000, side, 1), gpu=False, packaged=False)
    words = [f"{key}={value}" for key, value in values.items()]
    settings = compose("train", ["dataset=folder", "dataset.path=x", *words])
    small = {**vars(settings.network), "model_channels": 8}
    denoiser = Denoiser(type(settings.network)(**small), settings.dataset.resolution, 1, label_dim=3, augment_dim=9)
    assert any(getattr(part, "num_heads", 0) for part in denoiser.modules())  # there is attention


def test_what_is_typed_wins() -> None:
    _, values = preset_values("laptop", OwnImages(3_000, 50, 1), gpu=False, packaged=True)

    def left(*typed: str) -> set[str]:
        return {key for key in values if not own_images.is_set(key, values, ["dataset", *typed])}

    assert left() == left("clustering", "training") == {*values}  # as what a data set's YAML sets goes with any option
    assert {*values} - left("training.lr", "dataset.channels") == {"training.lr", "dataset.channels"}
    assert {*values} - left("network") == {key for key in values if key.startswith("network")}
    assert {*values} - left("network.channel_mult") == {"network.channel_mult"}
    assert {*values} - left("backbone") == {*values} - left("backbone.path") == {"backbone"}


@pytest.mark.parametrize(
    ("path", "name"),
    [("/my/leaves", "leaves"), ("my/leaves", "leaves"), ("/a/Blätter 2, neu!/", "Blätter-2-neu"), ("/", "images"),
     ("/a/.hidden", "hidden"), ("/v1.0", "v1.0"), ("me/mnist", "mnist"), ("/x/" + "a" * 300, "a" * 60)],
)  # fmt: skip
def test_a_folder_gives_its_name(path: str, name: str) -> None:
    assert plain_name(path) == name


def test_two_folders_never_share_a_name(tmp_path: Path) -> None:
    cache, names = str(tmp_path / "cache"), {}
    for folder in ("a/leaves", "b/leaves", "c/leaves", "a/digits", "a/auto", "d/leaves.v2"):
        path = tmp_path / folder
        path.mkdir(parents=True)
        names[folder] = choose_name(str(path), cache, is_taken=lambda name: name == "leaves-2")
        keep_record(names[folder], cache, {"path": str(path)})
    assert list(names.values()) == ["leaves", "leaves-3", "leaves-4", "digits-2", "auto-2", "leaves.v2"]
    assert {folder: choose_name(str(tmp_path / folder), cache, lambda name: True) for folder in names} == names
    assert names_of(str(tmp_path / "b/leaves"), cache) == ["leaves-3"]
    record = tmp_path / "cache/datasets/leaves.json"
    record.write_text("damaged, or of another program")
    keep_record("leaves", cache, {"path": str(tmp_path / "a/leaves")})
    assert record.with_name("leaves.json.damaged").read_text() == "damaged, or of another program"
    (tmp_path / "a/leaves").rename(tmp_path / "leaves")  # moved, it keeps its name, unless its runs are of others
    assert choose_name(str(tmp_path / "leaves"), cache, is_taken=lambda name: False) == "leaves"
    assert choose_name(str(tmp_path / "leaves"), cache, is_taken=lambda name: name[-1] in "s2") == "leaves-5"


def save_images(folder: Path, count: int, size: tuple[int, int], colour: bool = False) -> None:
    """Grey noise in nested folders, as grey PNG files and as RGB ones; the last image has a colour with `colour`."""
    draws = np.random.default_rng(count)
    for number in range(count):
        path = folder / f"day{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draws.integers(0, 256, (size[1], size[0]), dtype=np.uint8))
        image = image.convert("RGB") if number % 2 else image
        if colour and number == count - 1:
            image = Image.new("RGB", size, "navy")
        image.save(path)


def settings_of(run: str) -> dict[str, Any]:
    """What the newest run of a pattern was made with."""
    return json.loads(sorted(Path("runs").glob(f"{run}/settings.json"))[-1].read_text())["settings"]


def test_images_of_ones_own_choose_their_settings(cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, channels and resolution; grey stays grey; typed settings win; a run goes on with what it began with."""
    save_images(workplace / "a/leaves", 24, (20, 14))
    save_images(workplace / "b/leaves", 24, (30, 40), colour=True)
    monkeypatch.setattr(own_images, "WEIGHTS", ("no_such_package",))
    first = cedm("embed", "dataset=folder", "dataset.path=a/leaves")
    assert (first.code, "leaves: 24 images" in first.out) == (0, True), first
    assert "preset      laptop for leaves: dataset.resolution=12 dataset.channels=1 backbone=pixels" in first.out
    assert settings_of("leaves/embed-pixels/*")["preset"]["name"] == "laptop"
    assert cedm("embed", "dataset=folder", "dataset.path=b/leaves", "dataset.resolution=16").code == 0
    other = settings_of("leaves-2/embed-pixels/*")["dataset"]
    assert (other["name"], other["resolution"], other["channels"]) == ("leaves-2", 16, 3)

    laptop = ["preset=laptop", "clustering.num_neighbours=3", "run_dir=laptop"]
    assert cedm("embed", "dataset=folder", "dataset.path=b/leaves", *laptop).code == 0
    (workplace / "b").rename("gone")
    kept = finished_run.settings_of(Path("laptop"), finished_run.read_any_summary(Path("laptop")))
    assert (kept.preset.name, kept.dataset.channels, kept.dataset.resolution) == ("laptop", 3, 28)

    tiny = ["dataset=folder", "dataset.path=a/leaves", "conditioning=none", "evaluation.backbone=null", *TINY_EDM]
    tiny = [word for word in tiny if "batch_size" not in word]
    trained = cedm("train", *tiny, 'run_dir="Läufe"')
    assert trained.code == 0, trained
    for line in trained.out.rpartition("Next: ")[2].splitlines()[:2]:
        _, command, *words = shlex.split(line)
        assert cedm(command, *words, "--cfg", "job").code == 0, line
        assert "evaluation.backbone=null" not in words  # a distance is taken on it
    # What the rule looks at has changed since: the cache is gone, a GPU has come, the rule itself is another
    (workplace / "cache").rename("away")
    values = {"dataset.resolution": 8, "network": "ddpmpp_64"}
    monkeypatch.setattr(own_images, "preset_values", lambda *_, **__: ("published", values))
    again = cedm("train", *tiny, 'run_dir="Läufe"')
    assert (again.code, "Nothing to do: this run is finished" in again.out) == (0, True), again
    shutil.rmtree("cache")
    (workplace / "away").rename("cache")  # which remembers too
    again = cedm("embed", "dataset=folder", "dataset.path=a/leaves")
    assert (again.code, "Nothing to do" in again.out) == (0, True), again
    save_images(workplace / "a/leaves/more", 3, (20, 14))  # other images: chosen again
    changed = cedm("embed", "dataset=folder", "dataset.path=a/leaves", "backbone=pixels", "clustering=kmeans")
    assert "preset      published for leaves: dataset.resolution=8" in changed.out, changed


def test_a_day_on_a_cpu_is_asked_for(cedm: Cedm, workplace: Path) -> None:
    save_images(workplace / "leaves", 24, (12, 12))
    words = ["conditioning=none", "network.model_channels=8", "training.duration_kimg=1e9", "evaluation.backbone=null"]
    own = ["dataset=folder", "dataset.path=leaves", *words]
    stopped = cedm("train", *own)
    assert (stopped.code, "confirm=true" in stopped.err, "preset=laptop" in stopped.err) == (2, True, False), stopped
    assert not list(Path("runs").rglob("*"))
    hour = re.findall(r"training\.duration_kimg=([\d.e+]+)", stopped.err)
    assert 0 < float(hour[-1]) < 1e8
    assert "which takes minutes" in cedm("train", *own, "preset=published", "training.batch_size=16").err


def test_the_settings_that_make_it_an_hour() -> None:
    slow = Cost(images=200_000_000, images_per_s=0.02, measured_batch=4, num_devices=1, device="cpu")
    with pytest.raises(UserError) as refused:
        slow.refuse(512, laptop=False)
    words = dict(re.findall(r"([\w.]+)=([\w.]+)", str(refused.value)))
    assert (words["preset"], words["confirm"], words["evaluation.backbone"]) == ("laptop", "true", "null")
    assert float(words["training.duration_kimg"].rstrip(".")) * 1000 / 0.02 == pytest.approx(3600, rel=0.01)
    assert int(words["training.batch_size"]) <= 72 / 10
    for enough in (Cost(86_400, 1.0, 4, 1, "cpu"), Cost(10**12, 1.0, 4, 1, "cuda")):
        enough.refuse(512, laptop=False)
