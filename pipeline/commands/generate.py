"""`cedm generate`: a trained model → images with their labels, and a grid to look at."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric import Fabric
from tqdm import tqdm

from pipeline.evaluation.generated import GeneratedByModel
from pipeline.evaluation.image_output import ImageOutput
from pipeline.evaluation.rejection import judge_of, keep_confident
from pipeline.running.processes import join, side_by_side
from pipeline.running.run_files import denoiser_file, head_file
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, runs_of, write_summary
from pipeline.settings.door import typed_words
from pipeline.settings.schemas import GenerateCommandSettings
from pipeline.settings.words import key_of
from storage.digests import file_digest
from storage.fingerprints import file_stem

WRITERS = 8  # images that are written at a time
IDENTITY = ("num", "first_seed", "seeds", "clusters", "keep", "format", "sampler")


def generate(settings: GenerateCommandSettings) -> None:
    """Generate the images that are not there yet, and with a head keep those that it is sure of."""
    if settings.seeds is not None and "num" in map(key_of, typed_words()):
        settings.refuse("num", f"seeds={settings.seeds} already tells how many images. Leave num= out")
    settings = replace(settings, sampler=replace(settings.sampler, **settings.for_sampler))
    counted = settings.first_seed + torch.arange(settings.num_candidates)
    seeds = counted if settings.seed_list is None else torch.tensor(settings.seed_list)
    ckpt = denoiser_file(settings.ckpt)
    model = GeneratedByModel(ckpt, seeds, settings)
    if settings.format != "npy" and model.denoiser.img_channels not in (1, 3):
        channels = f"{ckpt} makes images of {model.denoiser.img_channels} channels, which PNG files do not hold"
        settings.refuse("format", f"{channels}. Set format=npy")
    judge, inputs = None, dict(model.inputs)
    if settings.head is not None:
        file = head_file(settings.head)
        judge = judge_of(file, model.denoiser, settings.backbone, settings.cache_dir)
        inputs["head"] = file_digest(file)
    run = run_settings(settings, inputs, IDENTITY)
    parent = runs_of(file_stem(str(model.denoiser.meta.get("dataset", "unknown"))), "generate")  # as the file says
    overwrite = settings.overwrite
    _, folder = join(settings.trainer, lambda: choose_run_folder(settings.run_dir, parent, run, overwrite))
    with side_by_side(settings.trainer) as fabric, opened_run_folder(folder, run, overwrite, fabric.global_rank):
        model.to(fabric.device)
        where = folder if judge is None else folder / "candidates"
        output = ImageOutput(where, settings.format, seeds, model.cluster_ids, model.denoiser.cluster_names)
        write_images(fabric, output, model, settings.batch_size)
        if not fabric.is_global_zero:
            return
        chosen: dict[str, Any] = {}
        if judge is not None:
            judge[1].to(fabric.device)
            output, chosen = keep_confident(folder, *judge, output, settings.keep, settings.backbone.batch_size)
        written, grid = output.finish()
        made = {key: model.description[key] for key in ("steps", "sampler", "nimg")}
        results = {"num_images": len(output.seeds), "images": str(written), **made, **chosen}
        write_summary(folder, "generate", results, inputs)
    print(f"images      {written}  ({len(output.seeds):,})\ngrid        {grid}")


def write_images(fabric: Fabric, output: ImageOutput, model: GeneratedByModel, batch_size: int) -> None:
    """Generate on all devices, rank r of W the images r, r + W, …, but for those that are there already."""
    fabric.barrier()  # rank 0 has opened the run folder
    own = range(fabric.global_rank, len(output.seeds), fabric.world_size)
    missing = torch.tensor([row for row in own if not output.is_there(row)], dtype=torch.int64)
    progress = tqdm(
        total=len(own),
        initial=len(own) - len(missing),
        unit="img",
        desc="generate",
        dynamic_ncols=True,
        disable=not fabric.is_global_zero,
    )
    with progress, ThreadPoolExecutor(WRITERS) as writers:  # each file is waited for until it is on the disk
        for rows in missing.split(batch_size) if len(missing) else ():
            for _ in writers.map(output.write, rows.tolist(), model.gather(rows).cpu()):
                progress.update()
    fabric.barrier()
