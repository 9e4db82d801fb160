"""The folder of one run: which one it is, whether it may be continued, and the `summary.json` in it."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.running.parents import place_in_sweep
from pipeline.running.trainer_settings import AUTO
from pipeline.settings.commands import COMMANDS
from pipeline.settings.compose import leaves
from storage.bounds import refuse_large
from storage.errors import DamagedArtifactError, UserError
from storage.files import (
    MOST_JSON,
    make_folder,
    numbered,
    read_sealed_json,
    remove_abandoned,
    write_json,
    write_sealed_json,
)
from storage.fingerprints import canonical_json
from storage.settings import Settings, plain

SETTINGS_FILE = "settings.json"
SUMMARY_FILE = "summary.json"
# What makes a diffusion training the run that it is, beside its inputs.
TRAINING_IDENTITY = (
    "dataset", "conditioning", "network", "training", "optimizer", "sampler", "evaluation", "trainer", "seed"
)  # fmt: skip
# What runs write into their folder: a user's files of these names are not written over.
OUTPUTS = re.compile(
    r"(images|grids|snapshots|averages|tensorboard|csv|wandb|mlflow_run_id|profile|hf|hub|candidates|clusterings"
    r"|settings\.json|data\.(json|png)"
    r"|images\.(zip|npy)|labels\.npy|(denoiser(-.+)?|guide|head|held_out|pseudo_labels)\.safetensors|(set-\d+)\.json|nearest-\d+\.png"
    r"|(pseudo_labels|clusters|bound|scores|confidence|results|distances|classes)\.csv|(report|clusters)\.html"
    r"|(grid|clusters|gallery|map|utilization|distance|lengths|bound)\.png)"
)
# Settings whose `auto` stands for what was decided when the run began.
LEFT_OPEN = {"trainer": ("precision", "compile")}
# Settings that change rounding alone and so tell no run from another, and are kept as they were when it began.
KEPT = {"training": ("max_batch_per_device",)}
MAY_GROW = "training.duration_kimg"  # a finished run can go on for more images
LIBRARIES = ("torch", "lightning", "torchmetrics", "transformers", "hydra-core")


def run_settings(
    settings: Settings, inputs: Mapping[str, str], groups: Sequence[str], decided: bool = False
) -> dict[str, Any]:
    """What makes a run the run that it is: the settings that its command reads, and its inputs.

    `groups` are the config groups and single settings in question. Where things lie and how many devices work does not
    change what is computed (`storage.settings.About.identifies`), nor do names of files whose content is in `inputs`.
    `decided`: as they are written down when the run begins, with those of `KEPT`.
    """
    read = {name: plain(getattr(settings, name)) for name in ("preset", *groups)}
    if decided:
        for group, names in KEPT.items():
            read[group] |= {name: getattr(getattr(settings, group), name) for name in names}
    return {"settings": json.loads(canonical_json(read)), "inputs": dict(inputs)}


def as_before(asked: Mapping[str, Any], before: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What `run_settings` returned, with what is left at `auto` or in `KEPT` as in the run `before`, if any."""
    if before is None:
        return asked
    groups, known = dict(asked["settings"]), before.get("settings", {})
    for group, names in LEFT_OPEN.items():
        left = {name for name in names if groups.get(group, {}).get(name) == AUTO} & known.get(group, {}).keys()
        if left:
            groups[group] = {**groups[group], **{name: known[group][name] for name in left}}
    for group in KEPT.keys() & groups.keys():
        kept = {name: value for name, value in known.get(group, {}).items() if name in KEPT[group]}
        groups[group] = {name: value for name, value in groups[group].items() if name not in KEPT[group]} | kept
    return {**asked, "settings": groups}


def runs_of(dataset: str, what: str) -> Path:
    """The folder that holds all runs of one kind on a data set: `runs/digits/train-temi-40`."""
    return Path("runs") / dataset / what


def choose_run_folder(run_dir: str | None, parent: Path, settings: Mapping[str, Any], overwrite: bool = False) -> Path:
    """`run_dir`, or the newest run of the same settings below `parent`, or a new folder there.

    Raises:
        UserError: `run_dir` holds a run of other settings, and the message shows the differences; or a user's files.
    """
    if run_dir is not None:
        refuse_foreign_files(Path(run_dir))
        if not overwrite:
            refuse_other_settings(Path(run_dir), settings)
        return Path(run_dir)
    if not overwrite:
        for folder in sorted(parent.glob("*"), reverse=True):
            with suppress(DamagedArtifactError):
                before = read_settings(folder)
                if before == as_before(settings, before):
                    return folder
    return unused(parent / f"{time.strftime('%Y%m%d-%H%M%S')}{place_in_sweep()}")


@contextmanager
def opened_run_folder(folder: Path, settings: Mapping[str, Any], overwrite: bool, rank: int = 0) -> Iterator[None]:
    """Create the folder with its `settings.json` and keep other processes out of it; rank 0's business.

    With `overwrite`, what lies there is first set aside.

    Raises:
        UserError: another process works in the folder.
    """
    if rank != 0:
        yield
        return
    if overwrite and holds_run(folder):
        with locked(folder):
            aside = unused(folder.with_name(f"{folder.name}-replaced-{time.strftime('%Y%m%d-%H%M%S')}"))
            folder.rename(aside)
        print(f"The run that lay in {folder} is kept in {aside}.")
    with locked(folder):
        remove_abandoned(folder)
        before = read_settings(folder)
        settings = as_before(settings, before)
        kimg = None if before is None else flattened(before).get(MAY_GROW)
        if kimg is not None and kimg != flattened(settings).get(MAY_GROW):  # it goes on for longer
            with suppress(FileNotFoundError):
                (folder / SUMMARY_FILE).rename(folder / f"summary-{kimg:g}kimg.json")
        if before != settings:
            write_sealed_json(folder / SETTINGS_FILE, settings)
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is free again however this process ends."""
    make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{folder}: another process works on this run. Wait for it, or set run_dir=FOLDER for one beside it."
        ) from error
    try:
        yield
    finally:
        lock.release()


def unused(folder: Path) -> Path:
    """`folder`, or `folder-2`, `folder-3`, … where it exists already."""
    return next(place for place in numbered(folder) if not place.exists())


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings that a run folder was opened with; None where there is no run.

    Raises:
        DamagedArtifactError: they are damaged, or gone from beside snapshots.
    """
    settings = read_sealed_json(folder / SETTINGS_FILE)
    if settings is None and holds_run(folder):
        raise DamagedArtifactError(
            "settings", folder / SETTINGS_FILE, "gone, while the folder holds snapshots of a run."
        )
    return settings


def holds_run(folder: Path) -> bool:
    """Whether a run lies in a folder, its settings readable or not."""
    return (folder / SETTINGS_FILE).exists() or any(folder.glob("snapshots/*.ckpt"))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that a JSON file holds; None where there is none, or no whole one."""
    try:
        refuse_large(path, MOST_JSON, "a summary")
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError, UserError):
        return None
    return content if isinstance(content, dict) else None


def refuse_other_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise a `UserError` that lists the differences when `folder` holds a run of other settings.

    A longer duration alone is no other run: it goes on where the shorter one ended.
    """
    try:
        before = read_settings(folder)
    except DamagedArtifactError as error:
        raise UserError(
            f"{error} What the run in this folder was made from is not known any more, so it cannot go on. Set "
            "another run_dir, or overwrite=true to start afresh (the old run is kept aside)."
        ) from error
    settings = as_before(settings, before)
    if before is None or before == settings:
        return
    old, new = flattened(before), flattened(settings)
    if old.get(MAY_GROW, 0) < new.get(MAY_GROW, 0) and {**old, MAY_GROW: None} == {**new, MAY_GROW: None}:
        return
    changes = {key: (old.get(key, "(absent)"), new.get(key, "(absent)")) for key in sorted(old.keys() | new.keys())}
    lines = "\n".join(f"  {key}: {was} → {now}" for key, (was, now) in changes.items() if was != now)
    raise UserError(
        f"run_dir={folder} holds a run with other settings:\n{lines}\n"
        "Set another run_dir, or overwrite=true to start afresh (the old run is kept aside)."
    )


def refuse_foreign_files(folder: Path) -> None:
    """Raise a `UserError` where a folder that holds no run holds files that a run would write over or add to."""
    if holds_run(folder):
        return
    foreign = sorted(path.name for path in folder.glob("*") if OUTPUTS.fullmatch(path.name))
    if (folder / SUMMARY_FILE).exists() and not {"command", "versions"} <= (
        read_json(folder / SUMMARY_FILE) or {}
    ).keys():
        foreign.append(SUMMARY_FILE)  # that of a stage without a folder of its own may be written again
    if foreign:
        raise UserError(
            f"run_dir={folder}: it holds {', '.join(foreign[:5])}, which no run has written, and a run would write "
            "files of the same names. Set run_dir=FOLDER, a new one."
        )


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings and inputs of a run by their dotted keys; `settings` stays out of the names."""
    return dict(leaf for part, node in settings.items() for leaf in leaves(node, "" if part == "settings" else part))


def write_summary(folder: Path, command: str, results: Mapping[str, Any], inputs: Mapping[str, str]) -> Path:
    """Write `summary.json`: what came out, what it was made from, and with which versions."""
    path = folder / SUMMARY_FILE
    write_json(
        path,
        {
            "command": command,
            "arguments": sys.argv[2:] if sys.argv[1:2] == [command] else sys.argv[1:],
            **results,
            "inputs": dict(inputs),
            "versions": {name: version(name) for name in LIBRARIES},
        },
    )
    return path


def write_summary_beside(
    folder: Path, command: str, results: Mapping[str, Any], inputs: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    """For a stage whose result lies in the cache already: a `summary.json` in the `run_dir` that the user named.

    That may hold this very run, stopped before its end, when another run made the same in the meantime.

    Raises:
        UserError: it holds another run, or a user's files.
    """
    refuse_foreign_files(folder)
    if read_settings(folder) not in (None, settings) and read_summary(folder, command) is None:
        raise UserError(f"run_dir={folder} holds another run. Set another run_dir for {command}.")
    print(f"summary     {write_summary(folder, command, results, inputs)}")


def is_first_process() -> bool:
    """Whether this is rank 0, told from what Lightning, torchrun and SLURM give a process, before it joins others."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank is not None), 0)) == 0


def read_summary(folder: Path, command: str) -> dict[str, Any] | None:
    """The summary of a finished run of this command; None where there is none."""
    summary = read_any(folder / SUMMARY_FILE)
    return summary if summary is not None and summary["command"] == command else None


def read_any(file: Path) -> dict[str, Any] | None:
    """The summary of whatever command in a file; None where there is none as `write_summary` writes them."""
    summary = read_json(file) or {}
    words = [summary.get("command"), summary.get("arguments")]
    are_words = isinstance(words[1], list) and all(isinstance(word, str) for word in [words[0], *words[1]])
    return summary if are_words and words[0] in COMMANDS else None
