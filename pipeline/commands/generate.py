"""`cedm generate`: a trained model → images with their labels, and a grid to look at."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.evaluation.image_output import ImageOutput
from pipeline.evaluation.rejection import judge_of, keep_confident
from pipeline.evaluation.sampling import Sampler, check_guidance, labels_of, place
from pipeline.running.processes import join, side_by_side
from pipeline.running.run_files import denoiser_file, head_file
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, runs_of, write_summary
from pipeline.settings.schemas import GenerateCommandSettings
from pipeline.settings.words import is_typed
from storage.digests import file_digest
from storage.fingerprints import file_stem

WRITERS = 8  # images that are written at a time
IDENTITY = ("num", "first_seed", "seeds", "clusters", "keep", "format", "sampler")


def generate(settings: GenerateCommandSettings) -> None:
    """Generate the images that are not there yet, and with a head keep those that it is sure of."""
    if settings.seeds is not None and is_typed("num"):
        settings.refuse("num", f"seeds={settings.seeds} already tells how many images. Leave num= out")
    settings = replace(settings, sampler=replace(settings.sampler, **settings.for_sampler))
    sampler, ckpt = Sampler(settings.sampler), denoiser_file(settings.ckpt)
    denoiser = Denoiser.from_pretrained(ckpt)
    counted = settings.first_seed + torch.arange(settings.num_candidates)
    seeds = counted if settings.seed_list is None else torch.tensor(settings.seed_list)
    labels = labels_of(settings, denoiser, ckpt, seeds)
    check_guidance(sampler, denoiser, ckpt)
    if settings.format != "npy" and denoiser.img_channels not in (1, 3):
        channels = f"{ckpt} makes images of {denoiser.img_channels} channels, which PNG files do not hold"
        settings.refuse("format", f"{channels}. Set format=npy")
    judge, inputs = None, {"denoiser": file_digest(ckpt)}
    if settings.head is not None:
        file = head_file(settings.head)
        judge = judge_of(file, denoiser, settings.backbone, settings.cache_dir)
        inputs["head"] = file_digest(file)
    run = run_settings(settings, inputs, IDENTITY)
    parent = runs_of(file_stem(str(denoiser.meta.get("dataset", "unknown"))), "generate")  # as the file says
    overwrite = settings.overwrite
    _, folder = join(settings.trainer, lambda: choose_run_folder(settings.run_dir, parent, run, overwrite))
    with side_by_side(settings.trainer) as fabric, opened_run_folder(folder, run, overwrite, fabric.global_rank):
        place(denoiser, fabric.device, settings.trainer.compile)
        where, ids = folder if judge is None else folder / "candidates", denoiser.cluster_ids
        clusters = None if labels is None or ids is None else ids[labels].tolist()
        output = ImageOutput(where, settings.format, seeds, clusters)
        write_images(fabric, output, sampler, denoiser, labels, settings.batch_size)
        if not fabric.is_global_zero:
            return
        chosen: dict[str, Any] = {}
        if judge is not None:
            judge[1].to(fabric.device)
            output, chosen = keep_confident(folder, *judge, output, settings.keep, settings.backbone.batch_size)
        written, grid = output.finish()
        results = {
            "num_images": len(output.seeds),
            "images": str(written),
            "steps": settings.sampler.num_steps(denoiser.img_resolution),
            "sampler": sampler.protocol,
            "nimg": denoiser.meta.get("nimg"),
            **chosen,
        }
        write_summary(folder, "generate", results, inputs)
    print(f"images      {written}  ({len(output.seeds):,})\ngrid        {grid}")


def write_images(
    fabric: Fabric, output: ImageOutput, sampler: Sampler, denoiser: Denoiser, labels: Tensor | None, batch_size: int
) -> None:
    """Generate on all devices, rank r of W the images r, r + W, …, but for those that are there already."""
    fabric.barrier()  # rank 0 has opened the run folder
    own = range(fabric.global_rank, len(output.seeds), fabric.world_size)
    missing = [row for row in own if not output.is_there(row)]
    quiet = not fabric.is_global_zero
    progress = tqdm(total=len(missing), unit="img", desc="generate", dynamic_ncols=True, disable=quiet)
    with progress, ThreadPoolExecutor(WRITERS) as writers:  # each file is waited for until it is on the disk
        for rows in torch.tensor(missing, dtype=torch.int64).split(batch_size):
            images = sampler(denoiser, output.seeds[rows], None if labels is None else labels[rows]).cpu()
            for _ in writers.map(output.write, rows.tolist(), images):
                progress.update()
    fabric.barrier()
