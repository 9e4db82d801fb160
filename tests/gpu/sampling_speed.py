"""How fast the diffusion model samples, and what else a training waits for now and then."""

import time
from collections.abc import Callable

import torch
from measuring import arithmetic, matrix_rate, peak_gb, rates, seconds
from models import compile_network, denoising_flop, edm_module, optimizer_with_gradients
from runner import Check
from torch import Tensor

from callbacks.snapshots import ThreadedCheckpointIO
from lightning_modules.diffusion.sampler_settings import SamplerSettings
from metrics.frechet import Statistics, frechet_distance
from pipeline.evaluation.sampling import Sampler

STEPS = 2  # of Heun's method, whose three evaluations are timed
EVALUATIONS = {STEPS: 2 * STEPS - 1, 18: 35}


def sampling_call(check: Check, size: int, precision: str, compiled: bool) -> Callable[[], Tensor]:
    """Sampling of a batch with few steps, all else as in a monitoring callback."""
    denoiser = edm_module(check).averaged_denoiser
    if compiled:
        compile_network(denoiser, check)
    seeds = torch.arange(size, device=check.device)
    sampler = Sampler(SamplerSettings(steps=STEPS, precision=precision))
    return lambda: sampler(denoiser, seeds, seeds % denoiser.label_dim)


def sampling(check: Check) -> None:
    """Heun's sampler on the CIFAR-10 network; the minutes are those of 10,000 images by 18 steps, one distance."""
    flop = denoising_flop(edm_module(check).averaged_denoiser, check.device)
    for precision, size, compiled in (
        ("fp32", 128, False),
        ("bf16", 128, False),
        ("bf16", 512, False),
        ("bf16", 512, True),
        ("tf32", 512, False),
    ):
        what, size = f"{precision}{', compiled' if compiled else ''}", 2 if check.dry else size
        with check.tried(f"{what}, batch {size}"), arithmetic("tf32" if precision == "tf32" else "fp32", check.device):
            sample = sampling_call(check, size, "bf16-mixed" if precision == "bf16" else "32-true", compiled)
            sample()
            evaluation = seconds(sample, check, repeats=2, warm_up=1) / EVALUATIONS[STEPS]
            row = rates(check, size, flop, evaluation, matrix_rate(check, precision))
            row["images_per_s"] = float(f"{row['images_per_s'] / EVALUATIONS[18]:.4g}")
            minutes = round(10_000 / row["images_per_s"] / 60, 2)
            check.record(what, table="18 steps of Heun", batch=size, **row, minutes_of_10_000_images=minutes)


def pauses(check: Check) -> None:
    """What a training waits for now and then: a snapshot of the CIFAR-10 network, and the distance's eigenproblem."""
    with check.tried("snapshot"):
        module = edm_module(check)
        optimizer = optimizer_with_gradients(module)
        optimizer.step()  # makes Adam's averages
        state = {"state_dict": module.state_dict(), "optimizer": optimizer.state_dict()}
        path = check.scratch / "snapshot.ckpt"
        for what in ("snapshot, the first", "snapshot, with memory for the copy"):
            writer, start = ThreadedCheckpointIO(), time.perf_counter()
            writer.save_checkpoint(state, path)
            waited = round(time.perf_counter() - start, 2)
            writer.finish()
            values = {"seconds": waited, "until_whole": round(time.perf_counter() - start, 2)}
            check.record(what, table="pauses", **values, GB=round(path.stat().st_size / 1e9, 2))
    with check.tried("distance"):
        dim = 64 if check.dry else 2048
        root = torch.randn(dim, 2 * dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        statistics = Statistics(root.mean(dim=1), root.cov())
        start = time.perf_counter()
        frechet_distance(statistics, statistics)
        on_cpu = round(time.perf_counter() - start, 2)
        check.record(f"Fréchet distance of {dim} features, CPU", table="pauses", seconds=on_cpu)
        covariance = statistics.cov.to(check.device)
        duration = seconds(lambda: torch.linalg.eigvalsh(covariance), check, repeats=1, warm_up=1)
        check.record(f"eigenvalues of {dim} × {dim} in float64, here", table="pauses", seconds=round(duration, 2))
    check.record("at most held", table="pauses", peak_GB=peak_gb(check.device))
