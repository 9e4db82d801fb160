"""What a training run will cost, measured before it starts."""

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch.optim import Optimizer

from datamodules.image_datamodule import ImageBatch
from lightning_modules.diffusion.ema import EMA
from lightning_modules.edm_module import EDMModule
from lightning_modules.processes import wait_for
from storage.errors import UserError

LONG_ON_A_CPU_HOURS = 24.0


@dataclass(frozen=True)
class Cost:
    """Estimate of a run: `images_per_s` over all devices, measured on one with `measured_batch` images at once."""

    images: int
    images_per_s: float
    measured_batch: int
    num_devices: int
    device: str

    @property
    def hours(self) -> float:
        return self.images / self.images_per_s / 3600

    def __str__(self) -> str:
        device_hours = f"{self.hours * self.num_devices:,.1f} {'GPU' if self.device != 'cpu' else 'process'}-hours"
        return (
            f"{self.images / 1000:,.0f} kimg at {self.images_per_s:,.0f} images/s "
            f"(measured on one {self.device} with {self.measured_batch} images at once, times {self.num_devices}) "
            f"→ {duration(self.hours)}, {device_hours}, evaluations not counted."
        )

    @property
    def problem(self) -> str | None:
        """What is wrong where the machine is too slow for this run; None where it is not."""
        if self.device != "cpu" or self.hours <= LONG_ON_A_CPU_HOURS:
            return None
        return (
            f"{self.images / 1000:,.0f} kimg on a CPU would take {duration(self.hours)}: this machine is too slow for "
            "this run."
        )

    @property
    def warning(self) -> str | None:
        """The problem, and advice; None where there is none."""
        return self.problem and (
            f"Warning: {self.problem} One hour is worth training.duration_kimg={self.kimg_in_an_hour:.3g}; or set "
            "network=ddpmpp_small, or train on GPUs with trainer.accelerator=gpu."
        )

    @property
    def kimg_in_an_hour(self) -> float:
        return self.images_per_s * 3.6

    def refuse(self, batch_size: int, laptop: bool) -> None:
        """Raise a `UserError` where the machine is too slow for this run, with the settings that make it an hour.

        Args:
            batch_size: of an optimizer step, of which an hour should hold ten.
            laptop: whether the settings are those of preset=laptop already.
        """
        if self.problem is None:
            return
        kimg = self.kimg_in_an_hour
        batch = f"training.batch_size={max(1, int(kimg * 100))} " if kimg * 100 < batch_size else ""
        raise UserError(
            f"{self.problem} Set {'' if laptop else 'preset=laptop, which takes minutes; or '}for one hour {batch}"
            f"training.duration_kimg={kimg:.3g} training.lr_rampup_kimg={kimg / 10:.2g} "
            f"training.ema_halflife_kimg={kimg / 20:.2g} evaluation.backbone=null; or confirm=true to start it all the "
            "same."
        )


def duration(hours: float) -> str:
    """A length of time as a person says it."""
    for unit, size, limit in (("s", 1 / 3600, 120), ("min", 1 / 60, 120), ("hours", 1, 72), ("days", 24, 730)):
        if hours / size < limit:
            return f"{hours / size:,.0f} {unit}"
    return f"{hours / 24 / 365:,.0f} years"


def measure_cost(
    module: EDMModule,
    batch: ImageBatch,
    device: torch.device,
    num_devices: int,
    images: int,
    precision: str,
    accumulate: int = 1,
    loading: float = 0.0,
    num_workers: int = 0,
) -> Cost:
    """Time a copy of `module` on `device`: a pass, compiled where the module is, and an optimizer step.

    The number of images at once doubles up to the batch's until one pass takes more than half a second, so that a
    large network on a slow machine is measured within seconds too. The module and the random state stay as they are,
    and a GPU's memory is free again.

    Args:
        batch: the images of one pass.
        accumulate: passes of an optimizer step.
        loading: seconds in which one process loads the images of a pass.
        num_workers: processes that load them meanwhile; 0: training waits for them.
    """
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seconds, count = _seconds_per_image(module, batch, device, precision, accumulate)
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    loading /= len(batch.positions)
    seconds = max(seconds, loading / num_workers) if num_workers else seconds + loading
    return Cost(images, num_devices / seconds, count, num_devices, device.type)


def _seconds_per_image(
    module: EDMModule, batch: ImageBatch, device: torch.device, precision: str, accumulate: int
) -> tuple[float, int]:
    """Seconds that training takes per image, and with how many images at once they were measured."""
    trial = copy.deepcopy(module).to(device).train()  # not compiled, as copies never are
    count = min(4, len(batch.positions))
    while True:
        part = ImageBatch(*(field[:count].to(device) for field in batch))
        work = partial(one_pass, trial, part, precision, device)
        seconds = timed(work, device)
        if seconds > 0.5 or count == len(batch.positions):
            break
        count = min(2 * count, len(batch.positions))
    if module.denoiser._compiled_call_impl is not None:  # PyTorch's name for what `compile()` has made
        trial.compile_pass(device, trial.cuda_graphs)
        seconds = timed(work, device)
        torch.compiler.reset()  # or training with another number of images would be compiled for any number
    optimizer = cast(Any, trial.configure_optimizers())["optimizer"]
    step_seconds = timed(partial(one_step, trial, optimizer), device)
    return seconds / count + step_seconds / accumulate / len(batch.positions), count


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that it takes when it is done again, also on a device that works on while Python does."""
    work()  # compiles, allocates, chooses algorithms
    times = []
    for _ in range(2):  # one may be held up by others
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return min(times)


def one_pass(module: EDMModule, batch: ImageBatch, precision: str, device: torch.device) -> None:
    """One forward and backward pass with the run's precision, which leaves its gradients."""
    module.zero_grad(set_to_none=True)
    module.begin_pass()
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16
    with torch.autocast(device.type, dtype=dtype, enabled=precision != "32-true"):
        loss = module.loss_of(batch).mean()
    loss.backward()


def one_step(module: EDMModule, optimizer: Optimizer) -> None:
    """What an optimizer step does beside its passes: new weights and their averages."""
    optimizer.step()
    for average in cast(Iterable[EMA], [*module.emas, *module.power_averages]):
        average.update(module.denoiser, nimg=0, batch_size=module.settings.batch_size)
