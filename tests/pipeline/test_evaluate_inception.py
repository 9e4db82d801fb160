"""FID, KID, Inception score, precision and recall, against torch-fidelity's own command on the same files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from .conftest import Cedm

pytestmark = pytest.mark.slow


@pytest.fixture
def weights(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights in the format that torch-fidelity publishes its own in."""
    with monkeypatch.context() as patch:  # build the network without its weights, to save random ones
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception", ["2048"])
    normalise_as_trained(network)
    torch.save(network.state_dict(), workplace / "random.pth")
    return workplace / "random.pth"


def normalise_as_trained(network: FeatureExtractorInceptionV3) -> None:
    """Statistics for the normalisation layers, without which features and logits of random weights hardly differ."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the batch's own
    network.train()
    network(torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8))
    network.eval()
    network.fc.weight.mul_(10)


def write_images(folder: Path, count: int, seed: int, low: int) -> Path:
    """Colour images of smooth blobs."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for index in range(count):
        small = rng.integers(low, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{index:03d}.png")
    return folder


def test_numbers_equal_torch_fidelitys(cedm: Cedm, workplace: Path, weights: Path) -> None:
    generated, real = write_images(workplace / "made", 24, 0, 60), write_images(workplace / "real", 30, 1, 0)
    result = cedm(
        "evaluate",
        "dataset=folder",
        f"dataset.path={real}",
        "dataset.resolution=32",
        f"generated={generated}",
        "metrics=[fid,kid,is,prdc]",
        f"evaluation.weights.inception={weights}",
        "kid.subset_size=20",
        "kid.num_subsets=10",
        "inception_score.num_splits=4",
        "batch_size=15",
        "run_dir=run",
    )
    assert result.code == 0, result.err
    found = json.loads((workplace / "run/summary.json").read_text())
    expected = torch_fidelity.calculate_metrics(
        input1=str(generated),
        input2=str(real),
        cuda=False,
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subset_size=20,
        kid_subsets=10,
        isc_splits=4,
        prc_neighborhood=3,
        batch_size=15,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert found["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found["inception_score"] > 1.001
    assert found["precision"] == pytest.approx(expected["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(expected["recall"], abs=1e-6)
    protocol = found["scores"]["fid"]["protocol"]
    assert len(protocol["extractor"]["weights"]) == 64
    assert "not NVIDIA's pickle" in protocol["extractor_is"]
