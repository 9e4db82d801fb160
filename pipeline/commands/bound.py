"""`cedm bound`: how many clusters are worth having, without labels and without training a diffusion model."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from datamodules.pseudo_labels.assignment_files import assignment_keys, read_cluster_ids
from lightning_modules.clustering.bound import (
    COARSE_BETA,
    COARSE_FROM,
    UPPER_BETA,
    Bound,
    Measurement,
    find_bound,
    mean_ratios,
)
from lightning_modules.clustering.bound_settings import BoundSettings
from pipeline.pictures.bound_plot import draw_bound
from pipeline.pictures.cluster_pictures import show_in_tensorboard
from pipeline.running.bound_grid import measure_grid
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary
from pipeline.settings.command import command
from pipeline.settings.inputs import plain, source_of
from pipeline.settings.words import key_of
from storage.digests import file_digest
from storage.errors import UserError
from storage.files import atomic_path

# Of one clustering in a file of several, such as temi-dino_vitb16.beta0.6.clusters100 or ….clusters100.seed3
KEY = re.compile(r"(?P<prefix>.*)beta(?P<beta>[\d.]*)\.clusters(?P<clusters>\d+)(?:[._-]?seed(?P<seed>\d+))?", re.ASCII)
# What the grid chooses, and where a user may have looked for it
CHOSEN_BY_THE_GRID = {
    "clustering.num_clusters": "bound.grid=[10,20,40] chooses the numbers of clusters",
    "clustering.beta": f"the bound is defined at β = {UPPER_BETA}, and the coarse end at β = {COARSE_BETA}",
}


@command
def bound(cfg: DictConfig) -> None:
    check(cfg)
    settings_of: tuple[str, ...] = ("dataset", "backbone", "clustering", "trainer", "bound", "seed")
    if cfg.assignments is not None:
        file_name, _, prefix = str(cfg.assignments).partition("::")
        path = Path(file_name)
        measurements = from_assignments(path, prefix, cfg.bound.used_when)
        name, inputs = path.stem, {"assignments": file_digest(path), **({"prefix": prefix} if prefix else {})}
        cfg.dataset.name, settings_of = path.stem, ("bound",)
    else:
        source = source_of(cfg)
        name, inputs = source.name, {"dataset": source.fingerprint}
    settings = run_settings(cfg, inputs, settings_of)
    folder = choose_run_folder(cfg, "bound", settings)
    with opened_run_folder(folder, settings, cfg.overwrite):
        if cfg.assignments is None:
            measurements = measure_grid(cfg, source, folder)
        result = find_bound(measurements, cfg.bound.threshold, cfg.bound.rule)
        draw_bound(folder / "bound.png", measurements, result, cfg.bound.threshold, name)
        show_in_tensorboard(folder, {"bound": folder / "bound.png"})
        write_table(folder / "bound.csv", measurements)
        summary = {
            "upper_bound": result.upper_bound,
            "coarse_end": result.coarse_end,
            "threshold": cfg.bound.threshold,
            "rule": cfg.bound.rule,
            "used_when": cfg.bound.used_when,
            "worth_training": result.worth_training,
            "agreement": result.agreement,
            "upper_bound_by_seed": result.by_seed,
            "measurements": [{**asdict(m), "ratio": m.ratio} for m in measurements],
        }
        write_summary(folder, "bound", summary, inputs)
    print(report(measurements, result, cfg, folder))


def check(cfg: DictConfig) -> None:
    """Refuse settings of the bound that cannot be meant."""
    BoundSettings(**plain(cfg.bound))
    for typed in HydraConfig.get().overrides.task:
        if key_of(typed) in CHOSEN_BY_THE_GRID:
            raise UserError(f"{typed}: {CHOSEN_BY_THE_GRID[key_of(typed)]}. Leave {key_of(typed)} out.")
    objective = cfg.clustering.get("objective", "temi")
    if objective != "temi":
        raise UserError(
            f"clustering.objective={objective}: the bound is one on TEMI's clusters. Leave clustering.objective out."
        )


def from_assignments(path: Path, prefix: str, used_when: str) -> list[Measurement]:
    """A measurement for every key of the file that begins with `prefix` and ends in `beta<β>.clusters<C>`.

    Raises:
        UserError: no file, no such key, several prefixes, the same clustering twice, or cluster ids that do not fit.
    """
    if not path.is_file():
        raise UserError(f"assignments={path}: no such file.")
    if used_when != "assigned":
        raise UserError(
            f"bound.used_when={used_when}: {path} holds cluster ids, not probabilities. Type bound.used_when=assigned."
        )
    keys = assignment_keys(path)
    matches = {key: match for key in keys if key.startswith(prefix) and (match := KEY.fullmatch(key))}
    if not matches:
        raise UserError(
            f"assignments={path}: no key {f'begins with {prefix} and ' if prefix else ''}ends in beta<β>.clusters<C>, "
            f"such as temi.beta0.6.clusters100; there are: {', '.join(keys)}."
        )
    prefixes = sorted({match["prefix"] for match in matches.values()})
    if len(prefixes) > 1:
        raise UserError(
            f"assignments={path}: it holds clusterings of several kinds, {', '.join(prefixes)}, and a bound is one on "
            f"clusterings of the same embeddings. Choose one: assignments={path}::{prefixes[-1]}"
        )
    found: dict[tuple[int, float, int], str] = {}
    measurements = []
    for key, match in matches.items():
        measurement = measured(path, key, match)
        same = found.setdefault((measurement.num_clusters, measurement.beta, measurement.seed), key)
        if same != key:
            raise UserError(f"{path}: {same} and {key} have the same C, β and seed. Leave one out.")
        measurements.append(measurement)
    return measurements


def measured(path: Path, key: str, match: re.Match[str]) -> Measurement:
    """The measurement that a key of a file names."""
    try:
        beta, num_clusters, seed = float(match["beta"]), int(match["clusters"]), int(match["seed"] or 0)
    except ValueError:  # beta..clusters10, or thousands of digits
        beta, num_clusters, seed = 0.0, 0, 0
    if not beta > 0 or num_clusters < 2:
        raise UserError(
            f"{path}::{key}: expected a key that ends in beta<β>.clusters<C> with a number above 0 and at least 2 "
            "clusters, such as temi.beta0.6.clusters100."
        )
    cluster_ids, _ = read_cluster_ids(path, key, ids=None)
    used = cluster_ids.unique()
    if int(used[-1]) >= num_clusters:
        raise UserError(
            f"{path}::{key}: holds cluster id {int(used[-1])}, but by its key there are {num_clusters} clusters, 0 to "
            f"{num_clusters - 1}. Rename the key, or leave it out."
        )
    return Measurement(num_clusters, beta, seed, num_used=len(used))


def write_table(path: Path, measurements: list[Measurement]) -> None:
    """Every measurement as a line of CSV."""
    lines = [f"{m.num_clusters},{m.beta},{m.seed},{m.num_used},{m.ratio:.6g}" for m in measurements]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(["num_clusters,beta,seed,num_used,utilization_ratio", *lines]) + "\n")


def report(measurements: list[Measurement], result: Bound, cfg: DictConfig, folder: Path) -> str:
    """What a person reads in the terminal."""
    found: Any = result.upper_bound
    if found is None:
        found = f"none: no C reaches {cfg.bound.threshold}"
        if cfg.bound.used_when == "probable":
            found += " (half of the clusters, about, lie above the mean probability 1/C: type bound.threshold=0.3)"
    elif result.may_lie_higher(measurements):
        found = f"{found} or more: no larger C was tried"
    coarse: Any = "not measured (no β = 1)"
    if result.coarse_end is not None:
        coarse = f"{result.coarse_end:g}"
        if (largest := max(m.num_clusters for m in measurements)) < COARSE_FROM:
            coarse += f" (at C = {largest}: no C of {COARSE_FROM} or more was tried, where it settles)"
    worth = ", ".join(map(str, result.worth_training)) or "none"
    return "\n".join(
        [
            *ratio_table(measurements, cfg.bound.threshold),
            f"upper bound      {found}  (threshold {cfg.bound.threshold}, rule {cfg.bound.rule})",
            f"how sure         {how_sure(result)}",
            f"coarse end       {coarse}",
            f"worth training   C = {worth}",
            f"plot             {folder / 'bound.png'}",
        ]
    )


def ratio_table(measurements: list[Measurement], threshold: float) -> Iterator[str]:
    """Lines with the utilization ratio for every C, β and seed: mean, spread over seeds, and each by itself."""
    seeds = sorted({m.seed for m in measurements})
    several = len(seeds) > 1
    for beta in sorted({m.beta for m in measurements}):
        single = {(m.num_clusters, m.seed): f"{m.ratio:.3f}" for m in measurements if m.beta == beta}
        heads = [f"{f'seed {seed}':<8}" for seed in seeds if several]
        yield f"     C   {f'utilization ratio at β = {beta:g}':<30}{''.join(heads)}".rstrip()
        for C, (ratio, spread) in mean_ratios(measurements, beta).items():
            mark = " ✓" if beta == UPPER_BETA and ratio >= threshold else ""
            mean = f"{ratio:.3f}{f' ± {spread:.3f}' if several else ''}{mark}"
            values = [f"{single.get((C, seed), '-'):<8}" for seed in seeds if several]
            yield f"{C:6d}   {mean:<30}{''.join(values)}".rstrip()


def how_sure(result: Bound) -> str:
    """The agreement of the seeds in words."""
    if len(result.by_seed) <= 1:
        return "unknown: one seed only (cedm bound dataset=… bound.num_seeds=3 would tell)"
    agreeing = list(result.by_seed.values()).count(result.upper_bound)
    said = ", ".join("none" if alone is None else str(alone) for alone in result.by_seed.values())
    return f"{agreeing} of {len(result.by_seed)} seeds give the same bound by themselves ({said})"


if __name__ == "__main__":
    bound()
