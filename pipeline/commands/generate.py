"""`cedm generate`: a trained model → images with their labels, and a grid to look at."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.sampler_settings import SamplerSettings
from pipeline.evaluation.generate_settings import GenerateSettings
from pipeline.evaluation.image_output import ImageOutput, check_channels
from pipeline.evaluation.rejection import judge_of, keep_confident
from pipeline.evaluation.sampling import Sampler, check_guidance, cluster_ids_of, generated, labels_of, place
from pipeline.running.processes import join, side_by_side
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary
from pipeline.settings.command import command
from pipeline.settings.inputs import denoiser_file, plain, typed, typed_head_file
from pipeline.settings.words import is_typed
from storage.digests import file_digest
from storage.fingerprints import file_stem

WRITERS = 8  # images that are written at a time
IDENTITY = ("num", "first_seed", "seeds", "clusters", "keep", "format", "sampler")


@command
def generate(cfg: DictConfig) -> None:
    asked = typed(GenerateSettings, cfg)
    if asked.seeds is not None and is_typed("num"):
        asked.refuse("num", f"seeds={asked.seeds} already tells how many images. Leave num= out")
    sampler = Sampler(replace(typed(SamplerSettings, cfg), **asked.for_sampler))
    ckpt = denoiser_file(Path(asked.ckpt))
    denoiser = Denoiser.from_pretrained(ckpt)
    seeds = asked.first_seed + torch.arange(asked.num_candidates)
    if asked.seed_list is not None:
        seeds = torch.tensor(asked.seed_list)
    labels = labels_of(asked, denoiser, ckpt, seeds)
    check_guidance(sampler, denoiser, ckpt)
    check_channels(asked.format, denoiser, ckpt)
    judge, inputs = None, {"denoiser": file_digest(ckpt)}
    if asked.head is not None:
        head = typed_head_file(Path(asked.head))
        judge = judge_of(head, denoiser, plain(cfg.backbone), cfg.cache_dir)
        inputs["head"] = file_digest(head)
    settings = run_settings(cfg, inputs, IDENTITY)
    settings["settings"]["sampler"] = sampler.settings.identity()
    cfg.dataset.name = file_stem(str(denoiser.meta.get("dataset", "unknown")))  # as the file says, whoever made it
    _, folder = join(cfg, lambda: choose_run_folder(cfg, "generate", settings))
    with side_by_side(cfg) as fabric, opened_run_folder(folder, settings, cfg.overwrite, fabric.global_rank):
        place(denoiser, fabric.device, cfg.trainer.compile)
        where = folder if judge is None else folder / "candidates"
        output = ImageOutput(where, asked.format, seeds, cluster_ids_of(denoiser, labels))
        write_images(fabric, output, sampler, denoiser, labels, asked.batch_size)
        if not fabric.is_global_zero:
            return
        chosen: dict[str, Any] = {}
        if judge is not None:
            judge.to(fabric.device)
            rows, output, chosen = keep_confident(folder, judge, output, asked.keep, cfg.backbone.batch_size)
            seeds = seeds[rows]
        written, grid = output.finish(), output.write_grid()
        results = {
            "num_images": len(seeds),
            "images": str(written),
            "steps": sampler.settings.num_steps(denoiser.img_resolution),
            "sampler": sampler.protocol,
            "nimg": denoiser.meta.get("nimg"),
            **chosen,
        }
        write_summary(folder, "generate", results, inputs)
    print(f"images      {written}  ({len(seeds):,})\ngrid        {grid}")


def write_images(
    fabric: Fabric, output: ImageOutput, sampler: Sampler, denoiser: Denoiser, labels: Tensor | None, batch_size: int
) -> None:
    """Generate on all devices, rank r of W the images r, r + W, …, but for those that are there already."""
    fabric.barrier()  # rank 0 has opened the run folder
    own = range(fabric.global_rank, len(output.seeds), fabric.world_size)
    missing = [row for row in own if not output.is_there(row)]
    progress = tqdm(
        total=len(own),
        initial=len(own) - len(missing),
        unit="img",
        desc="generate",
        dynamic_ncols=True,
        disable=not fabric.is_global_zero,
    )
    with progress, ThreadPoolExecutor(WRITERS) as writers:  # each file is waited for until it is on the disk
        for rows, images in generated(sampler, denoiser, output.seeds, labels, batch_size, missing):
            for _ in writers.map(output.write, rows, images):
                progress.update()
    fabric.barrier()


if __name__ == "__main__":
    generate()
