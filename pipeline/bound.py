"""`cedm bound`: how many clusters are worth having, without labels and without training a diffusion model."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from PIL import Image

from datamodules.artifacts import UserError, atomic_path, file_digest
from datamodules.assignment_files import assignment_keys, read_cluster_ids
from datamodules.images import ImageStore
from datamodules.pseudo_labels import PseudoLabels
from datamodules.sources import ImageSource
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.clustering.bound import (
    COARSE_BETA,
    COARSE_FROM,
    UPPER_BETA,
    Bound,
    Measurement,
    find_bound,
    mean_ratios,
)
from metrics.utilization import ClusterUtilization
from pipeline.bound_plot import draw_bound
from pipeline.cluster import head_file, temi_data, train_temi
from pipeline.command import command, typed_command
from pipeline.inputs import embeddings_of, pseudo_labels_file, source_of
from pipeline.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary

KEY = re.compile(r"beta(?P<beta>[\d.]+)\.clusters(?P<clusters>\d+)$")


@command
def bound(cfg: DictConfig) -> None:
    check(cfg)
    settings_of: tuple[str, ...] = ("dataset", "backbone", "clustering", "bound", "seed")
    if cfg.assignments is not None:
        path = Path(str(cfg.assignments))
        measurements = list(from_assignments(path, cfg.bound.used_when))
        name, inputs = path.stem, {"assignments": file_digest(path)}
        cfg.dataset.name, settings_of = path.stem, ("bound",)
    else:
        source = source_of(cfg)
        name, inputs = source.name, {"dataset": source.fingerprint}
    settings = run_settings(cfg, inputs, settings_of)
    folder = choose_run_folder(cfg, "bound", settings)
    with opened_run_folder(folder, settings, cfg.overwrite):
        if cfg.assignments is None:
            measurements = list(train_grid(cfg, source, folder))
        result = find_bound(measurements, cfg.bound.threshold, cfg.bound.rule)
        draw_bound(folder / "bound.png", measurements, result, cfg.bound.threshold, name)
        show_in_tensorboard(folder)
        write_table(folder / "bound.csv", measurements)
        summary = {
            "upper_bound": result.upper_bound,
            "coarse_end": result.coarse_end,
            "threshold": cfg.bound.threshold,
            "rule": cfg.bound.rule,
            "used_when": cfg.bound.used_when,
            "worth_training": result.worth_training,
            "agreement": result.agreement,
            "measurements": [{**asdict(m), "ratio": m.ratio} for m in measurements],
        }
        write_summary(folder, "bound", summary, inputs)
    print(report(measurements, result, cfg, folder))


def check(cfg: DictConfig) -> None:
    """Refuse settings of the bound that cannot be meant."""
    rules, ways = ("largest", "unbroken"), ("assigned", "probable")
    if cfg.bound.rule not in rules:
        raise UserError(f"bound.rule={cfg.bound.rule}: type bound.rule=largest or bound.rule=unbroken.")
    if cfg.bound.used_when not in ways:
        raise UserError(f"bound.used_when={cfg.bound.used_when}: type bound.used_when=assigned or probable.")
    grid = list(cfg.bound.grid)
    if not grid or any(not isinstance(C, int) or C < 2 for C in grid):
        raise UserError(f"bound.grid={grid}: type numbers of clusters from 2 up, such as bound.grid=[10,20,40].")
    if not 0 < cfg.bound.threshold <= 1:
        raise UserError(f"bound.threshold={cfg.bound.threshold}: it is a ratio above 0, at most 1, such as 0.96.")


def from_assignments(path: Path, used_when: str) -> Iterator[Measurement]:
    """A measurement for every key of the file that ends in `beta<β>.clusters<C>`."""
    if not path.is_file():
        raise UserError(f"assignments={path}: no such file.")
    if used_when != "assigned":
        raise UserError(
            f"bound.used_when={used_when}: {path} holds cluster ids, not probabilities. Type bound.used_when=assigned."
        )
    found = False
    for key in assignment_keys(path):
        match = KEY.search(key)
        if match is None:
            continue
        found = True
        cluster_ids, _ = read_cluster_ids(path, key, ids=None)
        num_used = len(cluster_ids.unique())
        yield Measurement(int(match["clusters"]), float(match["beta"]), seed=0, num_used=num_used)
    if not found:
        raise UserError(
            f"assignments={path}: no key ends in beta<β>.clusters<C>, such as temi.beta0.6.clusters100; "
            f"there are: {', '.join(assignment_keys(path))}."
        )


def train_grid(cfg: DictConfig, source: ImageSource, folder: Path) -> Iterator[Measurement]:
    """Train TEMI for every C, β and seed, or take the pseudo-labels from the cache where they are there already."""
    if cfg.clustering.method != "temi":
        raise UserError(
            f"clustering={cfg.clustering.method}: the bound is one on TEMI's clusters. Leave clustering= out."
        )
    grid = sorted(set(cfg.bound.grid))
    if grid[-1] > len(source):
        raise UserError(f"bound.grid={grid}: {source.name!r} has only {len(source)} images. Leave out what is above.")
    coarse = [C for C in grid if min(COARSE_FROM, grid[-1]) <= C]
    jobs = [(C, UPPER_BETA, seed) for C in grid for seed in range(cfg.bound.num_seeds)]
    jobs += [(C, COARSE_BETA, seed) for C in coarse for seed in range(cfg.bound.num_seeds)]
    images = ImageStore(source, cfg.dataset.resolution, cfg.dataset.channels, memory_gb=0)  # a gallery shows few
    for number, (num_clusters, beta, seed) in enumerate(jobs, start=1):
        job = cfg.copy()
        job.trainer.devices = 1
        job.clustering.num_clusters, job.clustering.beta, job.seed = num_clusters, beta, cfg.seed + seed
        path = pseudo_labels_file(job, source)
        known = path.exists()
        if not known:
            print(f"[{number}/{len(jobs)}] C = {num_clusters}, β = {beta}, seed {job.seed}", flush=True)
            part = folder / "clusterings" / f"clusters{num_clusters}-beta{beta}-seed{job.seed}"
            train_temi(job, source, temi_data(job, source, world_size=1), images.gather, part, path).save(path)
        labels = PseudoLabels.load(path, remake=typed_command("bound"))
        num_used = labels.num_used if cfg.bound.used_when == "assigned" else probable_clusters(job, source, path)
        print(f"[{number}/{len(jobs)}] C = {num_clusters}, β = {beta}: {num_used} used{' (known)' if known else ''}")
        yield Measurement(num_clusters, beta, job.seed, num_used)


@torch.no_grad()
def probable_clusters(cfg: DictConfig, source: ImageSource, path: Path) -> int:
    """The number of clusters whose mean probability over the data set is above 1/C."""
    head = ClusteringHead.load(head_file(path), remake=typed_command("bound"))
    utilization = ClusterUtilization(head.num_clusters, used_when="probable")
    for standardised in embeddings_of(cfg, source).standardised().split(4096):
        logits = head.head(standardised)[0]  # [b, C]
        utilization.update(logits.argmax(dim=1), (logits / head.temperature).softmax(dim=1))
    return int(utilization.compute()["num_used"])


def write_table(path: Path, measurements: list[Measurement]) -> None:
    """Every measurement as a line of CSV."""
    lines = [f"{m.num_clusters},{m.beta},{m.seed},{m.num_used},{m.ratio:.6g}" for m in measurements]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(["num_clusters,beta,seed,num_used,utilization_ratio", *lines]) + "\n")


def show_in_tensorboard(folder: Path) -> None:
    """The plot, in TensorBoard too."""
    logger = TensorBoardLogger(folder, name="", version="tensorboard")
    with Image.open(folder / "bound.png") as picture:
        logger.experiment.add_image("bound", np.array(picture.convert("RGB")), dataformats="HWC")
    logger.finalize("success")


def report(measurements: list[Measurement], result: Bound, cfg: DictConfig, folder: Path) -> str:
    """What a person reads in the terminal."""
    seeds = {m.seed for m in measurements}
    sure = f"{result.agreement:.0%} of {len(seeds)} seeds agree" if len(seeds) > 1 else "from one seed"
    lines = ["     C   utilization ratio at β = 0.6"]
    for C, (ratio, spread) in mean_ratios(measurements).items():
        deviation = f" ± {spread:.3f}" if len(seeds) > 1 else ""
        lines.append(f"{C:6d}   {ratio:.3f}{deviation}{'  ✓' if ratio >= cfg.bound.threshold else ''}")
    found: Any = result.upper_bound if result.upper_bound is not None else f"none: no C reaches {cfg.bound.threshold}"
    coarse: Any = f"{result.coarse_end:g}" if result.coarse_end is not None else "not measured (no β = 1)"
    worth = ", ".join(map(str, result.worth_training)) or "none"
    return "\n".join(
        [
            *lines,
            f"upper bound      {found}  (threshold {cfg.bound.threshold}, rule {cfg.bound.rule}; {sure})",
            f"coarse end       {coarse}",
            f"worth training   C = {worth}",
            f"plot             {folder / 'bound.png'}",
        ]
    )


if __name__ == "__main__":
    bound()
