"""`cedm evaluate`: generated images and a data set → distances, each with its whole protocol."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.image_store import ImageStore
from datamodules.images.sources import ImageSource, open_source
from metrics.frechet import Statistics
from pipeline.evaluation.evaluate_settings import EvaluateSettings
from pipeline.evaluation.evaluation_summary import show_in_tensorboard, summarise, table
from pipeline.evaluation.features import Features
from pipeline.evaluation.generated import GeneratedByModel, generated_sets
from pipeline.evaluation.held_out import references_beside
from pipeline.evaluation.measures import OtherReference, backbones, check_sizes, measure_sets, plan_of
from pipeline.evaluation.metrics_table import FRECHET, REAL
from pipeline.evaluation.real_clusters import real_clusters
from pipeline.evaluation.reference import Extractors
from pipeline.running.processes import join, side_by_side
from pipeline.running.run_folder import (
    choose_run_folder,
    opened_run_folder,
    read_summary,
    run_settings,
    runs_of,
    write_summary,
)
from pipeline.settings.schemas import EvaluateCommandSettings
from storage.digests import file_digest
from storage.fingerprints import fingerprint

IDENTITY = ("dataset", "metrics", "memorisation", "neighbour_backbone", "kid", "prdc", "inception_score")
IDENTITY_OF_A_MODEL = ("num", "sets", "first_seed", "clusters", "sampler")


def evaluate(settings: EvaluateCommandSettings) -> float | None:
    """Measure every set of generated images that is not measured yet; the mean of the first score."""
    settings = replace(settings, sampler=replace(settings.sampler, **settings.for_sampler))
    dataset, cache_dir = settings.dataset, settings.cache_dir
    plan = plan_of(settings, settings.evaluation.backbone)
    extractors = Extractors(settings.backbone, settings.evaluation.weights, dataset, cache_dir)
    for name in backbones(plan):
        asked_by = "neighbour_backbone" if name == settings.neighbour_backbone else "evaluation.backbone"
        extractors.settings(name, asked_by)
    sets = generated_sets(settings)
    source = open_source(dataset, cache_dir) if settings.reference is None else None
    statistics = None if settings.reference is None else Statistics.load_npz(settings.reference)
    reference = describe_reference(settings, dataset, source)
    for generated in sets:
        names = f"generated={generated.description['path']}", f"dataset={dataset.name}"
        check_sizes(plan, len(generated), reference["num_images"], *names)
    clusters = real_clusters(settings, sets, source) if settings.per_cluster and source is not None else None
    inputs = {
        "reference": reference["fingerprint"],
        **({} if clusters is None else {"pseudo_labels": clusters.fingerprint}),
        "generated": fingerprint([generated.fingerprint for generated in sets]),
        **({} if source is None or source.held_out is None else {"held_out": source.held_out.fingerprint}),
        **{f"extractor_{name}": fingerprint(extractors.identity(name)) for name in backbones(plan)},
    }
    identity = IDENTITY + (IDENTITY_OF_A_MODEL if isinstance(sets[0], GeneratedByModel) else ())
    run, parent = run_settings(settings, inputs, identity), runs_of(dataset.name, "evaluate")
    overwrite = settings.overwrite
    machine, folder = join(settings.trainer, lambda: choose_run_folder(settings.run_dir, parent, run, overwrite))
    summary = None if overwrite else read_summary(folder, "evaluate")
    if summary is not None and (settings.save_reference is None or Path(settings.save_reference).exists()):
        if machine.rank == 0:
            print(f"Nothing to do: this evaluation is finished.\n{table(summary, folder)}")
        return first_score(summary)
    built = [extractors.build(name) for name in backbones(plan)]
    for extractor in built:
        found = extractor.dim if statistics is None else len(statistics.mean)
        if extractor.name in backbones(plan, FRECHET) and extractor.dim != found:
            expected = f"it holds statistics of {found} features; {extractor.name} has {extractor.dim}"
            settings.refuse("reference", f"{expected}. Set metrics= to the one whose extractor made the file")
    with side_by_side(settings.trainer) as fabric, opened_run_folder(folder, run, overwrite, fabric.global_rank):
        store, others = None, list[OtherReference]()
        if source is not None:
            open_store = partial(ImageStore, source, dataset.resolution, dataset.channels)
            whole, keep = partial(open_store, settings.training.memory_gb), backbones(plan, side=REAL)
            real = extractors.reference(source, whole, built, keep, settings.batch_size, fabric.device)
            store = open_store(memory_gb=0)  # for the few images that are looked at
            others = references_beside(source, plan, extractors, built, settings.batch_size, fabric.device)
        elif statistics is not None:
            real = {name: Features(statistics) for name in backbones(plan)}
        if settings.save_reference is not None and fabric.is_global_zero:
            real[backbones(plan, FRECHET)[0]].statistics.save_npz(settings.save_reference)
            print(f"reference file    {settings.save_reference}  (mu and sigma, EDM's format)")
        ids = None if clusters is None else clusters.of_images
        results = measure_sets(sets, plan, built, real, others, store, ids, settings.batch_size, folder, fabric)
        if not fabric.is_global_zero:
            return None
        if "tensorboard" in settings.loggers:
            show_in_tensorboard(folder, results)
        called = {} if clusters is None else clusters.names
        summary = summarise(plan, results, reference, built, dataset.name, called)
        write_summary(folder, "evaluate", summary, inputs)
        print(table(summary, folder))
        return first_score(summary)


def first_score(summary: Mapping[str, Any]) -> float:
    """What a sweeper minimises: the mean over the sets of the first score of the table."""
    return float(next(iter(summary["scores"].values()))["mean"])


def describe_reference(
    settings: EvaluateSettings, dataset: DatasetSettings, source: ImageSource | None
) -> dict[str, Any]:
    """The other side, as the protocol has it: the data set's images, or the file of `reference=`."""
    if source is None:
        path = Path(str(settings.reference))
        return {"file": str(path), "fingerprint": file_digest(path), "num_images": None}
    size = f"{dataset.resolution}×{dataset.resolution}"
    resized = f"centre crop to a square and LANCZOS to {size} (Pillow), where the size differs"
    known = {"dataset": source.name, "fingerprint": source.fingerprint, "images": source.images_fingerprint}
    held_out = {} if source.held_out is None else {"num_held_out": len(source.held_out)}
    return {**known, "num_images": len(source), "resized": resized, **held_out}
