"""`cedm average`: averages of the weights of any length, after the training, and which of them is the best."""

import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from datamodules.images.image_store import ImageStore
from datamodules.images.sources import open_source
from lightning_modules.diffusion.sampler_settings import AUTO
from metrics.frechet import frechet_distance
from pipeline.evaluation.evaluation_summary import trained_on_others
from pipeline.evaluation.features import extract
from pipeline.evaluation.generated import GeneratedByModel, refuse_size
from pipeline.evaluation.guides import guide_of
from pipeline.evaluation.metrics_table import frechet_name
from pipeline.evaluation.reference import Extractors
from pipeline.pictures.chart import draw_png
from pipeline.pictures.curves import history_chart
from pipeline.pictures.table import Table
from pipeline.running.posthoc import StoredAverages
from pipeline.running.processes import join, side_by_side
from pipeline.running.run_files import DENOISER, denoiser_file
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, runs_of, write_summary
from pipeline.settings.door import program
from pipeline.settings.schemas import AverageCommandSettings
from pipeline.settings.words import word
from storage.digests import file_digest
from storage.files import atomic_path
from storage.fingerprints import file_stem

IDENTITY = ("dataset", "length", "num", "first_seed", "clusters", "sampler", "evaluation")


def average(settings: AverageCommandSettings) -> float | None:
    """Put together the averages that are asked for and keep the best of several; its distance, if it was measured."""
    settings = replace(settings, sampler=replace(settings.sampler, **settings.for_sampler))
    if len(settings.lengths) > 1 and settings.evaluation.backbone is None:
        settings.evaluation.refuse(
            "backbone", "lengths are compared on its features, such as evaluation.backbone=pixels"
        )
    ckpt = denoiser_file(settings.run, "run")
    stored = StoredAverages.of_run(ckpt.parent)
    if len(settings.lengths) > 1:
        size, channels = stored.base.img_resolution, stored.base.img_channels
        refuse_size(f"run={settings.run}", (size, size, channels), settings.dataset)
    inputs = {"averages": stored.fingerprint}
    if (guide := guide_of(settings, stored.base, ckpt)) is not None:
        inputs["guide"] = file_digest(guide[1], settings.cache_dir)
    run = run_settings(settings, inputs, IDENTITY)
    if guide is not None and settings.sampler.guide == AUTO:  # which lies beside the run's model, not beside these
        settings = replace(settings, sampler=replace(settings.sampler, guide=str(guide[1])))
    dataset = str(stored.base.meta.get("dataset", "unknown"))
    parent, overwrite = runs_of(file_stem(dataset), "average"), settings.overwrite
    _, folder = join(settings.trainer, lambda: choose_run_folder(settings.run_dir, parent, run, overwrite))
    with side_by_side(settings.trainer) as fabric, opened_run_folder(folder, run, overwrite, fabric.global_rank):
        files = {length: folder / f"denoiser-length{length:g}.safetensors" for length in settings.lengths}
        if fabric.is_global_zero:
            for (length, file), made in zip(files.items(), stored.denoisers(settings.lengths), strict=True):
                made.save_pretrained(file, length=length)
        fabric.barrier()
        distances, protocol = distances_of(files, settings, fabric) if len(files) > 1 else ({}, {})
        if not fabric.is_global_zero:
            return None
        best = min(files, key=lambda length: distances.get(length, 0))
        with atomic_path(folder / DENOISER) as temporary:
            shutil.copyfile(files[best], temporary)
        results = {"length": best, "denoiser": str(folder / DENOISER)}
        if distances:
            results |= {**compared(distances, settings, dataset, folder), "protocol": protocol}
        write_summary(folder, "average", results, run["inputs"])
    print(f"length      {best:g}\nmodel       {folder / DENOISER}")
    print(f"Next: {shlex.join([program(), 'evaluate', word('generated', folder)])}")
    return distances.get(best)


def distances_of(
    files: dict[float, Path], settings: AverageCommandSettings, fabric: Fabric
) -> tuple[dict[float, float], dict[str, Any]]:
    """The Fréchet distance to the data set of each average's images, all made from the same seeds, and the protocol."""
    dataset, batch_size = settings.dataset, settings.batch_size
    extractors = Extractors(settings.backbone, settings.evaluation.weights, dataset, settings.cache_dir)
    extractor = extractors.build(str(settings.evaluation.backbone))
    source = open_source(dataset, settings.cache_dir)
    store = partial(ImageStore, source, dataset.resolution, dataset.channels, settings.training.memory_gb)
    real = extractors.reference(source, store, [extractor], (), batch_size, fabric.device)[extractor.name]
    seeds = settings.first_seed + torch.arange(settings.num_images)
    found, generated = dict[float, float](), list[dict[str, Any]]()
    for length, file in files.items():
        made = GeneratedByModel(file, seeds, settings)
        generated.append(made.description)
        made.to(fabric.device)
        features = extract(made, [extractor], (), batch_size, fabric.device, f"length {length:g}")
        found[length] = frechet_distance(features[extractor.name].statistics, real.statistics)
    compared_with = {"images": source.images_fingerprint, "num_images": len(source)}
    for note in trained_on_others(generated[0], compared_with, source.name):
        fabric.print(f"Note: {note}")
    reference = {**extractors.description(source, extractor), "num_reference": real.statistics.n}
    return found, {**reference, "generated": generated}


def compared(
    distances: dict[float, float], settings: AverageCommandSettings, dataset: str, folder: Path
) -> dict[str, object]:
    """The distances as a table in the terminal, as a picture, and as the summary has them."""
    name = frechet_name(str(settings.evaluation.backbone))
    points = sorted(distances.items())
    caption = f"{dataset}: averages of one training, {settings.num_images:,} images each"
    print(Table(caption, ["length", name], [[f"{length:g}", f"{found:.4g}"] for length, found in points]).as_text())
    chart = history_chart("lengths", points, caption, "relative width of the average", f"Fréchet distance ({name})")
    draw_png(chart, folder / "lengths.png")
    return {name: min(distances.values()), "lengths": points, "num_images": settings.num_images}
