"""Embeddings for a command: from the cache, or computed on one device or on several at once.

On several, each device has a process of its own: this same command again, which the variable `SHARE_VARIABLE` tells to
write its share of the shards and end. The first process waits for them and joins the shards.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from datamodules.backbones.backbone_base import Backbone
from datamodules.backbones.backbones import build_backbone
from datamodules.embeddings.embedding_settings import EmbeddingSettings
from datamodules.embeddings.embeddings import Embeddings, collect_embeddings, embedding_bar, make_embeddings
from datamodules.embeddings.shards import embed_shards, missing_shards, shard_path, shards_of
from datamodules.images.sources import ImageSource
from pipeline.running.condition import Condition
from pipeline.running.devices import devices_of, low_precision_of
from pipeline.running.parents import end_with_parent, end_with_starter, in_sweep
from pipeline.running.trainer_settings import TrainerSettings
from pipeline.settings.door import OwnProcessNeeded
from storage.cores import cores_of_each
from storage.errors import DamagedArtifactError, MissingArtifactError, UserError

SHARE_VARIABLE = "CEDM_EMBED_SHARE"  # "1/4 PID FOLDER": the second of four that process PID starts; shards go to FOLDER
POLL_SECONDS = 0.3
MAX_WORKERS = 16  # per device; more do not read faster from one disk


@dataclass(frozen=True)
class Embedder:
    """Embeds images as the settings say, on the devices that they name."""

    condition: Condition
    embedding: EmbeddingSettings
    trainer: TrainerSettings

    def cached_or_new(self, source: ImageSource) -> Embeddings:
        """The embeddings from the cache; computed first where they are not there, for images held out as well."""
        try:
            return self.condition.embeddings(source)
        except (MissingArtifactError, DamagedArtifactError):
            self.make(source.undivided)
        return self.condition.embeddings(source)

    def make(self, source: ImageSource) -> None:
        """Compute the embeddings and keep them in the cache."""
        devices = devices_of(self.trainer)
        precision, cache_dir = self.precision(devices[0]), self.condition.cache_dir
        if len(devices) == 1:
            batch_size, workers = self.condition.backbone.batch_size, self.workers(devices)
            make_embeddings(source, self._build(), cache_dir, devices[0], batch_size, workers, precision)
            return

        def fill(folder: Path) -> None:
            missing = missing_shards(folder, len(source))
            embed_in_processes(source, folder, missing, devices[: len(missing)])

        identity = self.condition.backbone_identity
        collect_embeddings(source, identity, cache_dir, fill, {"precision": precision})

    def write_share(self, source: ImageSource) -> bool:
        """Where this process is one of several: write its share of the shards. False where it is not."""
        end_with_starter()
        if SHARE_VARIABLE not in os.environ:
            return False
        place, parent, folder = os.environ[SHARE_VARIABLE].split(" ", 2)
        rank, count = map(int, place.split("/"))
        end_with_parent(int(parent))  # nobody else would join the shards, which are whole or not there
        devices = devices_of(self.trainer)
        device = devices[rank]
        if device.type == "cuda":
            torch.cuda.set_device(device)  # pinned memory, too, is of the current device
        own = [rows for rows in shards_of(len(source))[rank::count] if not shard_path(Path(folder), rows).exists()]
        batch_size, workers = self.condition.backbone.batch_size, self.workers(devices[:count])
        backbone, precision = self._build().to(device), self.precision(device)
        embed_shards(source, backbone, Path(folder), own, batch_size, workers, precision)
        return True

    def _build(self) -> Backbone:
        dataset = self.condition.dataset
        return build_backbone(
            self.condition.backbone, dataset.resolution, dataset.channels, self.condition.cache_dir, fit=dataset.fit
        )

    def precision(self, device: torch.device) -> str:
        """`embedding.precision`; auto is bfloat16 on GPUs that compute in it, float32 elsewhere."""
        if self.embedding.precision != "auto":
            return self.embedding.precision
        return low_precision_of(device) or "32-true"

    def workers(self, devices: list[torch.device]) -> int:
        """`embedding.num_workers`; auto: the cores shared among the GPUs. A CPU has no time that loaders could fill."""
        if self.embedding.num_workers != "auto":
            return int(self.embedding.num_workers)
        return 0 if devices[0].type == "cpu" else max(1, min(MAX_WORKERS, cores_of_each(len(devices)) - 1))


def embed_in_processes(source: ImageSource, folder: Path, missing: list[range], devices: list[torch.device]) -> None:
    """Start a process per device, show how far they are together, and end them all where one fails.

    Raises:
        UserError: a process failed. It has said why.
        OwnProcessNeeded: this is one run of a sweep, which each process would start as a whole.
    """
    if in_sweep():
        raise OwnProcessNeeded
    command = [sys.executable, "-m", "pipeline", *sys.argv[1:]]
    processes = []
    try:
        for rank in range(len(devices)):
            share = {SHARE_VARIABLE: f"{rank}/{len(devices)} {os.getpid()} {folder.absolute()}"}
            threads = {"OMP_NUM_THREADS": str(cores_of_each(len(devices)))}
            processes.append(subprocess.Popen(command, env=threads | os.environ | share))
        with embedding_bar(source, missing) as bar:
            waiting = list(missing)
            while any(process.poll() is None for process in processes):
                time.sleep(POLL_SECONDS)
                written = [rows for rows in waiting if shard_path(folder, rows).exists()]
                waiting = [rows for rows in waiting if rows not in written]
                bar.update(sum(map(len, written)))
                if any(process.returncode for process in processes):
                    break
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait() for process in processes]
    if any(codes):
        failed = [f"{device} ({code})" for device, code in zip(devices, codes, strict=True) if code]
        raise UserError(
            f"embedding stopped: see above what the process of {failed[0]} said. Whole shards are kept; run the same "
            "command again to continue."
        )
