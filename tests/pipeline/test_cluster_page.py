"""The page of a clustering: what it knows is what the pseudo-labels say, whatever the files are called."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.pseudo_labels.cluster_names import read_cluster_names
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from pipeline.pictures.sprites import SHEET, make_sprites
from storage.errors import UserError

from .conftest import Cedm

KMEANS = ["clustering=kmeans", "clustering.num_clusters=12", "map_images=60"]
HOSTILE = [
    "a<|script>alert(1).png",  # with / for |: closes the page's script
    '"><img src=x onerror=alert(1)>.png',
    "{{ 7 * 7 }}{% raw %}.png",
    "it's & <b>.png",
    "-->\\u003c.png",
    "__proto__.png",
    "ünïcödé 画像.png",
]


def page_data(path: Path) -> dict[str, Any]:
    """What is between the tags of the page's data, as a browser reads it."""
    data: dict[str, Any] = json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])
    return data


def unpacked(text: str, kind: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind).reshape(-1, *shape)


def test_the_page_knows_what_the_pseudo_labels_say(cedm: Cedm, workplace: Path) -> None:
    assert cedm("embed", *KMEANS).code == 0
    result = cedm("cluster", *KMEANS, "run_dir=run")
    assert (result.code, "run/clusters.html" in result.out) == (0, True), result.err
    labels, data = PseudoLabels.load("run/pseudo_labels.safetensors"), page_data(workplace / "run/clusters.html")
    clusters = data["clusters"]
    assert clusters["images"] == clusters["shown"] == labels.counts.tolist()
    cluster_of = np.repeat(clusters["cluster"], clusters["shown"])
    rows = [labels.ids.index(image_id) for image_id in data["ids"]]
    assert sorted(rows) == list(range(1797))
    assert cluster_of.tolist() == labels.cluster_ids[rows].tolist()
    confidence = unpacked(data["confidence"], "<f4")
    assert confidence.tolist() == labels.confidence[rows].tolist()
    same = cluster_of[1:] == cluster_of[:-1]
    assert (np.diff(confidence)[same] <= 0).all()  # from the most to the least confident
    table = list(csv.DictReader((workplace / "run/clusters.csv").open()))
    assert clusters["purity"] == pytest.approx([float(row["purity"]) for row in table], rel=1e-4)

    places, neighbours = unpacked(data["places"], "<u2", 2), unpacked(data["neighbours"], "<u2", 8)
    assert (places.min(), places.max(), len(places)) == (0, 65535, 1797)
    classes = unpacked(data["classes"], "<i4")
    assert (classes[neighbours[:, 0]] == classes).mean() > 0.95  # as 1-nearest-neighbour is right on the digits
    middles = np.stack([places[classes == one].mean(axis=0) for one in range(10)])
    own = np.linalg.norm(places[:, None] - middles, axis=2).argmin(axis=1)
    assert (own == classes).mean() > 0.7

    assert cedm("clusters", "run=run", "page_images=100", "file=few.html").code == 0
    few = page_data(workplace / "few.html")
    assert (len(few["ids"]), sum(few["clusters"]["images"])) == (100, 1797)
    assert "1,797, of which a random sample of 100 is shown" in (workplace / "few.html").read_text()


def test_the_page_of_a_run_that_found_its_clusters_is_not_of_a_swapped_entry(cedm: Cedm, workplace: Path) -> None:
    assert cedm("embed", *KMEANS).code == 0
    for words in (["run_dir=run"], ["run_dir=again"], ["seed=1"]):
        assert cedm("cluster", *KMEANS, "map_images=0", *words).code == 0
    assert not (workplace / "again/pseudo_labels.safetensors").exists()
    assert cedm("clusters", "run=again").code == 0
    first, second = (workplace / "cache/pseudo-labels").glob("*.safetensors")
    swap = first.rename(first.with_suffix(".aside"))
    second.rename(first)
    swap.rename(second)
    result = cedm("clusters", "run=again")
    assert (result.code, "no such file (pseudo-labels)" in result.err) == (2, True), result.err


def test_hostile_file_names_are_shown_and_not_obeyed(cedm: Cedm, workplace: Path) -> None:
    for number, name in enumerate(HOSTILE):
        path = workplace / "images" / name.replace("|", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(path)
    words = ["dataset=folder", "dataset.path=images", "dataset.resolution=8", "dataset.labels=none"]
    result = cedm("cluster", *words, "clustering=random", "clustering.num_clusters=2", "run_dir=run")
    assert result.code == 0, result.err
    data, html = page_data(workplace / "run/clusters.html"), (workplace / "run/clusters.html").read_text()
    assert sorted(data["ids"]) == sorted(name.replace("|", "/") for name in HOSTILE)
    assert (data["confidence"], data["places"], data["neighbours"]) == (None, None, None)
    assert html.count("<script") == html.count("</script>") == 3
    assert not {"<img", "49", "<b>"} & {text for text in ("<img", "<b>") if text in html}


def test_names_go_into_the_page_and_come_back(cedm: Cedm, workplace: Path) -> None:
    words = ["clustering=random", "clustering.num_clusters=3"]
    assert cedm("cluster", *words, "run_dir=run").code == 0
    names = {0: 'round, "open" ones', 2: "</script><b>Äpfel 🍎"}
    with (workplace / "names.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["cluster", "name"], *names.items(), [1, ""]])
    gallery = (workplace / "run/gallery.png").read_bytes()
    result = cedm("clusters", "run=run", "cluster_names=names.csv")
    assert result.code == 0, result.err
    assert (workplace / "run/gallery.png").read_bytes() != gallery  # they stand there too
    assert page_data(workplace / "run/clusters.html")["clusters"]["name"] == [names[0], "", names[2]]
    assert read_cluster_names(Path("names.csv"), 3) == names
    named = cedm("cluster", *words, "cluster_names=names.csv", "run_dir=named", "overwrite=true")
    assert named.code == 0, named.err
    assert page_data(workplace / "named/clusters.html")["clusters"]["name"] == [names[0], "", names[2]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cluster,name\n3,x\n", "no cluster '3'; 0 to 2"),
        ("cluster,name\n-1,x\n", "no cluster '-1'"),
        ("cluster,name\n1e0,x\n", "no cluster '1e0'"),
        (f"cluster,name\n{'9' * 5000},x\n", "no cluster '999"),
        ("cluster,name\n1,x\n1,y\n", "two names, 'x' and 'y'"),
        (f"cluster,name\n1,{'x' * 81}\n", "81 characters"),
        ("cluster\n1\n", "no column 'name'"),
        ("cluster,name\n1,\x1b[31mred\n", "control character"),
        ("", "empty"),
    ],
)
def test_what_is_wrong_with_a_file_of_names(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(UserError) as error:
        read_cluster_names(tmp_path / "names.csv", 3)
    assert told in str(error.value)


def test_runs_without_clusters_are_refused(cedm: Cedm, workplace: Path) -> None:
    assert cedm("embed", *KMEANS, "run_dir=run").code == 0
    for run in ("run", "nowhere"):
        result = cedm("clusters", f"run={run}")
        assert (result.code, f"run={run}: " in result.err) == (2, True), result.err


def decoded(url: str) -> Image.Image:
    import io

    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_each_thumbnail_is_its_image() -> None:
    colours = torch.randint(0, 256, (SHEET + 40, 3, 1, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for most, error in ((10**8, 0), (60_000, 9)):  # lossless, and as JPEG
        sprites = make_sprites(lambda row: colours[row].expand(3, 16, 16), len(colours), most)
        assert (len(sprites["sheets"]), sprites["size"]) == (2, 16)
        for row in (0, 31, 32, SHEET - 1, SHEET, SHEET + 39):
            sheet, place = decoded(sprites["sheets"][row // SHEET]).convert("RGB"), row % SHEET
            left, top = place % sprites["columns"] * 16, place // sprites["columns"] * 16
            found = np.array(sheet.crop((left, top, left + 16, top + 16)), dtype=float)
            assert abs(found - colours[row].flatten().numpy()).max() <= error


@pytest.mark.parametrize(
    ("shape", "count"), [((1, 8, 8), 3), ((3, 64, 64), 40), ((5, 28, 28), 33), ((1, 28, 28), 2000)]
)
def test_thumbnails_fit_into_what_there_is_room_for(shape: tuple[int, int, int], count: int) -> None:
    """Noise is the worst that there is."""
    images = torch.randint(0, 256, (50, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for most in (10**9, 900 * count):
        sprites = make_sprites(lambda row: images[row % 50], count, most)
        assert sum(map(len, sprites["sheets"])) <= most
        width, height = decoded(sprites["sheets"][0]).size
        assert (width, height % sprites["size"]) == (sprites["columns"] * sprites["size"], 0)
