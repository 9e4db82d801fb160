"""`cedm study`: a question → the runs that answer it, tables, plots and a report."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from datamodules.image_datamodule import ImageBatch, ImageDataModule
from datamodules.images.sources import ImageSource
from pipeline.commands.train import accumulation, build_module
from pipeline.running.cost import Cost, duration, measure_cost
from pipeline.running.embedding import device_of
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary
from pipeline.running.workers import Worker, workers_of
from pipeline.settings.command import command, fail, typed_command
from pipeline.settings.inputs import plain, source_of
from pipeline.settings.words import key_of
from pipeline.studies.findings import CHARTS
from pipeline.studies.jobs import Plan
from pipeline.studies.page import answer_of, study_page, write_page
from pipeline.studies.plan import make_plan
from pipeline.studies.results import Results, gather
from pipeline.studies.runner import run_jobs
from pipeline.studies.tables import write_tables
from storage.errors import UserError

GROUPS = (
    "study", "bound", "dataset", "backbone", "clustering", "network", "training", "sampler", "evaluation", "trainer"
)  # fmt: skip
OWN_KEYS = ("study", "bound", "run_dir", "overwrite", "trainer.devices", "trainer.accelerator")


@command
def study(cfg: DictConfig) -> None:
    check_plots(cfg)
    name = str(HydraConfig.get().runtime.choices["study"])
    source = source_of(cfg)
    typed = [text for text in HydraConfig.get().overrides.task if not owns(key_of(text))]
    workers = workers_of(cfg.trainer.accelerator, cfg.trainer.devices)
    plan = make_plan(cfg, source, typed)
    if cfg.study.print:
        print(commands_of(plan))
        return
    inputs = {"dataset": source.fingerprint}
    settings = run_settings(cfg, inputs, GROUPS)
    folder = choose_run_folder(cfg, f"study-{name}", settings)
    with opened_run_folder(folder, settings, cfg.overwrite):
        print(f"study       {cfg.study.question}\nfolder      {folder}\njobs        {cfg.study.jobs_dir}")
        failed: dict[str, str] = {}
        announce(cfg, source, plan, workers)
        while any(job.summary() is None and job.name not in failed for job in plan.jobs):
            failed |= run_jobs([job for job in plan.jobs if job.name not in failed], workers)
            if not failed:
                plan = make_plan(cfg, source, typed)  # with what is known now, there may be more
                announce(cfg, source, plan, workers)
        results = gather(plan, name, str(cfg.study.question), source.name)
        write_results(cfg, folder, plan, results, failed, inputs)
    if failed:
        problems = "\n".join(f"{job}: {problem}" for job, problem in failed.items())
        jobs = "job" if len(plan.jobs) == 1 else "jobs"
        fail(f"{len(failed)} of {len(plan.jobs)} {jobs} failed:\n{problems}\nTyped again, the study goes on.", code=1)


def owns(key: str) -> bool:
    """Whether a setting is the study's own, and no job's."""
    return key in OWN_KEYS or key.startswith(("study.", "study@", "bound.", "hydra"))


def check_plots(cfg: DictConfig) -> None:
    unknown = [name for name in cfg.study.plots if name not in CHARTS]
    if unknown:
        raise UserError(
            f"study.plots={list(cfg.study.plots)}: there is no {unknown[0]}. There are: {', '.join(CHARTS)}."
        )


def commands_of(plan: Plan) -> str:
    """A line for each job, in an order in which they can be run."""
    later = [f"Later: {plan.later[0]}."] if plan.later[0] else []
    return "\n".join([*(str(job) for job in plan.jobs), *(f"# {line}" for line in [*plan.left_out, *later])])


def announce(cfg: DictConfig, source: ImageSource, plan: Plan, workers: Sequence[Worker]) -> None:
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
        cost = measured_cost(cfg, source, images, workers)
        print(
            f"cost        {images / 1000:,.0f} kimg, generated images counted by their passes, at "
            f"{cost.images_per_s:,.0f} images/s on {len(workers)} × {cost.device} → {duration(cost.hours)}; "
            "clusterings and the start of each job not counted"
        )
        if cost.warning:
            print(cost.warning)
    sys.stdout.flush()


def measured_cost(cfg: DictConfig, source: ImageSource, images: int, workers: Sequence[Worker]) -> Cost:
    """Time the study's network on one device as a job will have it."""
    device = device_of(cfg.trainer.accelerator)
    data = ImageDataModule(
        source,
        None,
        resolution=cfg.dataset.resolution,
        channels=cfg.dataset.channels,
        batch_size=cfg.training.batch_size,
        accumulate=accumulation(cfg.training.batch_size, 1, cfg.training.max_batch_per_device),
        seed=cfg.seed,
        num_workers=0,
        memory_gb=0,
    )
    data.setup()
    batch = ImageBatch(*next(iter(data.train_dataloader())))
    threads = torch.get_num_threads()
    torch.set_num_threads(int(workers[0].environment.get("OMP_NUM_THREADS", threads)))
    try:
        return measure_cost(build_module(cfg, data, source), batch, device, len(workers), images, cfg.trainer.precision)
    finally:
        torch.set_num_threads(threads)


def write_results(
    cfg: DictConfig, folder: Path, plan: Plan, results: Results, failed: dict[str, str], inputs: dict[str, str]
) -> None:
    """Tables, plots, the summary with all numbers, and the page."""
    charts = [CHARTS[name](results) for name in cfg.study.plots]
    write_tables(folder, results, charts)
    summary: dict[str, Any] = {
        **results.as_json(),
        "answer": answer_of(results, charts),
        "findings": {chart.name: chart.finding for chart in charts},
        "plots": list(cfg.study.plots),
        "failed": failed,
        "jobs": {job.name: {"command": str(job), "folder": str(job.folder)} for job in plan.jobs},
        "settings": {"study": plain(cfg.study)},
    }
    write_summary(folder, "study", summary, inputs)
    print("\n".join(f"answer      {finding}" for finding in summary["answer"]))
    print(f"table       {folder / 'results.md'}\nreport      {write_page(folder / 'report.html', study_page(folder))}")
    print(f"Again: {typed_command('study')}")


if __name__ == "__main__":
    study()
