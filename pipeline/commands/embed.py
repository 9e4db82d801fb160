"""`cedm embed`: images → embeddings and nearest neighbours, in the cache."""

from pathlib import Path
from typing import Any

import torch

from datamodules.embeddings.embeddings import Embeddings, embeddings_path
from datamodules.embeddings.neighbours import FAISS, make_neighbours, neighbours_path
from datamodules.images.sources import ImageSource, open_source
from datamodules.images.survey import Survey
from datamodules.packages import needed
from lightning_modules.clustering.clustering_settings import TEMISettings
from pipeline.pictures.data_report import keep_report, report_data
from pipeline.running.condition import Condition
from pipeline.running.devices import devices_of
from pipeline.running.embedding import Embedder
from pipeline.running.run_folder import (
    choose_run_folder,
    opened_run_folder,
    run_settings,
    runs_of,
    write_summary,
    write_summary_beside,
)
from pipeline.settings.door import typed_command
from pipeline.settings.schemas import SharedSettings
from storage.errors import UserError


def embed(settings: SharedSettings) -> None:
    """Survey the images, embed them, and find the neighbours that TEMI needs; what is there already is kept."""
    condition, cache_dir = Condition.of(settings), settings.cache_dir
    embedder = Embedder(condition, settings.embedding, settings.trainer)
    source = open_source(settings.dataset, cache_dir, without_images=True)
    everything = source.undivided  # those held out, too: their clusters are found by their embeddings
    if embedder.write_share(everything):
        return
    reason = condition.needs_no("embed")
    device = devices_of(settings.trainer)[0]  # of the neighbour search
    temi = settings.clustering if isinstance(settings.clustering, TEMISettings) else None
    if reason is None and temi is not None:
        check_neighbours(source, temi.num_neighbours)
        if temi.neighbour_search == "approximate":
            needed(*FAISS)  # before the embedding, not after it
    report: tuple[Survey, Path] | None = None
    if everything.has_images:
        report = report_data(everything, settings.dataset.resolution, settings.dataset.channels, Path(cache_dir))
    if reason is not None:
        print(f"Nothing to do: no embeddings are needed for {reason}.")
        return
    if report is not None and len(everything) > 1 and report[0].num_distinct == 1:
        raise UserError(
            f"{source.name}: all {len(everything):,} images have the same pixels, so they are one cluster. Look at the "
            "contact sheet; set another dataset.path, or conditioning=none to train without clusters."
        )
    identity = condition.backbone_identity
    path = embeddings_path(cache_dir, everything, identity)
    done_before = path.exists()
    if identity.get("supervised"):
        print(f"backbone    {settings.backbone.name}: supervised, trained with the labels of {identity['supervised']}")
    embeddings = embedder.cached_or_new(source)
    if temi is not None:
        done_before = find_neighbours(embeddings, temi, cache_dir, device) and done_before
    if source.held_out is not None:
        print(f"held out    {len(source.held_out):,} images: clustering and training see the other {len(source):,}")
    print(f"embeddings  {path}  [{len(everything):,} × {embeddings.values.shape[1]}]")
    if condition.of_file:
        print(f"taken from  {settings.embeddings}: {embeddings.meta['settings']['taken']}")
    if done_before:
        print("Nothing to do: they were there already.")
    size = {"num_images": len(everything), "num_features": embeddings.values.shape[1]}
    results = {**size, "embeddings": str(path), "backbone": identity}
    write(settings, results, condition.inputs(source), report, done_before)
    print(f"Next: {typed_command('cluster')}")


def find_neighbours(embeddings: Embeddings, temi: TEMISettings, cache_dir: str, device: torch.device) -> bool:
    """Find the neighbours, unless they are in the cache; whether they were."""
    k, search = temi.num_neighbours, temi.neighbour_search
    path = neighbours_path(cache_dir, embeddings, k, search)
    known = path.exists()
    graph = make_neighbours(embeddings, k, cache_dir, device=device, search=search)
    recall = "" if search == "exact" else f"  ({search}, recall {graph.recall:.3f})"
    print(f"neighbours  {path}{recall}")
    return known


def write(
    settings: SharedSettings,
    results: dict[str, Any],
    inputs: dict[str, str],
    report: tuple[Survey, Path] | None,
    done_before: bool,
) -> None:
    """The summary and the survey into a run folder; of what was there before, a summary where one was asked for."""
    run = run_settings(settings, inputs, ("dataset", "backbone"))
    if done_before:
        if settings.run_dir is not None:
            write_summary_beside(Path(settings.run_dir), "embed", results, inputs, run)
        return
    parent = runs_of(settings.dataset.name, f"embed-{settings.backbone.name}")
    folder = choose_run_folder(settings.run_dir, parent, run, settings.overwrite)
    with opened_run_folder(folder, run, settings.overwrite):
        if report is not None:
            keep_report(*report, folder)
        print(f"summary     {write_summary(folder, 'embed', results, inputs)}")


def check_neighbours(source: ImageSource, num_neighbours: int) -> None:
    """Refuse before the embedding, not after it.

    Raises:
        UserError: there are not as many other images as neighbours asked for.
    """
    if num_neighbours < len(source):
        return
    fewer = (len(source) - 1) // 4
    without = "clustering=kmeans, which needs none (nor does `cedm assign`)"
    instead = f"clustering.num_neighbours={fewer}, or {without}" if fewer else without
    raise UserError(
        f"clustering.num_neighbours={num_neighbours}, but {source.name!r} has {len(source)} images, so each has "
        f"{len(source) - 1} neighbours. Set {instead}."
    )
