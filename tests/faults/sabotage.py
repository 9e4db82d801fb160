"""Faults that a process of forks.py plants in itself before it runs its command."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def note(line: str) -> None:
    """Write a line to `notes.txt` in the current folder, for the test to read."""
    with Path("notes.txt").open("a") as file:
        file.write(line + "\n")


def before(owner: Any, name: str, action: Callable[..., None]) -> None:
    """Let `action` look at the arguments of every call of `owner.name` before the call."""
    original = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        action(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, replaced)


def record() -> None:
    """Note which images each pass sees, and each finished evaluation."""
    from callbacks.frechet import FrechetDistance
    from lightning_modules.edm_module import EDMModule

    before(EDMModule, "training_step", lambda self, batch, index: note(f"positions {batch.positions.tolist()}"))
    before(FrechetDistance, "evaluate", lambda self, trainer, module: note(f"evaluation {module.nimg}"))


def slow_steps() -> None:
    """Each pass of a training takes a fifth of a second more; evaluations are noted."""
    from callbacks.frechet import FrechetDistance
    from lightning_modules.edm_module import EDMModule
    from lightning_modules.temi_module import TEMIModule

    before(FrechetDistance, "evaluate", lambda *_: note("evaluating"))
    for module in (EDMModule, TEMIModule):
        before(module, "training_step", lambda *_: time.sleep(0.2))


def slow_evaluation() -> None:
    """In one evaluation, two batches take a second more; those after them, which a stop has to spare, take long."""
    from metrics.frechet import FrechetDistance as Metric

    batches: list[int] = []

    def wait(*_: Any) -> None:
        batches.append(1)
        time.sleep(1 if len(batches) <= 2 else 60)

    in_evaluation(lambda: note("evaluating"))
    before(Metric, "update", lambda *_: wait() if evaluations == wanted_evaluation() else None)


evaluations = 0


def wanted_evaluation() -> int:
    """Which evaluation of the training is meant, the first being 1."""
    return int(os.environ["SABOTAGE_EVALUATION"])


def in_evaluation(action: Callable[[], None]) -> None:
    """Count the evaluations, and do something at the start of the one that is meant."""
    from callbacks.frechet import FrechetDistance

    def count(*_: Any) -> None:
        global evaluations
        evaluations += 1
        if evaluations == wanted_evaluation():
            action()

    before(FrechetDistance, "evaluate", count)


def slow_sampling() -> None:
    """Each batch of `generate` takes half a second more."""
    from pipeline.evaluation.sampling import Sampler

    before(Sampler, "__call__", lambda *_: time.sleep(0.5))


def raise_in_training() -> None:
    from lightning_modules.edm_module import EDMModule

    before(EDMModule, "training_step", lambda self, batch, index: fail_if(index == 5))


def raise_in_evaluation() -> None:
    """After some images were generated."""
    from metrics.frechet import FrechetDistance as Metric

    in_evaluation(lambda: None)
    before(Metric, "update", lambda *_: fail_if(evaluations == wanted_evaluation()))


def fail_if(condition: bool) -> None:
    if condition:
        raise RuntimeError("planted by the test")


def kill_in_snapshot() -> None:
    """kill -9 after a random part of the second or third snapshot is written, or of its seal, or before its name."""
    from callbacks import snapshots

    rng, saves = random.Random(os.environ["SABOTAGE_SEED"]), [0]
    wanted, place = rng.choice([2, 3]), rng.choice(["torch.save", "torch.save", "seal", "chmod"])
    allowance = rng.randrange(1, 400_000)
    original = torch.save

    def save(checkpoint: Any, file: Any) -> None:
        saves[0] += 1
        if saves[0] < wanted:
            return original(checkpoint, file)
        if place == "torch.save":
            return original(checkpoint, KillingFile(file, allowance))
        if place == "seal":
            snapshots.seal = lambda path: die()  # type: ignore[assignment]
        else:
            before(Path, "chmod", lambda *_: die())
        return original(checkpoint, file)

    torch.save = save


class KillingFile:
    """A file whose process is killed once so many bytes are written."""

    def __init__(self, file: Any, allowance: int) -> None:
        self.file, self.allowance = file, allowance

    def write(self, data: Any) -> int:
        part = bytes(data)[: self.allowance]
        self.file.write(part)
        self.allowance -= len(part)
        if self.allowance <= 0:
            self.file.flush()
            die()
        return len(part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def kill_in_cache_write() -> None:
    """kill -9 after a random part of the first cache entry is written, by safetensors' own temporary file or ours."""
    from storage import artifacts

    rng = random.Random(os.environ["SABOTAGE_SEED"])
    original = artifacts.save_file

    def save(tensors: Any, path: Path, metadata: Any) -> None:
        original(tensors, path, metadata=metadata)
        size = path.stat().st_size
        os.truncate(path, rng.randrange(size + 1))
        die()

    artifacts.save_file = save


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nan_in_image() -> None:
    """The images at the positions 200 to 231 of the stream hold NaN (as no uint8 can)."""
    from lightning_modules.edm_module import EDMModule

    original = EDMModule.loss_of

    def loss_of(self: Any, batch: Any) -> torch.Tensor:
        encoder, broken = self.denoiser.encoder, (batch.positions == 205)[:, None, None, None]
        encode = encoder.encode
        encoder.encode = lambda images: encode(images).masked_fill(broken, torch.nan)
        try:
            return original(self, batch)
        finally:
            encoder.encode = encode

    EDMModule.loss_of = loss_of  # type: ignore[method-assign]


def nan_in_weight() -> None:
    """A weight of the network is NaN from step 6 on."""
    from lightning_modules.edm_module import EDMModule

    def plant(self: Any, batch: Any, index: int) -> None:
        if index == 6:
            with torch.no_grad():
                next(self.denoiser.parameters()).view(-1)[0] = torch.nan

    before(EDMModule, "training_step", plant)


def nan_in_loss() -> None:
    from lightning_modules.edm_module import EDMModule

    original = EDMModule.loss_of

    def loss_of(self: Any, batch: Any) -> torch.Tensor:
        losses = original(self, batch)
        return losses.masked_fill(batch.positions == 205, torch.nan)

    EDMModule.loss_of = loss_of  # type: ignore[method-assign]


def nan_in_embedding() -> None:
    """Image 17's embedding holds NaN."""
    from datamodules.embeddings.embeddings import Embeddings

    original = Embeddings.head_inputs

    def head_inputs(self: Any, standardise: bool) -> torch.Tensor:
        values = original(self, standardise).clone()
        values[17, 3] = torch.nan
        return values

    Embeddings.head_inputs = head_inputs  # type: ignore[method-assign]


def nan_in_student() -> None:
    from lightning_modules.temi_module import TEMIModule

    def plant(self: Any, batch: Any, index: int) -> None:
        if index == 20:
            with torch.no_grad():
                next(self.student.parameters()).view(-1)[0] = torch.nan

    before(TEMIModule, "training_step", plant)


def change_images_in_train() -> None:
    """From step 3 on, a random image changes in a random way."""
    from lightning_modules.edm_module import EDMModule

    before(EDMModule, "training_step", lambda self, batch, index: change_an_image() if index == 3 else None)


def change_images_in_embed() -> None:
    """One image changes between the survey and its embedding."""
    from datamodules.embeddings import embeddings

    before(embeddings, "embed_shards", lambda *_: change_an_image())


def change_an_image() -> None:
    rng = random.Random(os.environ["SABOTAGE_SEED"])
    path = rng.choice(sorted(Path("images").rglob("*.png")))
    content = path.read_bytes()
    os.utime(path, (1, 1))  # another time stamp, whatever the clock's resolution
    if (change := rng.choice(["rewritten", "truncated", "replaced", "deleted"])) == "deleted":
        path.unlink()
    elif change == "truncated":
        os.truncate(path, rng.randrange(len(content)))
    elif change == "replaced":
        path.with_suffix(".new").write_bytes(content + b"more")
        path.with_suffix(".new").replace(path)


def without_roots_rights() -> None:
    """Let modes of files bind this process as they bind everyone but root."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3 of the interface
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of the effective ones
    assert libc.capset(header, sets) == 0
