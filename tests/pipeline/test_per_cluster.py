"""`cedm evaluate per_cluster=true`: each cluster's distance against one by hand, whose clusters they are, mistakes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from lightning_modules.diffusion.denoiser import Denoiser

from .conftest import TINY_EDM, Cedm, summary

PLAIN = ["metrics=[fd]", "memorisation=false", "per_cluster=true"]
MADE = ["num=90", "steps=2"]
BY_DIGIT = np.array([2, 5, 7, 7, 5, 3, 2, 2, 5, 7])  # digit → cluster; no image of the model is of cluster 3


def assignments(path: str = "clusters.npy") -> str:
    np.save(path, BY_DIGIT[load_digits().target])
    return f"assignments={path}"


def features(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 127.5 - 1


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Of all pairs of different images."""
    own, other, cross = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    own_mean, other_mean = (own.sum() - own.trace()) / n / (n - 1), (other.sum() - other.trace()) / m / (m - 1)
    return own_mean + other_mean - 2 * cross.mean()


def by_hand(folder: Path) -> dict[int, tuple[float, int, int]]:
    """Cluster → distance, generated and real images, of what `cedm generate` wrote."""
    labels = json.loads((folder / "images/dataset.json").read_text())["labels"]
    images = np.stack([np.array(Image.open(folder / "images" / name)) for name, _ in labels])
    asked, real = np.array([cluster for _, cluster in labels]), BY_DIGIT[load_digits().target]
    ours, theirs = features(images), features(np.rint(load_digits().images * (255 / 16)))
    found = {}
    for cluster in (2, 5, 7):
        x, y = ours[asked == cluster], theirs[real == cluster]
        found[cluster] = kernel_distance(x, y), len(x), len(y)
    return found


def test_the_distances_are_those_of_each_clusters_images(cedm: Cedm, model: Path, workplace: Path) -> None:
    """Of a model, of its images and of an array of them."""
    for form in ("png", "npy"):
        assert cedm("generate", f"ckpt={model}", *MADE, f"format={form}", f"run_dir={form}").code == 0
    expected = by_hand(workplace / "png")
    Path("names.csv").write_text("cluster,name\n5,round\n3,rare\n7,7\n")
    words = [*PLAIN, assignments(), "cluster_names=names.csv"]
    for number, generated in enumerate(([f"generated={model}", *MADE], ["generated=png"], ["generated=npy"])):
        logger = "none" if number == 1 else "tensorboard"
        result = cedm("evaluate", *generated, *words, f"run_dir=run{number}", f"logger={logger}")
        assert result.code == 0, result.err
        found = summary(f"run{number}")
        rows = found["per_cluster"]["clusters"]
        assert [row["distance"] for row in rows] == sorted((row["distance"] for row in rows), reverse=True)
        assert {row["cluster"]: (row["distance"], row["generated"], row["real"]) for row in rows} == {
            cluster: pytest.approx(one, rel=1e-5) for cluster, one in expected.items()
        }
        (left_out,) = found["per_cluster"]["left_out"]
        assert left_out == {"cluster": 3, "name": "rare", "generated": 0, "real": 182}
        weights, values = zip(*((row["real"], row["distance"]) for row in rows), strict=True)
        assert found["kd_per_cluster_pixels"] == pytest.approx(np.average(values, weights=weights))
        assert found["scores"]["kd_per_cluster_pixels"]["protocol"]["fewest_images"] == 10
        shown = result.out.split("kernel distance ↓")[1].splitlines()[1:4]
        assert [line.split("  ")[1].strip() for line in shown] == [
            f"{row['cluster']}{' round' if row['cluster'] == 5 else ''}" for row in rows
        ]
        assert "(3 rare)" in result.out
    assert [bool([*Path(f"run{number}").glob("events*")]) for number in range(3)] == [True, False, True]
    assert cedm("report", "run=run0", "file=page.html").code == 0
    assert "5 round" in Path("page.html").read_text()


def test_several_sets_and_images_held_out(cedm: Cedm, model: Path) -> None:
    """A cluster's distance is the mean of those of the sets; distances to images held out know no clusters."""
    words = [f"generated={model}", "steps=2", *PLAIN, assignments(), "dataset.holdout=0.1"]
    for count, more in (("both", ["sets=2"]), ("first", []), ("second", ["first_seed=60"])):
        result = cedm("evaluate", *words, "num=60", *more, f"run_dir={count}")
        assert result.code == 0, result.err
    both, *single = (
        {row["cluster"]: row for row in summary(name)["per_cluster"]["clusters"]}
        for name in ("both", "first", "second")
    )
    for cluster, row in both.items():
        assert row["distance"] == pytest.approx(np.mean([one[cluster]["distance"] for one in single]), rel=1e-6)
        assert row["error"] == pytest.approx(np.hypot(*(one[cluster]["error"] for one in single)) / 2, rel=1e-6)
        assert row["generated"] == sum(one[cluster]["generated"] for one in single)
        assert row["real"] == single[0][cluster]["real"]
    names = summary("both")["scores"]
    assert "fd_pixels_held_out" in names
    assert not [name for name in names if name.startswith("kd_per_cluster_pixels_")]


def test_the_clusters_are_those_of_the_training(cedm: Cedm, workplace: Path) -> None:
    """Whatever this command's own settings are; also of images that its model made, and where images were left out."""
    words = [*TINY_EDM, assignments(), "dataset.max_images=600", "evaluation.backbone=null"]
    trained = cedm("train", *words, "run_dir=run")
    assert trained.code == 0, trained.err
    assert cedm("generate", "ckpt=run", *MADE, "run_dir=made").code == 0
    counts = np.bincount(BY_DIGIT[load_digits().target[np.arange(600) * 1797 // 600]])
    for number, words in enumerate((["generated=run", *MADE], ["generated=made", "dataset.max_images=600"])):
        result = cedm("evaluate", *words, *PLAIN, f"run_dir=run{number}")
        assert result.code == 0, result.err
        real = {row["cluster"]: row["real"] for row in summary(f"run{number}")["per_cluster"]["clusters"]}
        assert len(real) > 2
        assert all(counts[cluster] == count for cluster, count in real.items())
    bare = Path("run/denoiser.safetensors").rename("bare.safetensors")
    for words in ([], ["conditioning=none"]):
        refused = cedm("evaluate", f"generated={bare}", *MADE, *PLAIN, *words)
        assert (refused.code, "Traceback" in refused.err) == (2, False), refused.err
    given = cedm("evaluate", f"generated={bare}", *MADE, *PLAIN, "assignments=clusters.npy", "dataset.max_images=600")
    assert given.code == 0, given.err


def write(folder: str, images: Sequence[np.ndarray], labels: Sequence[int]) -> None:
    Path(folder).mkdir()
    for row, image in enumerate(images):
        Image.fromarray(image).save(Path(folder, f"{row}.png"))
    pairs = [[f"{row}.png", label] for row, label in enumerate(labels)]
    Path(folder, "dataset.json").write_text(json.dumps({"labels": pairs}))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["generated=plain.npz"], ["plain.npz does not say which cluster"]),
        (["generated=few"], ["no cluster has 10 images on both sides, 3 at most"]),
        (["generated=plain.npz", "reference=any.npz"], ["Leave reference= out"]),
        (["generated=none.safetensors", *MADE], ["per_cluster=true", "a model without clusters"]),
        (["generated=elsewhere.safetensors", *MADE], ["not the clusters that elsewhere.safetensors was trained on"]),
        (["generated=few", "evaluation.backbone=null", "metrics=[is]"], ["evaluation.backbone"]),
        (["generated=few", "metrics=[per_cluster]"], ["no metric 'per_cluster'"]),
    ],
)
def test_a_mistake_ends_in_one_message(cedm: Cedm, model: Path, words: list[str], expected: list[str]) -> None:
    images = np.rint(load_digits().images[:12] * (255 / 16)).astype(np.uint8)
    write("few", images, [2, 2, 2, *[5, 7, 3] * 3])
    np.savez("plain.npz", images[..., np.newaxis])
    denoiser = Denoiser.from_pretrained(model)
    denoiser.save_pretrained("elsewhere.safetensors", pseudo_labels="another")
    Denoiser(denoiser.settings, 8, 1).save_pretrained("none.safetensors", dataset="digits")
    result = cedm("evaluate", *PLAIN, assignments(), *words)
    assert (result.code, "Traceback" in result.err) == (2, False), result.err
    assert all(text in result.err for text in expected), result.err
    assert not Path("runs").exists()
