"""What `cedm evaluate` refuses: arrays that are no images, and settings that contradict one another."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from .conftest import Cedm
from .test_evaluate import digits, write_pngs


def test_arrays_that_are_no_images(cedm: Cedm, workplace: Path) -> None:
    images = np.zeros((9, 8, 8, 1), np.uint8)
    np.savez("float.npz", images / 255)
    np.save("wide.npy", images.astype(np.uint16))
    np.savez("two.npz", samples=images, labels=np.arange(9))
    np.savez("statistics.npz", mu=np.zeros(64), sigma=np.eye(64))
    np.savez("turned.npz", np.zeros((9, 3, 8, 8), np.uint8))
    np.savez("flat.npz", np.zeros((9, 64), np.uint8))
    np.savez("none.npz", images[:0])
    np.savez("large.npz", np.zeros((9, 16, 16, 1), np.uint8))
    np.savez("objects.npz", np.array([images, None], dtype=object))
    Path("text.npz").write_text("no archive")
    Path("cut.npz").write_bytes(Path("large.npz").read_bytes()[:700])
    expected = {
        "float.npz": ["float64", "uint8"],
        "wide.npy": ["uint16", "uint8"],
        "two.npz": ["samples, labels", "arr_0"],
        "statistics.npz": ["mu, sigma", "reference="],
        "turned.npz": ["[9, 3, 8, 8]", "[N, H, W, C]"],
        "flat.npz": ["[9, 64]", "[N, H, W, C]"],
        "none.npz": ["[0, 8, 8, 1]", "[N, H, W, C]"],
        "large.npz": ["16×16", "8×8"],
        "objects.npz": ["object", "uint8"],
        "text.npz": ["text.npz", "arr_0"],
        "cut.npz": ["cut.npz", "arr_0"],
    }
    for name, words in expected.items():
        result = cedm("evaluate", f"generated={name}", "metrics=[fd]", "memorisation=false")
        assert (result.code, "Traceback" in result.err) == (2, False), result.err
        assert all(word in result.err for word in (name, *words)), result.err
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ["generated", "generated=VALUE"]),
        (["generated=gone"], ["generated=gone", "cedm generate"]),
        (["generated=empty"], ["no images"]),
        (["generated=few"], ["prdc.k_density_coverage=5", "has 5 images"]),
        (["generated=large"], ["16×16", "8×8", "never resized"]),
        (["generated=colour"], ["3 channels", "dataset.channels"]),
        (["generated=text.zip"], ["text.zip", "ZIP"]),
        (["generated=damaged.zip"], ["0.png"]),
        (["generated=few", "sets=3"], ["sets=3"]),
        (["generated=[few,denoiser.safetensors]"], ["a list is of images"]),
        (["generated=denoiser.safetensors", "dataset=cifar10"], ["8×8", "32×32"]),
        (["generated=denoiser.safetensors", "clusters=[4]"], ["clusters=[4]"]),
        (["generated=few", "metrics=[fd]", "evaluation.backbone=null"], ["evaluation.backbone=null"]),
        (["generated=few", "neighbour_backbone=pixel"], ["neighbour_backbone=pixel"]),
        (["generated=few", "metrics=[fd,fid]", "save_reference=a.npz"], ["one of fid"]),
        (["generated=few", "metrics=[fd]", "reference=gone.npz"], ["gone.npz"]),
        (["generated=few", "metrics=[fd]", "reference=other.npz"], ["3 features", "64"]),
        (["generated=few", "metrics=[fd,prdc]", "reference=other.npz"], ["prdc", "metrics=[fd]"]),
        (["generated=few", "metrics=[fid]", "evaluation.weights.inception=bad.pth"], ["bad.pth: refused"]),
        (
            ["generated=few", "metrics=[fdd]", "evaluation.weights.dinov2_vitl14=no"],
            ["evaluation.weights.dinov2_vitl14"],
        ),
    ],
)
def test_a_mistake_ends_in_one_message(
    cedm: Cedm, model: Path, workplace: Path, overrides: list[str], expected: list[str]
) -> None:
    write_pngs(workplace / "few", digits()[:5])
    write_pngs(workplace / "large", np.zeros((9, 16, 16), np.uint8))
    write_pngs(workplace / "colour", np.zeros((9, 8, 8, 3), np.uint8))
    write_pngs(workplace / "empty", digits()[:0])
    (workplace / "text.zip").write_text("no archive")
    with zipfile.ZipFile(workplace / "damaged.zip", "w") as archive:
        archive.writestr("0.png", b"no image")
    np.savez(workplace / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    torch.save({"weights": np.random.default_rng(0)}, workplace / "bad.pth")  # loading it would run code
    result = cedm("evaluate", *overrides)
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    for words in expected:
        assert words in result.err
    assert not (workplace / "runs").exists()
