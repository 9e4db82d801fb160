"""The distance while training: its value, its independence of the batch, its memory across a resume."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.frechet import FrechetDistance
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.sampler import draw_labels
from lightning_modules.edm_module import EDMModule
from lightning_modules.training_settings import TrainingSettings
from metrics.frechet import FeatureStatistics, Statistics, frechet_distance
from storage.errors import UserError

PIXELS: dict[str, Any] = {"kind": "pixels"}


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1).float()


class FakeTrainer:
    global_rank, world_size, is_global_zero, loggers, global_step = 0, 1, True, (), 0

    def print(self, message: str) -> None:
        self.message = message


def noise(denoiser: object, seeds: Tensor, labels: Tensor | None) -> Tensor:
    """A generator that depends on seed and label alone."""
    assert labels is not None
    rows = [
        torch.randint(0, 200, (1, 4, 4), generator=torch.Generator().manual_seed(1000 * int(label) + int(seed)))
        for seed, label in zip(seeds, labels, strict=True)
    ]
    return torch.stack(rows).to(torch.uint8)


@pytest.fixture
def module() -> EDMModule:
    network = NetworkSettings(model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=0.0)
    denoiser = Denoiser(network, 4, 1, label_dim=2, augment_dim=9)
    denoiser.cluster_frequencies = torch.tensor([0.25, 0.75])
    module = EDMModule(denoiser, TrainingSettings(batch_size=8))
    module._trainer = FakeTrainer()  # type: ignore[assignment]
    return module


@pytest.fixture
def reference() -> Statistics:
    statistics = FeatureStatistics(16)
    statistics.update(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * 50 + 100)
    return statistics.compute()


def test_distance_equals_the_one_computed_at_once(module: EDMModule, reference: Statistics) -> None:
    distances = []
    for batch_size in (7, 64):
        callback = FrechetDistance("fd_pixels", pixels, PIXELS, reference, noise, 1, 100, batch_size)
        distances.append(callback.act(FakeTrainer(), module))  # type: ignore[arg-type]

    seeds = torch.arange(100)
    labels = draw_labels(seeds, torch.tensor([0.25, 0.75]))
    assert 0.6 < labels.float().mean() < 0.9  # drawn by frequency
    generated = FeatureStatistics(16)
    generated.update(pixels(noise(None, seeds, labels)))
    expected = frechet_distance(generated.compute(), reference)
    assert distances == pytest.approx([expected, expected], rel=1e-9)


def test_history_survives_a_resume_by_the_same_extractor_alone(module: EDMModule, reference: Statistics) -> None:
    def callback(name: str, identity: dict[str, Any]) -> FrechetDistance:
        return FrechetDistance(name, pixels, identity, reference, noise, 1, 40)

    first, second = callback("fd_pixels", PIXELS), callback("fd_pixels", PIXELS)
    first.act(FakeTrainer(), module)  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    assert second.history == first.history
    assert len(second.history) == 1
    for other in (callback("fid", PIXELS), callback("fd_pixels", {**PIXELS, "resolution": 4})):
        with pytest.raises(UserError, match="one curve can't hold both"):
            other.load_state_dict(first.state_dict())


def test_ranks_with_different_extractors_stop_instead_of_hanging(module: EDMModule, reference: Statistics) -> None:
    callback = FrechetDistance("fd_pixels", pixels, PIXELS, reference, noise, 1, 40)
    trainer = FakeTrainer()
    trainer.strategy = SimpleNamespace(broadcast=lambda own: "that of rank 0")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="another feature extractor"):
        callback.on_fit_start(trainer, module)  # type: ignore[arg-type]
