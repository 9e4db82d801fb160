"""The clusterings behind `cedm bound`: TEMI for every C, β and seed of the grid."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from datamodules.embedding_datamodule import EmbeddingDataModule
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.clustering.bound import COARSE_BETA, COARSE_FROM, UPPER_BETA, Measurement
from metrics.utilization import ClusterUtilization
from pipeline.commands.cluster import head_file, temi_data, train_temi, write_results
from pipeline.running.bound_workers import train_side_by_side
from pipeline.running.workers import workers_of
from pipeline.settings.inputs import embeddings_of, pseudo_labels_file
from storage.errors import UserError


@dataclass(frozen=True, eq=False)
class Job:
    """One clustering of the grid: its settings, where its pseudo-labels will lie, and the folder of its run."""

    cfg: DictConfig
    path: Path
    folder: Path

    def __str__(self) -> str:
        return f"C = {self.cfg.clustering.num_clusters}, β = {self.cfg.clustering.beta}, seed {self.cfg.seed}"

    @property
    def is_done(self) -> bool:
        return self.path.exists()

    @contextmanager
    def claimed(self, wait: bool) -> Iterator[bool]:
        """Whether this process may train the job now: nobody else, here or on another machine, is at it.

        With `wait`, until the other is done or gone; the lock is free again however its process ends.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            yield False
            return
        try:
            yield not self.is_done
        finally:
            lock.release()


def measure_grid(cfg: DictConfig, source: ImageSource, folder: Path) -> list[Measurement]:
    """Train TEMI for every C, β and seed, or take the pseudo-labels from the cache where they are there already.

    Several devices (`trainer.devices`) train different jobs, each on one device.

    Raises:
        UserError: another clustering than TEMI, more clusters than images, no embeddings, or a job that failed.
    """
    if cfg.clustering.method != "temi":
        raise UserError(
            f"clustering={cfg.clustering.method}: the bound is one on TEMI's clusters. Leave clustering= out."
        )
    jobs = jobs_of(cfg, source, folder)
    known = {job.path for job in jobs if job.is_done}
    if len(known) < len(jobs):
        data = temi_data(jobs[0].cfg, source, world_size=1)  # missing inputs are found out before anything starts
        workers = workers_of(cfg.trainer.accelerator, cfg.trainer.devices)
        if len(workers) > 1:
            train_side_by_side(jobs, workers)
        else:
            train_one_by_one(jobs, source, data)
    measurements = []
    for number, job in enumerate(jobs, start=1):
        labels = PseudoLabels.load(job.path)
        num_used = labels.num_used if cfg.bound.used_when == "assigned" else probable_clusters(job, source)
        print(f"[{number}/{len(jobs)}] {job}: {num_used} used{' (known)' if job.path in known else ''}")
        clustering = job.cfg.clustering
        measurements.append(Measurement(clustering.num_clusters, clustering.beta, job.cfg.seed, num_used))
    return measurements


def jobs_of(cfg: DictConfig, source: ImageSource, folder: Path) -> list[Job]:
    """β = 0.6 for all C of the grid, then β = 1 where the number of clusters used has saturated; all seeds of each."""
    grid = sorted(set(cfg.bound.grid))
    if grid[-1] > len(source):
        raise UserError(f"bound.grid={grid}: {source.name!r} has only {len(source)} images. Leave out what is above.")
    coarse = [C for C in grid if min(COARSE_FROM, grid[-1]) <= C]
    jobs = []
    for num_clusters, beta in [(C, UPPER_BETA) for C in grid] + [(C, COARSE_BETA) for C in coarse]:
        for seed in range(cfg.seed, cfg.seed + cfg.bound.num_seeds):
            job = cfg.copy()
            job.clustering.num_clusters, job.clustering.beta, job.seed = num_clusters, beta, seed
            part = folder / "clusterings" / f"clusters{num_clusters}-beta{beta}-seed{seed}"
            jobs.append(Job(job, pseudo_labels_file(job, source), part))
    return jobs


def train_one_by_one(jobs: list[Job], source: ImageSource, data: EmbeddingDataModule) -> None:
    """Train the jobs in this process on the same pairs, each in its own order; another machine's come last."""
    for wait in (False, True):
        for number, job in enumerate(jobs, start=1):
            if job.is_done:
                continue
            with job.claimed(wait) as mine:
                if mine:
                    print(f"[{number}/{len(jobs)}] {job}", flush=True)
                    labels = train_temi(job.cfg, source, data.with_seed(job.cfg.seed), job.folder, job.path)
                    write_results(job.cfg, labels, source, job.path, job.folder)
                    gc.collect()  # trainer and module hold each other, and the garbage of a GPU starts no collection


@torch.no_grad()
def probable_clusters(job: Job, source: ImageSource) -> int:
    """The number of clusters whose mean probability over the data set is above 1/C."""
    head = ClusteringHead.load(head_file(job.path))
    utilization = ClusterUtilization(head.num_clusters, used_when="probable")
    for standardised in embeddings_of(job.cfg, source).standardised().split(4096):
        logits = head.head(standardised)[0]  # [b, C]
        utilization.update(logits.argmax(dim=1), (logits / head.temperature).softmax(dim=1))
    return int(utilization.compute()["num_used"])
