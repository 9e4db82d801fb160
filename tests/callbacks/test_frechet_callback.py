"""The distance while training: its value, its independence of the batch, its memory across a resume."""

from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.frechet import FrechetDistance
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.label_draws import draw_labels
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.edm_module import EDMModule
from lightning_modules.training_settings import TrainingSettings
from metrics.frechet import FeatureStatistics, frechet_distance
from storage.errors import UserError


class Pixels:
    identity: dict[str, Any] = {"kind": "pixels"}  # noqa: RUF012

    def extract(self, images: Tensor) -> Tensor:
        return images.flatten(1).float()

    def to(self, device: torch.device) -> "Pixels":
        return self


class OtherRank:
    """The strategy of a process whose rank 0 has an extractor of its own."""

    def broadcast(self, value: str) -> str:
        return "another"


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


def test_distance_equals_the_one_computed_at_once(module: EDMModule) -> None:
    reference = FeatureStatistics(16)
    reference.update(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * 50 + 100)
    distances = []
    for batch_size in (7, 64):
        callback = FrechetDistance("fd_pixels", Pixels(), reference.compute(), noise, 1, 100, batch_size)
        distances.append(callback.evaluate(FakeTrainer(), module))  # type: ignore[arg-type]

    seeds = torch.arange(100)
    labels = draw_labels(seeds, module.averaged_denoiser.cluster_frequencies)
    assert labels is not None
    assert 0.6 < labels.float().mean() < 0.9  # drawn by frequency
    generated = FeatureStatistics(16)
    generated.update(Pixels().extract(noise(None, seeds, labels)))
    expected = frechet_distance(generated.compute(), reference.compute())
    assert distances == pytest.approx([expected, expected], rel=1e-9)


def test_history_survives_a_resume(module: EDMModule) -> None:
    reference = FeatureStatistics(16)
    reference.update(torch.randn(50, 16))
    first = FrechetDistance("fd_pixels", Pixels(), reference.compute(), noise, 1, 40)
    first.evaluate(FakeTrainer(), module)  # type: ignore[arg-type]
    second = FrechetDistance("fd_pixels", Pixels(), reference.compute(), noise, 1, 40)
    second.load_state_dict(first.state_dict())
    assert second.history == first.history
    assert len(second.history) == 1


def test_distances_of_another_extractor_are_not_continued(module: EDMModule) -> None:
    reference = FeatureStatistics(16)
    reference.update(torch.randn(50, 16))
    first = FrechetDistance("fd_pixels", Pixels(), reference.compute(), noise, 1, 40)
    first.evaluate(FakeTrainer(), module)  # type: ignore[arg-type]
    for name, identity in (("fid", {"kind": "pixels"}), ("fd_pixels", {"kind": "pixels", "resolution": 4})):
        other = Pixels()
        other.identity = identity
        second = FrechetDistance(name, other, reference.compute(), noise, 1, 40)
        with pytest.raises(UserError, match="one curve can't hold both"):
            second.load_state_dict(first.state_dict())


def test_ranks_with_different_extractors_stop_instead_of_hanging(module: EDMModule) -> None:
    reference = FeatureStatistics(16)
    reference.update(torch.randn(50, 16))
    callback = FrechetDistance("fd_pixels", Pixels(), reference.compute(), noise, 1, 40)
    trainer = FakeTrainer()
    trainer.strategy = OtherRank()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="another feature extractor"):
        callback.on_fit_start(trainer, module)  # type: ignore[arg-type]
