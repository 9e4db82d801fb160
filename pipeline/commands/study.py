"""`cedm study`: a question → the runs that answer it, tables, plots and a report."""

import re
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig

from datamodules.image_datamodule import ImageDataModule
from datamodules.images.sources import ImageSource, open_source
from pipeline.running.automatic import as_in_study, decided
from pipeline.running.cost import Cost, duration, measure_cost
from pipeline.running.devices import device_of
from pipeline.running.finished_run import read_any_summary
from pipeline.running.jobs import run_jobs
from pipeline.running.models import ModelSettings, passes_of
from pipeline.running.ray_cluster import on_cluster
from pipeline.running.resources import Resources, resources_of
from pipeline.running.run_folder import (
    choose_run_folder,
    opened_run_folder,
    read_settings,
    run_settings,
    runs_of,
    write_summary,
)
from pipeline.settings.door import typed_command, typed_words
from pipeline.settings.schemas import StudyCommandSettings
from pipeline.settings.words import key_of
from pipeline.studies.findings import CHARTS
from pipeline.studies.jobs import Plan
from pipeline.studies.page import write_markdown, write_page
from pipeline.studies.plan import make_plan
from pipeline.studies.results import Results, gather
from pipeline.studies.study_page import answer_of, study_page, write_tables
from storage.errors import UserError
from storage.settings import plain

IDENTITY = (
    "study", "bound", "dataset", "backbone", "clustering", "network", "training", "optimizer", "sampler", "evaluation",
    "trainer",
)  # fmt: skip
OWN_KEYS = re.compile(r"(study|bound|run_dir|overwrite|trainer\.(devices|accelerator))$|study[.@]|bound\.|hydra")


def study(settings: StudyCommandSettings) -> None:
    """Plan the jobs, run those that are not done, and say what they found."""
    asked = settings.study
    unknown = [name for name in asked.plots if name not in CHARTS]
    if unknown:
        asked.refuse("plots", f"there are {', '.join(CHARTS)}, not {unknown[0]}")
    name = str(HydraConfig.get().runtime.choices["study"])  # granularity of study=granularity
    source = open_source(settings.dataset, settings.cache_dir)
    typed = [text for text in typed_words() if not OWN_KEYS.match(key_of(text))]
    resources = resources_of(settings.trainer, asked.devices_per_job, asked.address)
    inputs = {"dataset": source.fingerprint}
    run = run_settings(settings, inputs, IDENTITY)
    parent = runs_of(settings.dataset.name, f"study-{name}")
    folder = choose_run_folder(settings.run_dir, parent, run, settings.overwrite)
    before = None if settings.overwrite else read_settings(folder)
    settings = decided_on(resources, settings, before)
    plan = make_plan(settings, source, typed)
    if asked.print:
        later = [f"Later: {plan.later[0]}."] if plan.later[0] else []
        print("\n".join([*map(str, plan.jobs), *(f"# {line}" for line in [*plan.left_out, *later])]))
        return
    run = run_settings(settings, inputs, IDENTITY, decided=True)
    with opened_run_folder(folder, run, settings.overwrite):
        print(f"study       {asked.question}\nfolder      {folder}\njobs        {asked.jobs_dir}")
        failed: dict[str, str] = {}
        announce(settings, source, plan, resources)
        while any(job.summary() is None and job.name not in failed for job in plan.jobs):
            failed |= run_jobs([job for job in plan.jobs if job.name not in failed], resources)
            if not failed:
                plan = make_plan(settings, source, typed)  # with what is known now, there may be more
                announce(settings, source, plan, resources)
        results = gather(plan, name, asked.question, source.name)
        write_results(settings, folder, plan, results, failed, inputs)
    if failed:
        problems = "\n".join(f"{job}: {problem}" for job, problem in failed.items())
        jobs = "job" if len(plan.jobs) == 1 else "jobs"
        again = "Run the same command again to continue."
        raise UserError(f"{len(failed)} of {len(plan.jobs)} {jobs} failed:\n{problems}\n{again}")


def decided_on(resources: Resources, settings: StudyCommandSettings, before: Any) -> StudyCommandSettings:
    """The settings with what all trainings leave at `auto` decided once, on a device that will do them."""
    if resources.address is None:
        return decided(settings, before)
    on_one = replace(settings, trainer=replace(settings.trainer, accelerator=resources.kind, devices=1))
    there = on_cluster(resources.address, resources.kind == "gpu", decided, on_one, before)
    return as_in_study(settings, there)[0]


def announce(settings: StudyCommandSettings, source: ImageSource, plan: Plan, resources: Resources) -> None:
    """Say what is to be done and what it will cost, before it starts."""
    waiting = [job for job in plan.jobs if job.summary() is None]
    kinds = Counter(job.command for job in waiting)
    to_do = ", ".join(f"{count} × {kind}" for kind, count in kinds.items()) or "nothing"
    done = len(plan.jobs) - len(waiting)
    print(f"to do       {to_do}; {done} {'job is' if done == 1 else 'jobs are'} done")
    for line in plan.left_out:
        print(f"            {line}")
    later, later_images = plan.later
    if later:
        print(f"later       {later}; counted below")
    images = sum(job.images for job in waiting) + later_images
    if images:
        cost = measured_cost(settings, source, images, resources)
        print(
            f"cost        {images / 1000:,.0f} kimg, generated images counted by their passes, at "
            f"{cost.images_per_s:,.0f} images/s on {resources.devices} × {cost.device} → {duration(cost.hours)}; "
            "clusterings and the start of each job not counted"
        )
        if cost.warning:
            print(cost.warning)
    sys.stdout.flush()


def measured_cost(settings: StudyCommandSettings, source: ImageSource, images: int, resources: Resources) -> Cost:
    """Time the study's network on one device as a job will have it, where this machine has one of the kind."""
    training, device = settings.training, device_of(settings.trainer.accelerator)
    if resources.kind == "gpu" and device.type == "cpu":  # which would compile for minutes
        settings = replace(settings, trainer=replace(settings.trainer, compile=False))
    data = ImageDataModule(
        source,
        None,
        resolution=settings.dataset.resolution,
        channels=settings.dataset.channels,
        batch_size=training.batch_size,
        accumulate=passes_of(training, world_size=1),
        seed=settings.seed,
        num_workers=0,
        memory_gb=0,
    )
    batch = data.labelled_images()[torch.arange(training.batch_size // data.accumulate)]
    threads = torch.get_num_threads()
    torch.set_num_threads(resources.threads)
    try:
        module = ModelSettings.of(settings).build(data, "none")
        precision = settings.trainer.precision
        return measure_cost(module, batch, device, resources.devices, images, precision, data.accumulate)
    finally:
        torch.set_num_threads(threads)


def write_results(
    settings: StudyCommandSettings,
    folder: Path,
    plan: Plan,
    results: Results,
    failed: dict[str, str],
    inputs: dict[str, str],
) -> None:
    """Tables, plots, the summary with all numbers, and the page."""
    charts = [CHARTS[name](results) for name in settings.study.plots]
    write_tables(folder, results, charts)
    summary: dict[str, Any] = {
        **asdict(results),
        "answer": answer_of(results, charts),
        "findings": {chart.name: chart.finding for chart in charts},
        "plots": settings.study.plots,
        "failed": failed,
        "jobs": {job.name: {"command": str(job), "folder": str(job.folder)} for job in plan.jobs},
        "settings": {"study": plain(settings.study)},
    }
    write_summary(folder, "study", summary, inputs)
    print("\n".join(f"answer      {finding}" for finding in summary["answer"]))
    page = study_page(read_any_summary(folder))
    print(f"table       {write_markdown(folder / 'results.md', page)}")
    print(f"report      {write_page(folder / 'report.html', page)}")
    print(f"Again: {typed_command('study')}")
