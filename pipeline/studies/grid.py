"""The models of a study: its YAML's settings, once for each value of the lists that they name."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields
from string import Formatter

from datamodules.images.sources import ImageSource
from lightning_modules.clustering.clustering_settings import METHODS, ClusteringSettings
from pipeline.running.own_images import composed
from pipeline.settings.words import key_of
from pipeline.studies.jobs import Run
from pipeline.studies.study_settings import StudySettings
from storage.errors import UserError
from storage.fingerprints import file_stem

INSTEAD = {
    "training.duration_kimg": "study.duration_kimg",
    "clustering.num_clusters": "study.clusters=[…]",
    "seed": "study.seeds=[…]",
}
CAN_BE_ABSENT = ("labels", "clip")  # clusters that not all data sets have; those of the study's own backbones, too


def expand(
    group: str, templates: Sequence[str], study: StudySettings
) -> Iterator[tuple[str, list[str], tuple[str, ...]]]:
    """(name, words, values) of each run of a group: every `{key}` in it takes each value of the list `study.key`.

    `values` are those of the lists that do not set C.

    Raises:
        UserError: the study has no such list.
    """
    keys = list(dict.fromkeys(key for text in templates for _, key, _, _ in Formatter().parse(text) if key))
    lists = {"clusters": study.clusters, **study.lists}
    for key in keys:
        values = lists.get(key, "not there")
        if not isinstance(values, list) or not values:
            raise UserError(
                f"study.runs.{group}: {{{key}}} stands for each value of the list study.{key}, which is {values}. "
                f"Set study.{key}=[…]."
            )
    of_C = [key for key in keys if f"clustering.num_clusters={{{key}}}" in templates]
    for values in itertools.product(*(lists[key] for key in keys)):
        chosen = dict(zip(keys, values, strict=True))
        name = file_stem(group, *map(str, values))
        others = tuple(str(value) for key, value in chosen.items() if key not in of_C)
        yield name, [text.format(**chosen) for text in templates], others


def study_runs(
    study: StudySettings, full_kimg: float, source: ImageSource, typed: Sequence[str]
) -> tuple[list[Run], list[str]]:
    """The runs of the study's grid, and a line for each that is left out because its clusters cannot be had.

    `full_kimg` is the duration of a full training.

    Raises:
        UserError: the study and the user set the same thing, a run is not possible, or none is left.
    """
    kimg = float(study.duration_kimg or study.duration_share * full_kimg)
    fixed = [f"training.duration_kimg={kimg:g}", *study.settings]
    if study.curve_points is not None:
        fixed.append(f"evaluation.every_kimg={kimg / study.curve_points:g}")
    runs, left_out = [], []
    for group, templates in study.runs.items():
        given = typed
        if "clustering=clip" in templates:  # another backbone is meant for the other runs: none but CLIP's makes these
            given = [text for text in typed if key_of(text).split(".")[0] != "backbone"]
        refuse_both(given, [*fixed, *templates, "seed="], group)
        for (name, words, values), seed in itertools.product(expand(group, templates, study), study.seeds):
            if len(study.seeds) > 1:
                name = f"{name}-seed{seed}"
            own = [*fixed, f"seed={seed}", *words]
            every = (*fitting(given, own), *own)
            run = Run(name, group, every, composed("train", every, origin=f"study.runs.{group}"), values)
            own_backbone = any(key_of(text) == "backbone" for text in templates)
            try:
                if run.condition.needs_no("cluster") is None:
                    run.condition.check(source)
                if own_backbone:
                    _ = run.condition.backbone_identity  # asks for the weights
                runs.append(run)
            except UserError as error:
                if not own_backbone and run.condition.method not in CAN_BE_ABSENT:
                    raise
                why = " ".join(str(error).split())  # in one line, for a list of commands
                left_out.append(f"{name}: left out, {why}")
    if not runs:
        raise UserError("\n".join(["No run is left of this study.", *left_out]))
    return runs, left_out


def fitting(typed: Sequence[str], own: Sequence[str]) -> list[str]:
    """What the user types, but for settings of TEMI where a run takes its clusters from something else."""
    method = [word.partition("=")[2] for word in [*typed, *own] if key_of(word) == "clustering"][-1:] or ["temi"]
    known = {own.name for own in fields(METHODS.get(method[0].partition("_")[0], ClusteringSettings))}
    return [text for text in typed if not key_of(text).startswith("clustering.") or key_of(text)[11:] in known]


def refuse_both(typed: Sequence[str], fixed: Sequence[str], group: str) -> None:
    """Raise a `UserError` where the user types what the study sets itself."""
    for key in {key_of(text) for text in typed} & {key_of(text) for text in fixed}:
        hint = f"Set {INSTEAD[key]} instead" if key in INSTEAD else f"Leave it out, or edit study.runs.{group}"
        raise UserError(f"{key}: the study sets it for its runs ({group}). {hint}.")
