"""What this card is, and what it can do at most."""

import platform
from importlib.metadata import version

import torch
import torch.nn.functional as F
from measuring import HALF, arithmetic, matrix_rate, seconds
from runner import Check

from storage.cores import available_cores

PACKAGES = ("torch", "lightning", "torchmetrics", "transformers", "hydra-core", "triton")
CONVOLUTIONS = ((256, 32), (256, 16), (256, 8), (512, 16))  # channels in and resolution, to 256 channels


def card(check: Check) -> None:
    """Card and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except ImportError:
            versions[name] = "–"
    facts = {"Python": platform.python_version(), "cores": len(available_cores()), **versions}
    name = platform.machine()
    if check.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name = properties.name
        facts |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
        facts |= {"multiprocessors": properties.multi_processor_count, "GB": round(properties.total_memory / 1e9, 1)}
        float(torch.ones(2, device="cuda").sum())  # it works
    check.record(name, table="card", **facts)


def peaks(check: Check) -> None:
    """Rates of single operations: products of 8192 × 8192 matrices, 3×3 convolutions, normalisations, copies."""
    for precision in ("bf16", "fp16", "tf32", "fp32"):
        with check.tried(f"matrix products, {precision}"):
            check.record(precision, table="matrix products", TFLOP_per_s=round(matrix_rate(check, precision) / 1e12, 1))
    for channels, resolution in CONVOLUTIONS:
        convolution(check, "bf16", channels, resolution, channels_last=True)
    convolution(check, "bf16", 256, 32, channels_last=False)
    for precision in ("fp16", "tf32", "fp32"):
        convolution(check, precision, 256, 32, channels_last=True)
    with check.tried("group norm"):
        normalisation(check)


def convolution(check: Check, precision: str, channels: int, resolution: int, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    batch, channels, resolution = (1, 8, 8) if check.dry else (512, channels, resolution)
    dtype = HALF.get(precision, torch.float32)
    what = f"{channels} → 256 at {resolution}², batch {batch}, {precision}{'' if channels_last else ', channels first'}"
    with check.tried(what), arithmetic("tf32" if precision == "tf32" else "fp32", check.device):
        shapes = (
            (batch, channels, resolution, resolution),
            (256, channels, 3, 3),
            (batch, 256, resolution, resolution),
        )
        x, weight, gradient = (
            torch.randn(shape, device=check.device, dtype=dtype).contiguous(memory_format=layout) for shape in shapes
        )
        x.requires_grad_()
        weight.requires_grad_()
        flop = 2 * gradient.numel() * channels * 9
        forward = seconds(lambda: F.conv2d(x, weight, padding=1), check)
        both = seconds(lambda: torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), gradient), check)
        columns = {"forward_TFLOP_per_s": flop / forward, "both_ways_TFLOP_per_s": 3 * flop / both}
        check.record(what, table="convolutions", **{name: round(rate / 1e12, 1) for name, rate in columns.items()})


def normalisation(check: Check) -> None:
    """Group norm with SiLU beside a copy of the same tensor, which reads and writes it once."""
    x = torch.randn(2 if check.dry else 512, 256, 32, 32, device=check.device, dtype=torch.bfloat16)
    weight, last = torch.ones(256, device=check.device, dtype=torch.bfloat16), torch.channels_last
    x_last, copy = x.contiguous(memory_format=last), torch.empty_like(x)
    works = {
        "copy": lambda: copy.copy_(x),
        "group norm and SiLU": lambda: F.silu(F.group_norm(x, 32, weight, weight)),
        "group norm and SiLU, channels last": lambda: F.silu(F.group_norm(x_last, 32, weight, weight)).contiguous(
            memory_format=last
        ),
    }
    for name, work in works.items():
        duration = seconds(work, check, repeats=10)
        gigabytes = 2 * x.numel() * x.element_size() / 1e9
        check.record(
            name, table="memory, bf16", ms=float(f"{1e3 * duration:.3g}"), GB_per_s=round(gigabytes / duration)
        )
