"""`cedm bound`: how many clusters are worth having, without labels and without training a diffusion model."""

import re
from dataclasses import asdict
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from datamodules.pseudo_labels.assignment_files import assignment_keys, read_cluster_ids
from lightning_modules.clustering.bound import COARSE_BETA, UPPER_BETA, Measurement
from pipeline.pictures.bound import BoundFindings
from pipeline.pictures.chart import draw_png
from pipeline.pictures.cluster_pictures import show_in_tensorboard
from pipeline.running.bound_grid import measure_grid
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary
from pipeline.settings.command import command
from pipeline.settings.inputs import source_of
from pipeline.settings.overrides import key_of
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
        found = BoundFindings(measurements, cfg.bound.threshold, cfg.bound.rule, cfg.bound.used_when)
        result = found.bound
        draw_png(found.chart(name), folder / "bound.png")
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
    for table in found.tables:
        print(table.as_text())
    for what, value in {**found.facts, "plot": folder / "bound.png"}.items():
        print(f"{what:<16} {value}")


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


if __name__ == "__main__":
    bound()
