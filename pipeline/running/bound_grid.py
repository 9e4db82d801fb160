"""The clusterings behind `cedm bound`: TEMI for every C, β and seed of the grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.clustering.bound import COARSE_BETA, COARSE_FROM, UPPER_BETA, Measurement
from lightning_modules.clustering.clustering_settings import TEMISettings
from metrics.utilization import ClusterUtilization
from pipeline.running.condition import Condition
from pipeline.running.jobs import Job, run_jobs
from pipeline.running.own_images import compose_for_images
from pipeline.running.resources import Resources
from pipeline.settings.words import key_of
from storage.errors import UserError

# What is the grid's or the device's, and not the clustering's.
OWN_KEYS = (
    *("bound", "run_dir", "overwrite", "conditioning", "assignments", "seed"),
    *("clustering.num_clusters", "clustering.beta"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
)


@dataclass(frozen=True)
class GridPoint:
    """One clustering of the grid: `words` are its settings."""

    num_clusters: int
    beta: float
    seed: int
    words: tuple[str, ...]
    condition: Condition

    @property
    def name(self) -> str:
        return f"clusters{self.num_clusters}-beta{self.beta}-seed{self.seed}"


def grid_of(
    grid: Sequence[int], num_seeds: int, first_seed: int, source: ImageSource, typed: Sequence[str]
) -> Iterator[GridPoint]:
    """β = 0.6 for all C of the grid, then β = 1 where the number of clusters used has saturated; all seeds of each.

    Raises:
        UserError: more clusters than images.
    """
    grid = sorted(set(grid))
    if grid[-1] > len(source):
        raise UserError(f"bound.grid={grid}: {source.name!r} has only {len(source)} images. Leave out what is above.")
    # Tens of pages with the same images would be too much: `cedm clusters` makes one of a clustering.
    common = ["page_images=0"] + [
        text for text in typed if key_of(text) not in OWN_KEYS and not key_of(text).startswith("bound.")
    ]
    coarse = [C for C in grid if min(COARSE_FROM, grid[-1]) <= C]
    for num_clusters, beta in [(C, UPPER_BETA) for C in grid] + [(C, COARSE_BETA) for C in coarse]:
        for seed in range(first_seed, first_seed + num_seeds):
            own = (f"clustering.num_clusters={num_clusters}", f"clustering.beta={beta}", f"seed={seed}")
            condition = Condition.of(compose_for_images("cluster", [*common, *own]))
            yield GridPoint(num_clusters, beta, seed, (*common, *own), condition)


def measure_grid(
    grid: Sequence[GridPoint], source: ImageSource, folder: Path, resources: Resources, used_when: str
) -> list[Measurement]:
    """Train what is not in the cache yet, in folders below `folder`, and count the clusters that are used.

    Raises:
        MissingArtifactError: there are no embeddings yet.
        UserError: a clustering failed.
    """
    paths = {point.name: point.condition.pseudo_labels_path(source) for point in grid}
    missing = [point for point in grid if not paths[point.name].exists()]
    if missing:
        condition = missing[0].condition
        assert isinstance(condition.clustering, TEMISettings)
        condition.neighbours(condition.embeddings(source))  # missing inputs are found out before anything starts
        images = condition.clustering.max_epochs * len(source)
        jobs = [Job(one.name, "cluster", one.words, folder / "clusterings" / one.name, (), images) for one in missing]
        print(f"{len(jobs)} clusterings on {resources}; the output of each is in its folder's log.txt", flush=True)
        failed = run_jobs(jobs, resources)
        if failed:
            told = "\n".join(f"{name}: {problem}" for name, problem in failed.items())
            raise UserError(
                f"{len(failed)} of {len(jobs)} clusterings failed:\n{told}\n"
                "The others are kept: the same command trains only what is missing."
            )
    measurements = []
    for number, one in enumerate(grid, start=1):
        path = paths[one.name]
        num_used = PseudoLabels.load(path).num_used if used_when == "assigned" else probable_clusters(one, source)
        told = f"C = {one.num_clusters}, β = {one.beta}, seed {one.seed}"
        print(f"[{number}/{len(grid)}] {told}: {num_used} used{'' if one in missing else ' (known)'}")
        measurements.append(Measurement(one.num_clusters, one.beta, one.seed, num_used))
    return measurements


@torch.no_grad()
def probable_clusters(point: GridPoint, source: ImageSource) -> int:
    """The number of clusters whose mean probability over the data set is above 1/C."""
    head = ClusteringHead.from_pretrained(point.condition.head_path(source))
    utilization = ClusterUtilization(head.num_clusters, used_when="probable")
    for batch in point.condition.embeddings(source).values.split(4096):
        logits = head.head(head.inputs(batch))[0]  # [b, C]
        utilization.update(logits.argmax(dim=1), (logits / head.temperature).softmax(dim=1))
    return int(utilization.compute()["num_used"])
