"""Snapshots for resuming, written whole or not at all, and the model file that generation needs."""

import copy
import hashlib
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from callbacks.lightning_internals import set_passes
from callbacks.schedule import Schedule, ends_step
from callbacks.stop_request import TIME_IS_UP, Stopped
from callbacks.stopping import ask_all
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.power_average import PowerAverage
from lightning_modules.edm_module import EDMModule
from storage.artifacts import read_artifact
from storage.errors import DamagedArtifactError, MissingArtifactError, UserError
from storage.files import atomic_path, set_aside

SEAL_LENGTH = 64  # a SHA-256 in hexadecimal digits
CHUNK_BYTES = 1 << 22

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, sealed, written whole or not at all, and read with `weights_only`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:  # given a path, PyTorch would hide why it cannot write
                torch.save(checkpoint, file)
            seal(temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path}: refused, as it holds more than a snapshot needs: {str(error).splitlines()[0]} "
                "If you did not put it there, distrust the folder. Delete the file to go on from the one before."
            ) from error


class ThreadedCheckpointIO(AtomicCheckpointIO):
    """Writes a copy of a checkpoint in a thread, while training goes on; one after the other.

    However a program ends, but for kill -9, it waits for the thread.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        self.finish()
        copied = copy_of(checkpoint)
        arrived = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if arrived is not None:
            arrived.record()

        def write() -> None:
            if arrived is not None:
                arrived.synchronize()
            super(ThreadedCheckpointIO, self).save_checkpoint(copied, path)

        self._writing = self._thread.submit(write)

    def finish(self, wait: bool = True) -> bool:
        """Whether a file has become whole since this was last asked. Raises why it has not."""
        if self._writing is None or not (wait or self._writing.done()):
            return False
        writing, self._writing = self._writing, None
        writing.result()
        return True

    def teardown(self) -> None:
        """Called by Lightning when a training ends, also by an error, which is not to be hidden by another one."""
        try:
            self.finish()
        except (UserError, OSError) as error:
            log.error("%s", error)


def copy_of(part: Any) -> Any:
    """A checkpoint or a part of it in memory of its own: pinned, and on its way, where it comes from a GPU."""
    if isinstance(part, Tensor):
        return part.detach().to("cpu", non_blocking=part.is_cuda, copy=True)
    if isinstance(part, dict):
        own = copy.copy(part)  # of its type, with its attributes
        own.update({key: copy_of(value) for key, value in part.items()})
        return own
    return type(part)(map(copy_of, part)) if type(part) in (list, tuple) else part


class Snapshots(Checkpoint):
    """Writes `step-00001234.ckpt` when due and keeps the newest `keep`; runs after all other callbacks.

    With `ThreadedCheckpointIO` training goes on meanwhile; the next snapshot and the end of training wait for it.

    When a process is asked to stop, all of them write one more after the same step and raise `Stopped`, or end the
    training where its time is up. Unlike
    `ModelCheckpoint` it holds no state of its own: the files in `folder` are all there is.

    `trainer` are settings that each snapshot tells of, beside the module's own.
    """

    def __init__(self, folder: Path, every: Schedule, keep: int = 2, trainer: Mapping[str, Any] | None = None) -> None:
        self.folder, self.every, self.keep, self.trainer = folder, every, keep, dict(trainer or {})
        self._stop_requested: Callable[[], int] = lambda: 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count passes anew: the number of devices, and with it the passes in a step, may have changed since."""
        before = checkpoint.get("world_size", trainer.world_size)
        if before != trainer.world_size:
            trainer.print(
                f"Note: {before} processes trained up to here, {trainer.world_size} go on: on the same images and "
                "noise, but with other rounding, so not to the same bytes."
            )
        set_passes(checkpoint, checkpoint["global_step"] * trainer.accumulate_grad_batches)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["world_size"], checkpoint["trainer"] = trainer.world_size, self.trainer

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if ends_step(trainer, batch_idx):  # asked now, so that the answer is there when the pass is done
            self._stop_requested = ask_all(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        self.settle(trainer, wait=False)
        stop = self._stop_requested()
        if stop or self.every.is_due(trainer, pl_module, batch_idx):
            self.save(trainer)
        if stop == TIME_IS_UP:
            trainer.should_stop = True
        elif stop:
            self.settle(trainer)
            raise Stopped

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.settle(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write one snapshot, joined by every rank."""
        check_finite(trainer.lightning_module)
        self.settle(trainer)
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:08d}.ckpt")
        self.settle(trainer, wait=False)

    def settle(self, trainer: Trainer, wait: bool = True) -> None:
        """When a snapshot has become whole, remove the oldest. Raises why it could not be written."""
        io = trainer.strategy.checkpoint_io
        whole = io.finish(wait) if isinstance(io, ThreadedCheckpointIO) else True
        if whole and trainer.is_global_zero:
            for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
                old.unlink()


def newest_snapshot(folder: Path, rank: int = 0) -> Path | None:
    """The newest whole snapshot, to resume from; None where there is none. Rank 0 sets damaged ones aside."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        try:
            if seal_holds(path):
                return path
        except FileNotFoundError:  # rank 0 has set it aside
            continue
        if rank == 0:
            log.warning(
                "%s is damaged: its checksum does not match. Set aside as %s; the one before is used.",
                path,
                set_aside(path).name,
            )
    return None


def seal(archive: Path) -> None:
    """Appends to a ZIP archive the SHA-256 of its bytes, as the archive's comment, which readers pass over."""
    with archive.open("r+b") as file:
        file.seek(-2, os.SEEK_END)  # the last field of the last record: the length of the comment
        file.write(SEAL_LENGTH.to_bytes(2, "little"))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(digest.encode())


def seal_holds(archive: Path) -> bool:
    """Whether a file that was sealed still has the bytes that it had."""
    sha, remaining = hashlib.sha256(), archive.stat().st_size - SEAL_LENGTH
    with archive.open("rb") as file:
        while remaining > 0 and (chunk := file.read(min(CHUNK_BYTES, remaining))):
            sha.update(chunk)
            remaining -= len(chunk)
        return remaining == 0 and file.read() == sha.hexdigest().encode()


class DenoiserFile(Callback):
    """Writes a file `path` of the EMA weights and all that generation needs whenever that is due, if ever.

    Where several averages are kept, the others lie beside `denoiser.safetensors` as `denoiser-ema50kimg.safetensors`.
    """

    def __init__(self, path: Path, every: Schedule | None, meta: dict[str, Any]) -> None:
        self.path, self.every, self.meta = path, every, meta

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every is None or not self.every.is_due(trainer, pl_module, batch_idx):
            return
        check_finite(pl_module)  # on every rank: they stop in the same step, and none waits for another
        if trainer.is_global_zero:
            assert isinstance(pl_module, EDMModule)
            self.write(pl_module)

    def write(self, pl_module: EDMModule, **meta: Any) -> None:
        """Write the file of each average, with what else there is to say of it."""
        check_finite(pl_module)
        for number, (kimg, denoiser) in enumerate(pl_module.averaged_denoisers.items()):
            path = self.path.with_stem(f"{self.path.stem}-ema{kimg:g}kimg") if number else self.path
            denoiser.save_pretrained(path, **self.meta, nimg=pl_module.nimg, ema_halflife_kimg=kimg, **meta)

    def is_whole(self) -> bool:
        """Whether the file is there as it was written."""
        try:
            read_artifact(self.path, kind="denoiser")
        except (MissingArtifactError, DamagedArtifactError):
            return False
        return True


class PowerAverageFiles(Callback):
    """Stores the power-function averages when due, each as a denoiser in float16: `width0.05-00120064.safetensors`."""

    def __init__(self, folder: Path, every: Schedule) -> None:
        self.folder, self.every = folder, every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.every.is_due(trainer, pl_module, batch_idx):
            return
        check_finite(pl_module)
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, EDMModule)
        for average in cast(Iterable[PowerAverage], pl_module.power_averages):
            stored = copy.deepcopy(cast(Denoiser, average.get())).half()
            path = self.folder / f"width{average.width:g}-{pl_module.nimg:08d}.safetensors"
            stored.save_pretrained(path, nimg=pl_module.nimg, width=average.width)


def check_finite(module: LightningModule) -> None:
    """Raise a `UserError` where a weight is not finite, so that no file of such weights takes the place of a good one.

    A gradient may overflow where the loss does not, which is not looked at in each step.
    """
    if isinstance(module, EDMModule):
        module.stop_if_not_finite()
    broken = [name for name, weight in module.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise UserError(
            f"the weights are not finite after step {module.global_step} ({broken[0]}), though the loss was: nothing "
            "is written, and the last snapshot is good. Set a lower learning rate, or trainer.precision=32-true."
        )
