"""The images that an evaluation is about: files as they lie there, or made by a model while they are measured."""

import re
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.images import to_uint8
from datamodules.images.reader import UNLABELLED
from datamodules.images.sources import open_source
from datamodules.pseudo_labels.cluster_names import read_cluster_names
from lightning_modules.diffusion.denoiser import CLUSTER_NAMES, Denoiser
from pipeline.evaluation.features import GeneratedSet
from pipeline.evaluation.guides import ModelCommandSettings, guide_of
from pipeline.evaluation.sampling import Sampler, check_guidance, describe_labels, labels_of
from pipeline.running.automatic import compiles
from pipeline.running.run_files import DENOISER
from pipeline.running.run_folder import read_settings, read_summary
from pipeline.running.trainer_settings import AUTO
from pipeline.settings.compile_cache import keep_compiled_in
from pipeline.settings.schemas import EvaluateCommandSettings
from storage.bounds import read_npy_header
from storage.cores import available_cores
from storage.digests import file_digest
from storage.errors import UserError
from storage.fingerprints import fingerprint

COMPILED_FROM_IMAGES = 10_000  # compiling takes as long as generating some thousand
GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
EXPECTED = (
    "Expected images in uint8, [N, H, W, C] or [N, H, W], 0 black and 255 white: numpy.save(FILE.npy, images) or "
    "numpy.savez(FILE.npz, images), which names them arr_0."
)
LOSSY = {  # formats, by Pillow's names, that lose detail or may, with the names of their files
    "JPEG": re.compile(r"(?i)\.(jpe?g?|jfif)$"),
    "JPEG2000": re.compile(r"(?i)\.(jp2|j2k)$"),
    "WEBP": re.compile(r"(?i)\.webp$"),
    "AVIF": re.compile(r"(?i)\.avif$"),
    "GIF": re.compile(r"(?i)\.gif$"),
}


class GeneratedFiles:
    """Images in a folder, a ZIP or an array. None is resized: a size that the data set has not is refused.

    Raises:
        UserError: there are no images, or (also from `gather`) one is damaged or of another size or kind.
    """

    def __init__(self, path: Path, settings: EvaluateCommandSettings) -> None:
        kind = "folder" if path.is_dir() else "array" if path.suffix in (".npy", ".npz") else "zip"
        key = image_array(path) if kind == "array" else None
        named = DatasetSettings(kind=kind, name="generated", path=str(path), split="all", labels="none", image_key=key)
        self.source = open_source(named, settings.cache_dir, setting="generated")
        self.path, self.dataset, self._named = path, settings.dataset, named
        self.lossy = {name for name in LOSSY if any(map(LOSSY[name].search, self.source.ids))}
        self._read(0)  # tell of another size now
        self.fingerprint = self.source.fingerprint
        self.made_by = made_by(path)

    @property
    def description(self) -> dict[str, Any]:
        return {
            "from": "files",
            "path": str(self.path),
            "fingerprint": self.fingerprint,
            "num_images": len(self),
            "resized": "no",
            "lossy": sorted(self.lossy),
            **self.made_by,
        }

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: Tensor) -> Tensor:
        with ThreadPoolExecutor(len(available_cores())) as threads:  # Pillow lets go of the interpreter lock
            return torch.stack(list(threads.map(self._read, indices.tolist())))

    def name(self, index: int) -> str:
        return self.source.ids[index]

    def to(self, device: torch.device) -> None:
        pass

    @cached_property
    def cluster_ids(self) -> list[int] | None:
        """As `cedm generate` writes them: in a `dataset.json` with the images, or in `labels.npy` beside an array."""
        beside = self.path.with_name("labels.npy")
        of_array = str(beside) if beside.is_file() else "none"
        labels = of_array if self._named.kind == "array" else None
        source = open_source(replace(self._named, labels=labels), setting="generated")
        if source.labels is None or not all(map(str.isdecimal, source.class_names or ())):
            return None
        names = [*map(int, source.class_names or ()), UNLABELLED]  # of ids with gaps; the last is that of -1
        return source.labels.tolist() if source.class_names is None else [names[place] for place in source.labels]

    def _read(self, index: int) -> Tensor:
        image = self.source.image(index)
        if isinstance(image, Image.Image):
            height, width, channels = image.height, image.width, 1 if image.mode in GREY_MODES else 3
            self.lossy.update({str(image.format)} & LOSSY.keys())  # whatever the file is called
        else:
            height, width, channels = image.shape
        refuse_size(f"generated={self.path}: {self.source.ids[index]!r}", (height, width, channels), self.dataset)
        return to_uint8(image, self.dataset.resolution, self.dataset.channels)


def image_array(path: Path) -> str | None:
    """Which array of an `.npz` holds the images: `arr_0`, as ADM's and DiT's scripts call it, or the only one.

    Raises:
        UserError: an `.npy` or `.npz` file holds no images, or none in uint8.
    """
    key = None
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                key = names[0] if len(names) == 1 else "arr_0"
                if key not in names:
                    hint = " Statistics are for reference=." if {"mu", "sigma"} <= {*names} else ""
                    raise UserError(f"generated={path}: holds {', '.join(names)}, but no arr_0. {EXPECTED}{hint}")
                with archive.open(f"{key}.npy") as file:
                    dtype = read_npy_header(file)[1]
        else:
            with path.open("rb") as file:
                dtype = read_npy_header(file)[1]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"generated={path}: cannot be read as an array ({error}). {EXPECTED}") from error
    if dtype != np.uint8:
        raise UserError(f"generated={path}: an array of {dtype}. {EXPECTED}")
    return key


def name_clusters(denoiser: Denoiser, file: str | None) -> None:
    """Let a model call its clusters as `file` says, where there is one; else they keep the names of its training."""
    if file is not None and denoiser.cluster_ids is not None:
        num_clusters = max(int(denoiser.cluster_ids.max()) + 1, denoiser.meta.get("num_clusters", 0))
        names = read_cluster_names(Path(file), num_clusters)
        denoiser.meta[CLUSTER_NAMES] = {str(cluster): name for cluster, name in names.items()}


class GeneratedByModel:
    """Images that a denoiser makes when they are asked for, each from its seed.

    Raises:
        UserError: the model cannot be asked for these labels, or for guidance.
    """

    def __init__(self, path: Path, seeds: Tensor, settings: ModelCommandSettings) -> None:
        self.denoiser, self.seeds = Denoiser.from_pretrained(path), seeds
        self.compile, self.batch_size = settings.trainer.compile, settings.batch_size
        self.cache_dir = settings.cache_dir
        name_clusters(self.denoiser, settings.cluster_names)
        check_guidance(settings.sampler, self.denoiser, path)
        model, guide = guide_of(settings, self.denoiser, path) or (None, None)
        self.sampler = Sampler(settings.sampler, model)
        self.labels = labels_of(settings, self.denoiser, path, seeds, settings.sampler.labels)
        self.inputs = {"denoiser": file_digest(path, settings.cache_dir)}
        if guide is not None:
            self.inputs["guide"] = file_digest(guide, settings.cache_dir)
        self.fingerprint = self.inputs["denoiser"] if guide is None else fingerprint(self.inputs)
        self.description = {
            "from": "model",
            "path": str(path),
            "sha256": self.inputs["denoiser"],
            **({} if guide is None else {"guide": {"path": str(guide), "sha256": self.inputs["guide"]}}),
            "num_images": len(seeds),
            "seeds": f"{int(seeds[0])} to {int(seeds[-1])}",
            "labels": describe_labels(settings.clusters, self.denoiser, settings.sampler.labels),
            "steps": settings.sampler.num_steps(self.denoiser.img_resolution),
            "sampler": self.sampler.protocol,
            "weights": "EMA",
            "trained_on": None if "imported_from" in self.denoiser.meta else self.denoiser.meta.get("dataset"),
            "trained_on_images": self.denoiser.meta.get("images"),
            "label_dropout": self.denoiser.meta.get("label_dropout"),
            "nimg": self.denoiser.meta.get("nimg"),
            "resized": "no",
        }

    def __len__(self) -> int:
        return len(self.seeds)

    def gather(self, indices: Tensor) -> Tensor:
        labels = None if self.labels is None else self.labels[indices]
        return self.sampler(self.denoiser, self.seeds[indices], labels)

    def name(self, index: int) -> str:
        return f"seed {int(self.seeds[index])}"

    @property
    def cluster_ids(self) -> list[int] | None:
        """The cluster id of each image, as in the pseudo-labels; None without clusters."""
        ids = self.denoiser.cluster_ids
        return None if self.labels is None or ids is None else ids[self.labels].tolist()

    def to(self, device: torch.device) -> None:
        """In the memory format of the training, cast, and compiled if asked or where it pays; the guide likewise."""
        compiled = self.compile
        if compiled == AUTO:
            parameters = sum(weight.numel() for weight in self.denoiser.parameters())
            many = len(self.seeds) >= COMPILED_FROM_IMAGES
            compiled = many and compiles(device.type, parameters, self.denoiser.img_resolution)
        if compiled:
            keep_compiled_in(self.cache_dir)
        for denoiser in filter(None, (self.denoiser, self.sampler.guide)):
            denoiser.to(device)
            if not isinstance(denoiser, Denoiser):
                continue
            if denoiser.meta.get("channels_last", True):
                denoiser.to(memory_format=torch.channels_last)
            self.sampler.cast(denoiser)
            if compiled:
                denoiser.compile(dynamic=False, filled_to=self.batch_size)


def refuse_size(what: str, shape: tuple[int, ...], dataset: DatasetSettings) -> None:
    """Raise a `UserError` where images of `shape` (H, W, C) are not of the data set's size."""
    size, expected = dataset.resolution, dataset.channels
    if shape != (size, size, expected):
        raise UserError(
            f"{what} has {shape[1]}×{shape[0]} pixels and {shape[2]} channels; dataset={dataset.name} is measured at "
            f"{size}×{size} and {expected}. Set dataset= to what the images are to resemble, or its "
            "dataset.resolution= and dataset.channels=. Generated images are never resized here: that alone would "
            "change the distance."
        )


def generated_sets(settings: EvaluateCommandSettings) -> Sequence[GeneratedSet]:
    """The sets of `generated=`: one for each entry of a list; of a model, `sets` with `num` images each.

    Raises:
        UserError: what is named is neither images nor a model, or does not fit the data set.
    """
    if not settings.paths:
        settings.refuse("generated", "name at least one folder or ZIP of images")
    paths = [resolve(path) for path in settings.paths]
    models = [path for path in paths if path.suffix == ".safetensors"]
    if models:
        if isinstance(settings.generated, list):
            settings.refuse("generated", f"a list is of images. Give the model {models[0]} alone, with sets=")
        seeds = settings.first_seed + torch.arange(settings.num * settings.sets)
        made = [GeneratedByModel(paths[0], of_one, settings) for of_one in seeds.split(settings.num)]
        size, channels = made[0].denoiser.img_resolution, made[0].denoiser.img_channels
        refuse_size(f"generated={paths[0]}", (size, size, channels), settings.dataset)
        return made
    if settings.sets not in (1, len(paths)):
        settings.refuse(
            "sets",
            f"generated={settings.generated} are images that exist. Name a folder or ZIP for each set, as "
            "generated=[FIRST,SECOND,THIRD], or a model that makes them",
        )
    return [GeneratedFiles(path, settings) for path in paths]


def resolve(path: Path) -> Path:
    """The images or the model that a path means: a run folder stands for what was made in it.

    Raises:
        UserError: there is nothing of the kind.
    """
    is_run = path.is_dir() and read_settings(path) is not None
    finished = is_run and read_summary(path, "generate") is not None
    for name in (DENOISER, *(("images.zip", "images.npy", "images") if finished else ())):
        if (path / name).exists():
            return path / name
    runs = [child for child in path.glob("*/") if read_settings(child) is not None]
    if path.exists() and not is_run and not runs:
        return path
    found = "this run is not finished" if is_run else "this folder holds runs" if runs else "no such file or folder"
    newest = f", such as {max(runs)}" if runs else ""
    raise UserError(
        f"generated={path}: {found}. Give a folder or ZIP of images, a {DENOISER}, or the folder of a finished run of "
        f"`cedm train` or `cedm generate`{newest}."
    )


def made_by(path: Path) -> dict[str, Any]:
    """What `cedm generate` wrote beside its images of how it made them: settings, steps, model."""
    summary = read_summary(path.parent, "generate")
    if summary is None:
        return {}
    settings = (read_settings(path.parent) or {}).get("settings", {})
    return {"made_by": {**settings, **{key: summary[key] for key in ("steps", "sampler", "nimg", "inputs")}}}
