"""What Lightning does around a step: waits for the device, and processes of a group."""

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from measuring import HostWaits
from models import SMALL, compile_network, edm_module, image_batch, to_cpu
from runner import Check
from torch.utils.data import DataLoader

from callbacks.schedule import EveryKimg
from callbacks.snapshots import Snapshots
from callbacks.throughput import ImageProgressBar, Throughput
from lightning_modules.edm_module import EDMModule

PLAIN: dict[str, Any] = {
    "devices": 1,
    "max_epochs": -1,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
WATCHED, STEPS = 20, 20  # steps before those that are watched, and how many these are


class Watch(Callback):
    """Counts waits for the device in the watched steps, and what they take."""

    def __init__(self, device: str) -> None:
        self.waits, self.counting, self.moments = HostWaits(device), ExitStack(), list[float]()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == WATCHED:
            self.counting.enter_context(self.waits.counted())

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == WATCHED + STEPS:
            self.counting.close()


def waits(check: Check) -> None:
    """Where the processor waits for the device within 20 steps of a training, with its callbacks and logs. A dry run
    counts all values that are read, those that lie on the CPU anyway among them."""
    for precision in ("32-true", "bf16-mixed", *(() if check.dry else ("16-mixed",))):
        with check.tried(precision):
            size = batch_of(check)
            module = edm_module(check, SMALL, 8, batch_size=size)
            watch = Watch(check.device)
            callbacks = [
                watch,
                ImageProgressBar(size, size * (WATCHED + STEPS), "EDM"),
                Throughput(10**6),
                Snapshots(check.scratch / f"snapshots-{precision}", EveryKimg(10**6)),
            ]
            logger = TensorBoardLogger(check.scratch, name="", version=precision)
            trainer = Trainer(
                accelerator=check.device,
                precision=precision,
                max_steps=WATCHED + STEPS + 1,
                callbacks=callbacks,
                logger=logger,
                log_every_n_steps=50,
                **{**PLAIN, "enable_checkpointing": True},
            )
            trainer.fit(module, batches(check, module))
            places = watch.waits.places
            check.record(precision, table="waits", steps=STEPS, waits=places.total(), a_step=places.total() / STEPS)
            for place, count in places.most_common(12):
                check.record(place, table=f"waits, {precision}", in_20_steps=count)


def ddp(check: Check) -> None:
    """A process group of one process, by NCCL on a GPU: how far 12 steps move the weights, with it and without."""
    alone, _ = movement(check, False, "auto")
    options: Any = {"gradient_as_bucket_view": True, "broadcast_buffers": False}
    for what, compiled, at_most in (("DDP", False, 0.01), ("DDP, compiled", True, 0.1)):
        with check.tried(what):
            start = time.perf_counter()
            grouped, backend = movement(check, compiled, DDPStrategy(**options))
            seconds = round(time.perf_counter() - start, 1)
            check.record(f"{what}, {backend}", table="process group", seconds=seconds)
            difference = float((grouped - alone).norm() / alone.norm())
            check.expect(f"{what}: movement of the weights", difference, at_most)


def movement(check: Check, compiled: bool, strategy: Any) -> tuple[torch.Tensor, str]:
    """What a few steps of two passes add to the weights, and the process group's backend."""
    settings: Any = {"batch_size": 2 * batch_of(check), "lr": 1e-3, "lr_rampup_kimg": 0.0}
    module = edm_module(check, replace(SMALL, dropout=0.0), 8, **settings)
    before = flat(module)
    if compiled:
        compile_network(module.denoiser, check)
    trainer = Trainer(
        accelerator=check.device,
        strategy=strategy,
        max_steps=12,
        accumulate_grad_batches=2,
        logger=False,
        enable_progress_bar=False,
        **PLAIN,
    )
    trainer.fit(module, batches(check, module))
    group = torch.distributed
    backend = group.get_backend() if group.is_available() and group.is_initialized() else "no group"
    return flat(module) - before, backend


def flat(module: EDMModule) -> torch.Tensor:
    """All weights in one row, in float64 on the CPU."""
    weights = [weight.detach().flatten().cpu().double() for weight in module.denoiser.parameters()]
    return torch.cat(weights)


def batch_of(check: Check) -> int:
    return 4 if check.dry else 64


def batches(check: Check, module: EDMModule) -> DataLoader:
    """The same images again and again, from the CPU, as the data module hands them over."""
    torch.manual_seed(1)
    images: Any = [to_cpu(image_batch(module, batch_of(check)))] * 100
    return DataLoader(images, batch_size=None, pin_memory=check.device == "cuda")
