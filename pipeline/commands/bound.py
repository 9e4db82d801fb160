"""`cedm bound`: how many clusters are worth having, without labels and without training a diffusion model."""

import re
from dataclasses import asdict
from pathlib import Path

from datamodules.images.sources import open_source
from datamodules.pseudo_labels.assignment_files import NOISE, assignment_keys, read_cluster_ids
from datamodules.pseudo_labels.pseudo_labels import settled
from lightning_modules.clustering.bound import COARSE_BETA, UPPER_BETA, Measurement
from lightning_modules.clustering.clustering_settings import TEMISettings
from pipeline.pictures.bound import BoundFindings
from pipeline.pictures.chart import draw_png
from pipeline.pictures.cluster_pictures import show_in_tensorboard
from pipeline.pictures.table import write_csv
from pipeline.running.bound_grid import grid_of, measure_grid
from pipeline.running.condition import Condition
from pipeline.running.resources import resources_of
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, runs_of, write_summary
from pipeline.settings.door import typed_words
from pipeline.settings.schemas import BoundCommandSettings
from pipeline.settings.words import key_of
from storage.digests import file_digest
from storage.errors import UserError

# Of one clustering in a file of several, such as temi-dino_vitb16.beta0.6.clusters100 or ….clusters100.seed3
KEY = re.compile(r"(?P<prefix>.*)beta(?P<beta>[\d.]*)\.clusters(?P<clusters>\d+)(?:[._-]?seed(?P<seed>\d+))?", re.ASCII)
# What the grid chooses, and where a user may have looked for it
CHOSEN_BY_THE_GRID = {
    "clustering.num_clusters": "bound.grid=[10,20,40] chooses the numbers of clusters",
    "clustering.beta": f"the bound is defined at β = {UPPER_BETA}, and the coarse end at β = {COARSE_BETA}",
}


def bound(settings: BoundCommandSettings) -> None:
    """Measure utilization ratios, of a grid of clusterings or of a file of them, and find the bound that they give."""
    asked = settings.bound
    if settings.assignments is not None:
        path, _, prefix = settings.assignments.partition("::")
        measurements = from_assignments(Path(path), prefix, asked.used_when, settings.noise)
        name, inputs = Path(path).stem, {"assignments": file_digest(path), **({"prefix": prefix} if prefix else {})}
        run = run_settings(settings, inputs, ("bound",))
    else:
        check(settings)
        source = open_source(settings.dataset, settings.cache_dir, without_images=True)
        name, inputs = source.name, Condition.of(settings).inputs(source)
        run = run_settings(settings, inputs, ("dataset", "backbone", "clustering", "bound", "seed"))
        grid = list(grid_of(asked.grid or [], asked.num_seeds, settings.seed, source, typed_words()))
        resources = resources_of(settings.trainer, address=asked.address)
    folder = choose_run_folder(settings.run_dir, runs_of(name, "bound"), run, settings.overwrite)
    with opened_run_folder(folder, run, settings.overwrite):
        if settings.assignments is None:
            measurements = measure_grid(grid, source, folder, resources, asked.used_when)
        found = BoundFindings(measurements, asked.threshold, asked.rule, asked.used_when)
        result = found.bound
        draw_png(found.chart(name), folder / "bound.png")
        show_in_tensorboard(folder, {"bound": folder / "bound.png"}, settings.loggers)
        write_csv(folder / "bound.csv", [{**asdict(m), "utilization_ratio": m.ratio} for m in measurements])
        summary = {
            **{name: getattr(asked, name) for name in ("threshold", "rule", "used_when")},
            **{name: getattr(result, name) for name in ("upper_bound", "coarse_end", "worth_training", "agreement")},
            "upper_bound_by_seed": result.by_seed,
            "upper_bound_by_threshold": result.by_threshold,
            "measurements": [{**asdict(m), "ratio": m.ratio} for m in measurements],
        }
        write_summary(folder, "bound", summary, inputs)
    for table in found.tables:
        print(table.as_text())
    for what, value in {**found.facts, "plot": folder / "bound.png"}.items():
        print(f"{what:<16} {value}")


def check(settings: BoundCommandSettings) -> None:
    """Refuse what the grid chooses, and another clustering than TEMI's."""
    for word in typed_words():
        if key_of(word) in CHOSEN_BY_THE_GRID:
            raise UserError(f"{word}: {CHOSEN_BY_THE_GRID[key_of(word)]}. Leave {key_of(word)} out.")
    clustering = settings.clustering
    kinds = {"clustering": clustering.method}
    if isinstance(clustering, TEMISettings):
        kinds["clustering.objective"] = clustering.objective
    for key, kind in kinds.items():
        if kind != "temi":
            raise UserError(f"{key}={kind}: the bound is one on TEMI's clusters. Leave {key}= out.")


def from_assignments(path: Path, prefix: str, used_when: str, noise: str | None = None) -> list[Measurement]:
    """A measurement for every key of the file that begins with `prefix` and ends in `beta<β>.clusters<C>`.

    Raises:
        UserError: no file, no such key, several prefixes, the same clustering twice, or cluster ids that do not fit.
    """
    if not path.is_file():
        raise UserError(f"assignments={path}: no such file.")
    if used_when != "assigned":
        raise UserError(
            f"bound.used_when={used_when}: {path} holds cluster ids, not probabilities. Set bound.used_when=assigned."
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
    measurements = [measured(path, key, match, noise) for key, match in matches.items()]
    for key, one in zip(matches, measurements, strict=True):
        if (same := found.setdefault((one.num_clusters, one.beta, one.seed), key)) != key:
            raise UserError(f"{path}: {same} and {key} have the same C, β and seed. Leave one out.")
    return measurements


def measured(path: Path, key: str, match: re.Match[str], noise: str | None) -> Measurement:
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
    cluster_ids, num_clusters = settled(path, read_cluster_ids(path, key, ids=None), None, noise)
    used = cluster_ids[cluster_ids != NOISE].unique()
    return Measurement(num_clusters, beta, seed, num_used=len(used))
