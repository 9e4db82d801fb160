"""`cedm bound`: how many clusters are worth having, without labels and without training a diffusion model."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from datamodules.artifacts import UserError, atomic_path, file_digest
from datamodules.assignment_files import assignment_keys, read_cluster_ids
from lightning_modules.clustering.bound import UPPER_BETA, Bound, Measurement, find_bound, mean_ratios
from pipeline.bound_grid import measure_grid
from pipeline.bound_plot import draw_bound
from pipeline.cluster_pictures import show_in_tensorboard
from pipeline.command import command
from pipeline.inputs import source_of
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


def write_table(path: Path, measurements: list[Measurement]) -> None:
    """Every measurement as a line of CSV."""
    lines = [f"{m.num_clusters},{m.beta},{m.seed},{m.num_used},{m.ratio:.6g}" for m in measurements]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(["num_clusters,beta,seed,num_used,utilization_ratio", *lines]) + "\n")


def report(measurements: list[Measurement], result: Bound, cfg: DictConfig, folder: Path) -> str:
    """What a person reads in the terminal."""
    found: Any = result.upper_bound if result.upper_bound is not None else f"none: no C reaches {cfg.bound.threshold}"
    coarse: Any = f"{result.coarse_end:g}" if result.coarse_end is not None else "not measured (no β = 1)"
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
