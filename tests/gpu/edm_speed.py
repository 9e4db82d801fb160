"""How fast the diffusion model trains, and what share of the card that is."""

import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import matrix_rate, rates, record_kernels, seconds
from models import (
    ADM_64,
    CIFAR,
    CIFAR_64,
    at_largest_batch,
    compile_network,
    edm_module,
    follow,
    image_batch,
    optimizer_with_gradients,
    training_flop,
    training_step,
)
from runner import Check
from sampling_speed import sampling_call
from torch._dynamo.utils import counters

from lightning_modules.diffusion import augment
from lightning_modules.diffusion.network_settings import NetworkSettings
from storage import philox
from storage.philox import Stream


def step_row(
    check: Check,
    size: int,
    what: str,
    precision: str = "bf16",
    network: NetworkSettings = CIFAR,
    resolution: int = 32,
    channels_last: bool = True,
    benchmark: bool = False,
    compiled: dict[str, Any] | None = None,
    kernels: bool = False,
) -> None:
    """Time one kind of training step; with `kernels`, say where its time goes."""
    of_rate = matrix_rate(check, precision)
    module = edm_module(check, network, resolution, channels_last)
    flop, step = training_flop(module), training_step(module, image_batch(module, size), precision)
    torch.backends.cudnn.benchmark = benchmark
    try:
        if compiled is not None:
            compile_network(module.denoiser, check, **compiled)
            module.prelude.compile(backend="eager" if check.dry else "inductor")
        start = time.perf_counter()
        float(step())
        first = time.perf_counter() - start
        duration = seconds(step, check)
        row = rates(check, size, flop, duration, of_rate)
        check.record(what, table="training steps", batch=size, **row, first_step_s=round(first, 1))
        if kernels:
            record_kernels(check, what, step)
    finally:
        torch.backends.cudnn.benchmark = False


def eager_steps(check: Check) -> None:
    """Steps of the CIFAR-10 network (DDPM++, 55.7 M parameters) as they are without compiling. A step is loss,
    augmentation, gradients, Adam and average; `of matrix rate` is of large matrix products in the same precision."""

    def row(what: str, **how: Any) -> Callable[[int], None]:
        return lambda size: step_row(check, size, what, **how)

    with check.tried("batch 128"):
        step_row(check, 2 if check.dry else 128, "bf16")
    at_largest_batch(check, "bf16", row("bf16", kernels=True))
    at_largest_batch(check, "fp16", row("fp16", precision="fp16"))
    at_largest_batch(check, "cudnn.benchmark", row("bf16, cudnn.benchmark", benchmark=True))
    at_largest_batch(check, "channels first", row("bf16, channels first", channels_last=False))
    for precision in ("tf32", "fp32"):
        with check.tried(precision):
            step_row(check, 2 if check.dry else 128, precision, precision=precision)


def compiles(check: Check) -> None:
    """Compiling the CIFAR-10 network: how long it takes with other parts beside it, and into how many graphs. It fills
    the compiler's cache for the parts behind."""

    def compile_both(size: int) -> None:
        start = time.perf_counter()
        module = edm_module(check)
        compile_network(module.denoiser, check)
        float(training_step(module, image_batch(module, size), "bf16")())
        duration = round(time.perf_counter() - start, 1)
        breaks, graphs = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
        values = {"seconds": duration, "graphs": graphs, "graph_breaks": breaks}
        check.record(f"to train, batch {size}, bf16", table="compiling", **values)
        check.expect("graph breaks", breaks, 0)

    at_largest_batch(check, "compiling", compile_both)
    with check.tried("compiling to sample"):
        start = time.perf_counter()
        sampling_call(check, 2 if check.dry else 512, "bf16-mixed", compiled=True)()
        check.record("to sample, batch 512, bf16", table="compiling", seconds=round(time.perf_counter() - start, 1))


def compiled_steps(check: Check) -> None:
    """The same steps compiled. The aim is 40 % of the rate of matrix products."""
    what = "bf16, compiled"
    at_largest_batch(check, what, lambda size: step_row(check, size, what, compiled={}, kernels=True))
    faster = f"{what}, cudnn.benchmark"
    at_largest_batch(check, faster, lambda size: step_row(check, size, faster, benchmark=True, compiled={}))
    with check.tried("batch 128"):
        step_row(check, 2 if check.dry else 128, what, compiled={})


def graphs(check: Check) -> None:
    """Small shares of a batch that many GPUs divide: launches of kernels one by one, and as CUDA graphs."""
    size = 2 if check.dry else 16
    with check.tried("eager"):
        step_row(check, size, "bf16", kernels=True)
    with check.tried("CUDA graphs"):
        step_row(check, size, "bf16, compiled, CUDA graphs", compiled={"mode": "reduce-overhead"})


def networks(check: Check) -> None:
    """The larger networks at 64×64, not compiled."""
    with check.tried("DDPM++ 64×64"):
        step_row(check, 2 if check.dry else 128, "DDPM++ at 64×64, bf16", network=CIFAR_64, resolution=64)
    with check.tried("ADM 64×64"):
        step_row(check, 2 if check.dry else 64, "ADM at 64×64, bf16", network=ADM_64, resolution=64)


def prelude(check: Check) -> None:
    """What a pass of 128 images does before and behind the network, and whether compiled noise has the same bits."""
    module = edm_module(check)
    batch = image_batch(module, 2 if check.dry else 128)
    positions, images = batch.positions, module.denoiser.encoder.encode(batch.images)
    transforms = augment.draw_parameters(0, positions, 0.12, module.denoiser.img_resolution)
    optimizer = optimizer_with_gradients(module)
    works: dict[str, Callable[[], object]] = {
        "noise": lambda: philox.normal(0, Stream.NOISE, positions, images.shape[1:]),
        "noise levels": lambda: philox.normal(0, Stream.SIGMA, positions, ()),
        "transforms drawn": lambda: augment.draw_parameters(0, positions, 0.12, module.denoiser.img_resolution),
        "transforms applied": lambda: augment.apply(images, transforms),
        "seed of the dropout": lambda: torch.manual_seed(philox.torch_seed(0, 0, 7)),
        "Adam": lambda: optimizer.step(),
        "average": lambda: follow(module, 10**6, 1024),
    }
    for what, work in works.items():
        with check.tried(what):
            check.record(what, table="parts of a pass", ms=round(1e3 * seconds(work, check), 3))
    before = [works[name] for name in ("seed of the dropout", "transforms drawn", "transforms applied")]
    before += [works[name] for name in ("noise levels", "noise")]
    with check.tried("kernels"):
        record_kernels(check, "before the network", lambda: [work() for work in before])
    with check.tried("compiled"):
        module.prelude.compile(backend="eager" if check.dry else "inductor")
        record_kernels(check, "before the network, compiled", lambda: module.prelude(*batch))
    with check.tried("compiled noise"):
        make = torch.compile(
            lambda at: philox.normal(0, Stream.NOISE, at, (3, 32, 32)), backend="aot_eager" if check.dry else "inductor"
        )
        eager, compiled = philox.normal(0, Stream.NOISE, positions, (3, 32, 32)), make(positions)
        check.expect("compiled noise: values that differ", int((eager != compiled).sum()), 0)
        milliseconds = round(1e3 * seconds(lambda: make(positions), check), 3)
        check.record("noise, compiled", table="parts of a pass", ms=milliseconds)
