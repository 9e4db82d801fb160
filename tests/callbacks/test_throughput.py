"""The rate of training: by the clock, waiting for images included, other callbacks' work left out."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from callbacks import throughput
from callbacks.schedule import EveryKimg
from callbacks.throughput import Throughput
from datamodules.image_datamodule import ImageBatch
from lightning_modules import processes
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.edm_module import EDMModule
from lightning_modules.training_settings import TrainingSettings

BATCH = 8
FIRST, WAIT, PASS, EVALUATION = 60.0, 0.25, 1.0, 1000.0  # seconds: the first pass, loading, other passes, others' work


class Clock:
    """Stands for the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Images(IterableDataset):
    """Batches that are waited for."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __iter__(self) -> Iterator[ImageBatch]:
        while True:
            self.clock.now += WAIT
            yield ImageBatch(torch.zeros(BATCH), torch.zeros(BATCH), torch.zeros(BATCH))


class Module(EDMModule):
    """Trains nothing, and takes its time."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.clock.now += PASS if batch_idx else FIRST  # type: ignore[operator, union-attr]
        return sum((weight.sum() * 0 for weight in self.denoiser.parameters()), torch.zeros(()))


class Evaluation(Callback):
    """Takes long, every three steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.every = clock, EveryKimg(3 * BATCH / 1000)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if self.every.is_due(trainer, pl_module, rest[-1]):
            self.clock.now += EVALUATION


def test_the_rate_counts_waiting_for_images_and_nothing_of_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    network = NetworkSettings(model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=0.0)
    module = Module(Denoiser(network, 4, 1, label_dim=0, augment_dim=9), TrainingSettings(batch_size=BATCH))
    module.clock = clock  # type: ignore[assignment]
    logged: list[dict[str, float]] = []
    logger = CSVLogger(tmp_path)
    monkeypatch.setattr(logger, "log_metrics", lambda values, step: logged.append(values))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=12,
        max_epochs=-1,
        callbacks=[Throughput(4 * BATCH / 1000), Evaluation(clock)],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(Images(clock), batch_size=None))
    rates = [values["throughput/kimg_per_s"] for values in logged if "throughput/kimg_per_s" in values]
    # Steps 2 to 4, 5 to 8 and 9 to 12 hold one evaluation each but the end; the batch after it is waited for meanwhile.
    expected = [3 / (3 * PASS + 2 * WAIT), 4 / (4 * PASS + 3 * WAIT), 4 / (4 * PASS + 3 * WAIT)]
    assert rates == pytest.approx([steps * BATCH / 1000 for steps in expected])
    assert logged[-1]["throughput/eta_hours"] == 0


def test_a_gpu_is_waited_for_where_the_rate_is_taken_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(processes.torch.accelerator, "synchronize", lambda device: waited.append(step))
    monkeypatch.setattr(throughput, "peak_memory_gb", lambda device: math.nan)
    rate = Throughput(4 * BATCH / 1000)
    trainer: Any = SimpleNamespace(
        callbacks=[rate], loggers=[], world_size=1, global_step=0, max_steps=100, accumulate_grad_batches=1
    )
    module = EDMModule.__new__(EDMModule)
    module.__dict__.update(settings=TrainingSettings(batch_size=BATCH), _device=torch.device("cuda:0"))
    monkeypatch.setattr(EDMModule, "nimg", 0)
    rate.on_train_start(trainer, module)
    for step in range(1, 10):
        rate.on_train_batch_start(trainer, module)
        trainer.global_step = step
        rate.on_train_batch_end(trainer, module, None, SimpleNamespace(positions=range(BATCH)), step - 1)
    assert waited == [1, 4, 8]
