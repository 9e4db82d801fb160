"""The models of a study: its YAML's settings, once for each value of the lists that they name."""

import itertools
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import Any

from omegaconf import DictConfig, OmegaConf

from datamodules.images.sources import ImageSource
from pipeline.settings.inputs import check_clustering, identity_of, plain
from pipeline.settings.words import key_of
from pipeline.studies.jobs import Run, composed
from storage.errors import UserError
from storage.fingerprints import file_stem

ABSENT = object()
INSTEAD = {
    "training.duration_kimg": "study.duration_kimg",
    "clustering.num_clusters": "study.clusters=[…]",
    "seed": "study.seeds=[…]",
}


def expand(
    group: str, templates: Sequence[str], study: dict[str, Any]
) -> Iterator[tuple[str, list[str], tuple[str, ...]]]:
    """(name, words, values) of each run of a group: every `{key}` in it takes each value of the list `study.key`.

    `values` are those of the lists that do not set C.

    Raises:
        UserError: the study has no such list.
    """
    keys = list(dict.fromkeys(key for text in templates for _, key, _, _ in Formatter().parse(text) if key))
    for key in keys:
        if not isinstance(study.get(key), list) or not study[key]:
            raise UserError(
                f"study.runs.{group}: {{{key}}} stands for each value of the list study.{key}, which is "
                f"{study.get(key, 'not there')}. Type study.{key}=[…]."
            )
    of_C = [key for key in keys if f"clustering.num_clusters={{{key}}}" in templates]
    for values in itertools.product(*(study[key] for key in keys)):
        chosen = dict(zip(keys, values, strict=True))
        name = file_stem(group, *map(str, values))
        others = tuple(str(value) for key, value in chosen.items() if key not in of_C)
        yield name, [text.format(**chosen) for text in templates], others


def study_runs(cfg: DictConfig, source: ImageSource, typed: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs of the study's grid, and a line for each that is left out because its groups cannot be had.

    Raises:
        UserError: the study and the user set the same thing, a run cannot be meant, or none is left.
    """
    study = plain(cfg.study)
    kimg, points = short_kimg(cfg), study["curve_points"]
    fixed = [f"training.duration_kimg={kimg:g}", *study["settings"]]
    if points is not None:
        fixed.append(f"evaluation.every_kimg={kimg / points:g}")
    runs, left_out = [], []
    for group, templates in study["runs"].items():
        given = without_backbone(typed) if "clustering=clip" in templates else typed
        refuse_both(given, [*fixed, *templates, "seed="], group)
        for (name, words, values), seed in itertools.product(expand(group, templates, study), study["seeds"]):
            if len(study["seeds"]) > 1:
                name = f"{name}-seed{seed}"
            own = [*fixed, f"seed={seed}", *words]
            every = (*fitting(given, own, group), *own)
            run = Run(name, group, every, composed("train", every, origin=f"study.runs.{group}"), values)
            problem = why_left_out(run, source, templates)
            if problem is not None:
                left_out.append(f"{name}: left out, {problem}")
                continue
            if run.method != "none" and run.cfg.assignments is None:
                check_clustering(run.cfg, source)
            runs.append(run)
    if not runs:
        raise UserError("\n".join(["No run is left of this study.", *left_out]))
    return runs, left_out


def why_left_out(run: Run, source: ImageSource, templates: Sequence[str]) -> str | None:
    """Why there are no such groups here: no labels, or nothing to make a backbone of the study's own choice from.

    None where there are. A backbone that the user chose is not left out but refused, by its own message.
    """
    if run.method == "labels" and source.labels is None:
        return f"{source.name!r} has no labels."
    if run.method == "clip" and run.cfg.clustering.class_names is None and not source.class_names:
        return f"{source.name!r} tells no class names. Type clustering.class_names=[…]."
    if any(key_of(text) == "backbone" for text in templates):
        try:
            identity_of(run.cfg)  # asks for the weights
        except UserError as error:
            return str(error)
    return None


def without_backbone(typed: Sequence[str]) -> list[str]:
    """What the user types for the other runs is not meant for CLIP's groups, which no other backbone can make."""
    return [text for text in typed if key_of(text).split(".")[0] != "backbone"]


def fitting(typed: Sequence[str], own: Sequence[str], group: str) -> list[str]:
    """What the user types, but for settings of TEMI where a run takes its groups from something else."""
    maybe = [text for text in typed if key_of(text).startswith("clustering.")]
    if not maybe:
        return list(typed)
    rest = [text for text in typed if text not in maybe]
    cfg = composed("train", [*rest, *own], origin=f"study.runs.{group}")
    absent = [text for text in maybe if OmegaConf.select(cfg, key_of(text), default=ABSENT) is ABSENT]
    return [text for text in typed if text not in absent]


def refuse_both(typed: Sequence[str], fixed: Sequence[str], group: str) -> None:
    """Raise a `UserError` where the user types what the study sets itself."""
    for key in {key_of(text) for text in typed} & {key_of(text) for text in fixed}:
        hint = f"Type {INSTEAD[key]} instead" if key in INSTEAD else f"Leave it out, or edit study.runs.{group}"
        raise UserError(f"{key}: the study sets it for its runs ({group}). {hint}.")


def short_kimg(cfg: DictConfig) -> float:
    """Thousand images that each run of the grid sees."""
    return float(cfg.study.duration_kimg or cfg.study.duration_share * cfg.training.duration_kimg)
