"""The loss on images held out: its value, the alarm of a model that knows its training images, and its file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.held_out import HeldOutLoss, Sample
from lightning_modules.diffusion.encoders import PixelEncoder
from lightning_modules.diffusion.objective import EDMObjective
from metrics.denoising_errors import DenoisingErrors

IMAGES = torch.randint(0, 256, (120, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TRAINING, HELD_OUT = torch.arange(0, 120, 2), torch.arange(1, 120, 2)
TRAINER: Any = SimpleNamespace(world_size=1, global_rank=0, is_global_zero=True, loggers=(), print=lambda _: None)


class Denoiser:
    """The best denoiser of the images at `rows`, each as likely as the others; and of equally many normal ones."""

    encoder, label_dim = PixelEncoder(), 2

    def __init__(self, rows: Tensor, labels: Tensor | None = None) -> None:
        self.known, self.labels = self.encoder.encode(IMAGES[rows]).flatten(1), labels

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        logits = -torch.cdist(x.flatten(1), self.known).square() / (2 * sigma[:, None] ** 2)  # [B, N]
        if labels is not None and self.labels is not None:
            logits = logits.masked_fill(labels[:, self.labels] == 0, -torch.inf)
        return (logits.softmax(dim=1) @ self.known).view_as(x)


def module_of(denoiser: Denoiser) -> Any:
    return SimpleNamespace(averaged_denoiser=denoiser, device=torch.device("cpu"), objective=EDMObjective(), nimg=3000)


def loss_of(path: Path, batch_size: int = 50, labels: Tensor | None = None) -> HeldOutLoss:
    held_out, training = (
        Sample(lambda rows: IMAGES[rows], rows, rows, None if labels is None else labels[rows])
        for rows in (HELD_OUT, TRAINING)
    )
    return HeldOutLoss(held_out, training, 1, batch_size, path, {"images": "known"})


def test_a_model_that_knows_its_training_images_raises_the_alarm(tmp_path: Path) -> None:
    callback = loss_of(tmp_path / "errors.safetensors")
    look = callback.evaluate(TRAINER, module_of(Denoiser(TRAINING)))
    assert look is not None
    assert look.suggests_memorisation
    assert look.held_out > 2 * look.training
    fair = callback.evaluate(TRAINER, module_of(Denoiser(torch.arange(120))))
    assert fair is not None
    assert not fair.suggests_memorisation
    assert abs(fair.gap.value) < 3 * fair.gap.error
    assert "suggests memorisation" in str(look)
    restored = loss_of(tmp_path / "errors.safetensors")
    restored.load_state_dict(callback.state_dict())
    assert restored.summary == callback.summary


def test_the_file_has_the_errors_of_each_image_whatever_the_batch(tmp_path: Path) -> None:
    labels = torch.arange(120) // 60
    found = []
    for batch_size in (7, 60):
        callback = loss_of(tmp_path / f"{batch_size}.safetensors", batch_size, labels)
        look = callback.evaluate(TRAINER, module_of(Denoiser(torch.arange(120), labels)))
        found.append(DenoisingErrors.load(callback.path))
    torch.testing.assert_close(found[0].held_out, found[1].held_out)
    assert found[0].meta == {"images": "known", "nimg": 3000}
    assert torch.equal(found[0].training_places, TRAINING)

    objective, errors = EDMObjective(), found[0].held_out.double().mean(dim=0)
    assert look is not None
    for (sigma, held_out, _), error in zip(look.by_level, errors.tolist(), strict=True):
        assert held_out == pytest.approx(float(objective.weight(torch.tensor(sigma))) * error, rel=1e-5)
    without = loss_of(tmp_path / "without.safetensors").evaluate(TRAINER, module_of(Denoiser(torch.arange(120))))
    assert without is not None
    assert look.held_out < without.held_out
