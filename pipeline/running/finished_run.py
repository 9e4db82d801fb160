"""Finished runs: what their summaries say, the settings that they were made with, and the clusters they are about."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, read_assignments
from pipeline.running.condition import Condition
from pipeline.running.own_images import composed, kept_preset
from pipeline.running.run_files import denoiser_file
from pipeline.running.run_folder import SUMMARY_FILE, read_any, read_summary
from pipeline.settings.schemas import ScoreSettings, SharedSettings
from pipeline.settings.words import key_of, word
from storage.errors import UserError

NOT_SETTINGS = ("run_dir", "overwrite")  # of the run itself, and not of what it made
WITH_CLUSTERS = ("cluster", "assign", "score", "train")


def read_any_summary(folder: Path) -> dict[str, Any]:
    """The summary of whatever run lies in `folder`.

    Raises:
        UserError: there is no finished run, or its summary is damaged.
    """
    file = folder / SUMMARY_FILE
    if not file.is_file():
        raise UserError(
            f"run={folder}: there is no {file}. Give the folder of a finished run or study, "
            "such as runs/digits/study-granularity/TIME."
        )
    summary = read_any(file)
    if summary is None:
        raise UserError(f"{file}: damaged, or not a summary as cedm writes it. Make it again with the run's command.")
    return summary


def settings_of(folder: Path, summary: Mapping[str, Any], words: Sequence[str] = ()) -> SharedSettings:
    """The settings that a run was made with, but for those that `words` set now.

    Raises:
        UserError: its summary holds settings that there are not.
    """
    # The folder tells what its preset has set, also where the images are gone or are others now.
    preset = ["preset=auto"] if kept_preset(str(folder)) else []
    instead = {*NOT_SETTINGS, *map(key_of, (*words, *preset))}
    before = [text for text in summary["arguments"] if not text.startswith("-") and key_of(text) not in instead]
    before += [text for text in preset if "preset" not in map(key_of, words)]
    return composed(summary["command"], [*before, word("run_dir", folder), *words], origin=str(folder / SUMMARY_FILE))


def training_behind(path: Path) -> SharedSettings | None:
    """The settings of the training that a model, or images of `cedm generate`, come from; None where no run tells."""
    folder = path if (path / SUMMARY_FILE).is_file() else path.parent
    with suppress(UserError):  # the model lies elsewhere now
        for command, model in (("generate", "ckpt"), ("average", "run")):
            if (summary := read_summary(folder, command)) is not None:
                folder = denoiser_file(getattr(settings_of(folder, summary), model), model).parent
    summary = read_summary(folder, "train")
    return None if summary is None else settings_of(folder, summary)


def clusters_of_run(
    folder: Path, summary: Mapping[str, Any], settings: SharedSettings, source: ImageSource
) -> PseudoLabels:
    """The clusters of the data set's images that a run made, scored or was trained on.

    Raises:
        UserError: it has none, several clusterings, or one of other images.
    """
    command, own = summary["command"], folder / "pseudo_labels.safetensors"
    if isinstance(settings, ScoreSettings):
        return read_assignments(settings.assignments, source, settings.num_clusters, settings.noise)
    if command in ("cluster", "assign") and own.is_file():
        return read_assignments(str(own), source)
    if command in ("cluster", "train"):
        labels = Condition.of(settings).pseudo_labels(source)  # from the cache, and those of these settings
        if labels is not None:
            return labels
    commands = ", ".join(WITH_CLUSTERS)
    raise UserError(f"run={folder}: a run of `{command}` without clusters. Give the folder of a run of {commands}.")
