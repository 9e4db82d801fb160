"""How parts of the check measure: times, memory, rates, kernels, waits for the device."""

import contextlib
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from runner import Check
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

ROOMS = ("callbacks", "datamodules", "lightning_modules", "metrics", "pipeline", "storage", "lightning")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], check: Check, repeats: int = 5, warm_up: int = 2) -> float:
    """Seconds of one call, the mean of several in a row that nothing waits between; once in a dry run."""
    repeats, warm_up = (1, 0) if check.dry else (repeats, warm_up)
    for _ in range(warm_up):
        work()
    synchronize(check.device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(check.device)
    return (time.perf_counter() - start) / repeats


def peak_gb(device: str) -> float | None:
    """GB that this process has held at most on the GPU since memory was freed last."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device == "cuda" else None


@contextlib.contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Compute in fp32 (strictly), tf32, bf16 or fp16 within the block."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        set_tf32(precision == "tf32", precision == "tf32")
        with torch.autocast(device, HALF.get(precision, torch.bfloat16), enabled=precision in HALF):
            yield
    finally:
        set_tf32(convolutions, products)


def set_tf32(convolutions: bool, products: bool) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products


def matrix_rate(check: Check, precision: str) -> float:
    """Floating-point operations per second of large square products, what utilization is measured against."""
    size = 256 if check.dry else 8192
    left, right = torch.randn(2, size, size, device=check.device).to(HALF.get(precision, torch.float32))
    with arithmetic(precision if precision == "tf32" else "fp32", check.device):
        return 2 * size**3 / seconds(lambda: left @ right, check, repeats=10, warm_up=5)


def rates(check: Check, images: int, flop_per_image: float, duration: float, of_rate: float) -> dict[str, Any]:
    """The columns of a row about a network: its rate, its utilization, its memory."""
    rate = images / duration
    return {
        "images_per_s": float(f"{rate:.4g}"),
        "ms": float(f"{1e3 * duration:.4g}"),
        "TFLOP_per_s": float(f"{rate * flop_per_image / 1e12:.3g}"),
        "of_matrix_rate": round(rate * flop_per_image / of_rate, 3),
        "peak_GB": peak_gb(check.device),
    }


def record_kernels(check: Check, title: str, step: Callable[[], object], steps: int = 3, rows: int = 20) -> None:
    """The costliest kernels of a step, how many there are, and the share of the time in which the device works."""
    steps = 1 if check.dry else steps
    on_gpu = check.device == "cuda"
    synchronize(check.device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(check.device)
        wall = time.perf_counter() - start
    kernels = kernels_of(profiler.key_averages(), on_gpu)
    milliseconds = {event.key: duration_us(event, on_gpu) / 1e3 / steps for event in kernels}
    launches = sum(event.count for event in kernels) // steps
    busy = sum(milliseconds.values()) * steps / 1e3 / wall
    check.record(title, table="kernels of a step", kernels=launches, device_busy=round(busy, 3))
    for event in sorted(kernels, key=lambda event: -milliseconds[event.key])[:rows]:
        share = milliseconds[event.key] / sum(milliseconds.values())
        values = {"ms": round(milliseconds[event.key], 3), "calls": event.count // steps, "share": round(share, 3)}
        check.record(event.key[:100], table=f"the {rows} costliest kernels: {title}", **values)


def kernels_of(events: Any, on_gpu: bool) -> list[Any]:
    """What the device has executed, or on a CPU the operators; ranges that PyTorch marks are no kernels."""
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    marked = (event for event in events if event.device_type == wanted)
    return [event for event in marked if not getattr(event, "is_user_annotation", False) and duration_us(event, on_gpu)]


def duration_us(event: Any, on_gpu: bool) -> float:
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)


class HostWaits:
    """Counts where the processor waits for the device, by the line of our code that asks.

    On a GPU PyTorch warns of them (`set_sync_debug_mode`); elsewhere the operators that would wait are counted.
    """

    def __init__(self, device: str) -> None:
        self.device, self.places = device, Counter[str]()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count within the block."""
        if self.device != "cuda":
            with WaitingOperators(self.note):
                yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: self.note() if "synchronizing" in str(message) else None
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def note(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if set(Path(frame.filename).parts) & set(ROOMS)]
        last = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-3:]]
        self.places[" < ".join(reversed(last)) or "elsewhere"] += 1


class WaitingOperators(TorchDispatchMode):
    """Tells of the operators whose answer a GPU's processor would wait for: numbers and shapes made of values."""

    NAMES = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select", "aten::equal")

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in self.NAMES:
            self.note()
        return func(*args, **(kwargs or {}))
