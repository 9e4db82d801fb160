"""Two processes under DDP hold the same weights, and those of one process, whatever is accumulated."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from callbacks.schedule import EveryKimg
from callbacks.snapshots import Snapshots
from datamodules.image_datamodule import ImageBatch
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.edm_module import EDMModule
from lightning_modules.training_settings import TrainingSettings
from pipeline.running.fit import fit
from pipeline.running.trainer_settings import TrainerSettings

BATCH, STEPS = 16, 3
NETWORK = NetworkSettings(model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=0.0)


class Stream(LightningDataModule, IterableDataset):
    """The passes of one rank; each step sees the next `BATCH` images, whoever takes which."""

    def __init__(self, passes: int) -> None:
        LightningDataModule.__init__(self)
        self.passes = passes

    def __iter__(self) -> Iterator[ImageBatch]:
        world, rank = self.trainer.world_size, self.trainer.global_rank
        for part in torch.arange(10 * BATCH).split(BATCH // self.passes // world)[rank::world]:
            images = (part.reshape(-1, 1, 1, 1) * torch.arange(1, 65).reshape(1, 1, 8, 8)) % 251
            yield ImageBatch(images.to(torch.uint8), part % 3, part)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self, batch_size=None)


class Options(Callback):
    """Looks at how PyTorch was told to work."""

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        model = trainer.strategy.model
        self.seen = {name: getattr(model, name, None) for name in ("gradient_as_bucket_view", "broadcast_buffers")}
        self.static_graph = getattr(model, "static_graph", None)


def trained(passes: int, devices: int, folder: Path) -> tuple[Tensor, Options]:
    """The weights after a few steps, and the options."""
    torch.manual_seed(0)
    denoiser, options = Denoiser(NETWORK, 8, 1, label_dim=3, augment_dim=9), Options()
    module = EDMModule(denoiser, TrainingSettings(batch_size=BATCH, lr=1e-3, lr_rampup_kimg=0))
    settings = TrainerSettings(accelerator="cpu", devices=devices, enable_progress_bar=False)
    steps = {"max_steps": STEPS, "images_per_step": BATCH, "accumulate": passes, "precision": "32-true"}
    callbacks = [options, Snapshots(folder / "snapshots", EveryKimg(1e6), keep=1)]
    fit(settings, folder, module, Stream(passes), callbacks, **steps, shown={}, outcomes=(), loggers=())
    return torch.cat([weight.detach().flatten() for weight in module.denoiser.parameters()]), options


@pytest.mark.slow
def test_two_processes_hold_the_weights_of_one(tmp_path: Path) -> None:
    """Also with passes that are accumulated, under which a static graph would stop the gradients between processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(rank)],
            env={**os.environ, "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    for passes in (1, 4):
        first, second = (torch.load(tmp_path / f"{rank}-{passes}.pt") for rank in range(2))
        alone, _ = trained(passes, 1, tmp_path / f"alone-{passes}")
        assert torch.equal(first["weights"], second["weights"])
        torch.testing.assert_close(first["weights"], alone, rtol=1e-3, atol=2e-5)
        assert first["seen"] == {"gradient_as_bucket_view": True, "broadcast_buffers": False}
        assert first["static_graph"] == (passes == 1)


if __name__ == "__main__":
    for count in (1, 4):
        weights, looked = trained(count, 2, Path(sys.argv[1]) / f"two-{count}")
        found = {"weights": weights, "seen": looked.seen, "static_graph": looked.static_graph}
        torch.save(found, f"{sys.argv[1]}/{sys.argv[2]}-{count}.pt")
