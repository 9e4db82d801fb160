"""Embeddings for a command: from the cache, or computed on one device or on several at once.

On several, each device has a process of its own: this same command again, which the variable `SHARE_VARIABLE` tells to
write its share of the shards and end. The first process waits for them and joins the shards.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig

from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import Backbone, build_backbone
from datamodules.embeddings.embeddings import (
    Embeddings,
    collect_embeddings,
    embedding_bar,
    load_embeddings,
    make_embeddings,
)
from datamodules.embeddings.shards import embed_shards, missing_shards, shard_path, shards_of
from datamodules.images.sources import ImageSource
from pipeline.running.processes import end_with_parent
from pipeline.settings.inputs import plain
from storage.cores import cores_of_each
from storage.errors import DamagedArtifactError, MissingArtifactError, UserError

SHARE_VARIABLE = "CEDM_EMBED_SHARE"  # "1/4 PID FOLDER": the second of four that process PID starts; shards go to FOLDER
POLL_SECONDS = 0.3
MAX_WORKERS = 16  # per device; more do not read faster from one disk


def cached_or_new(cfg: DictConfig, source: ImageSource, identity: dict) -> Embeddings:
    """The embeddings from the cache; computed first where they are not there."""
    try:
        return load_embeddings(source, identity, cfg.cache_dir)
    except (MissingArtifactError, DamagedArtifactError):
        pass
    devices = devices_of(cfg)
    precision = precision_on(cfg, devices[0])
    if len(devices) == 1:
        return make_embeddings(
            source,
            build(cfg),
            cfg.cache_dir,
            device=devices[0],
            batch_size=cfg.backbone.batch_size,
            num_workers=workers_per_device(cfg, devices),
            precision=precision,
        )

    def fill(folder: Path) -> None:
        missing = missing_shards(folder, len(source))
        embed_in_processes(source, folder, missing, devices[: len(missing)])

    return collect_embeddings(source, identity, cfg.cache_dir, fill, {"precision": precision})


def build(cfg: DictConfig) -> Backbone:
    settings = BackboneSettings(**plain(cfg.backbone))
    return build_backbone(settings, cfg.dataset.resolution, cfg.dataset.channels, cfg.cache_dir)


def embed_in_processes(source: ImageSource, folder: Path, missing: list[range], devices: list[torch.device]) -> None:
    """Start a process per device, show how far they are together, and end them all where one fails.

    Raises:
        UserError: a process failed. It has said why.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            f"-m (--multirun) with {len(devices)} devices: each process would start the whole sweep. Type "
            "trainer.devices=1, or the runs one by one."
        )
    threads = str(cores_of_each(len(devices)))
    command = [sys.executable, "-m", "pipeline.commands.embed", *sys.argv[1:]]
    processes = []
    try:
        for rank in range(len(devices)):
            share = {SHARE_VARIABLE: f"{rank}/{len(devices)} {os.getpid()} {folder.absolute()}"}
            processes.append(subprocess.Popen(command, env={"OMP_NUM_THREADS": threads, **os.environ, **share}))
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
            f"embedding stopped: see above what the process of {failed[0]} said. Whole shards are kept; the same "
            "command goes on from them."
        )


def embed_share(cfg: DictConfig, source: ImageSource) -> bool:
    """Where this process is one of several: write its share of the shards. False where it is not."""
    if SHARE_VARIABLE not in os.environ:
        return False
    place, parent, folder = os.environ[SHARE_VARIABLE].split(" ", 2)
    rank, count = map(int, place.split("/"))
    end_with_parent(int(parent))  # nobody else would join the shards, which are whole or not there
    devices = devices_of(cfg)
    device = devices[rank]
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinned memory, too, is of the current device
    shards = [rows for rows in shards_of(len(source))[rank::count] if not shard_path(Path(folder), rows).exists()]
    embed_shards(
        source,
        build(cfg).to(device),
        Path(folder),
        shards,
        batch_size=cfg.backbone.batch_size,
        num_workers=workers_per_device(cfg, devices[:count]),
        precision=precision_on(cfg, device),
    )
    return True


def devices_of(cfg: DictConfig) -> list[torch.device]:
    """The devices that `trainer.accelerator` and `trainer.devices` name; `auto`: all GPUs, or one CPU process.

    Raises:
        UserError: this machine does not have them.
    """
    device, wanted = device_of(cfg.trainer.accelerator), cfg.trainer.devices
    here = torch.cuda.device_count() if device.type == "cuda" else 1
    if isinstance(wanted, ListConfig | list):
        numbers = [int(number) for number in wanted]
    else:
        count = here if wanted in ("auto", -1, "-1") else int(wanted) if str(wanted).isdigit() else 0
        numbers = list(range(count))
    if device.type == "cpu":
        return [device] * max(1, len(numbers))  # processes
    if not numbers or max(numbers) >= here:
        raise UserError(
            f"trainer.devices={wanted}: this machine has {here} of the kind {device.type}. "
            "Type trainer.devices=auto, a number, or a list such as [0,1]."
        )
    return [torch.device(device.type, number) for number in numbers]


def device_of(accelerator: str) -> torch.device:
    """The device that `trainer.accelerator` names; auto takes a GPU where there is one."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: this machine has no GPU that PyTorch can use. Type cpu.")
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.device("cuda")
    if accelerator == "mps":
        return torch.device("mps")
    return torch.device("cpu")


def precision_on(cfg: DictConfig, device: torch.device) -> str:
    """`embedding.precision`; auto is bfloat16 on GPUs that compute in it, float32 elsewhere."""
    wanted = cfg.embedding.precision
    if wanted != "auto":
        return wanted
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if fast else "32-true"


def workers_per_device(cfg: DictConfig, devices: list[torch.device]) -> int:
    """`embedding.num_workers`; auto: the cores shared among the GPUs. A CPU has no time that loaders could fill."""
    wanted = cfg.embedding.num_workers
    if wanted != "auto":
        if not str(wanted).isdigit():
            raise UserError(f"embedding.num_workers={wanted}: type auto or a whole number, such as 4.")
        return int(wanted)
    return 0 if devices[0].type == "cpu" else max(1, min(MAX_WORKERS, cores_of_each(len(devices)) - 1))
