"""The images that an evaluation is about: files as they lie there, or made by a model while they are measured."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig, ListConfig
from PIL import Image
from torch import Tensor

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.images import to_uint8
from datamodules.images.sources import open_source
from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.commands.generate import check_guidance, labels_of
from pipeline.evaluation.sampling import place, spelled, typed_sampler
from pipeline.running.run_folder import read_settings, read_summary
from storage.cores import available_cores
from storage.digests import file_digest
from storage.errors import UserError

GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
MODEL_FILE = "denoiser.safetensors"


class GeneratedSet(Protocol):
    """One set of generated images at the data set's resolution.

    Attributes:
        description: where they come from, as JSON can hold it: part of the protocol of every number.
        fingerprint: changes with any image.
    """

    description: dict[str, Any]
    fingerprint: str

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor) -> Tensor:
        """Images `indices` [B] as uint8 [B, C, R, R]."""

    def name(self, index: int) -> str:
        """What to call an image: its file, or its seed."""

    def to(self, device: torch.device) -> None:
        """Where the images are made, if they are made."""


class GeneratedFiles:
    """Images in a folder or a ZIP. None is resized: a size that the data set has not is refused.

    Raises:
        UserError: there are no images, or (also from `gather`) one is damaged or of another size or kind.
    """

    def __init__(self, path: Path, cfg: DictConfig) -> None:
        kind = "folder" if path.is_dir() else "array" if path.suffix == ".npy" else "zip"
        settings = DatasetSettings(kind=kind, name="generated", path=str(path))
        self.source = open_source(settings, cfg.cache_dir, setting="generated")
        self.path, self.resolution, self.channels = path, cfg.dataset.resolution, cfg.dataset.channels
        self.dataset = cfg.dataset.name
        self._read(0)  # tell of another size now
        self.fingerprint = self.source.fingerprint
        self.description = {
            "from": "files",
            "path": str(path),
            "fingerprint": self.fingerprint,
            "num_images": len(self),
            "resized": "no",
            **made_by(path),
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

    def _read(self, index: int) -> Tensor:
        image = self.source.image(index)
        if isinstance(image, Image.Image):
            width, height, channels = image.width, image.height, 1 if image.mode in GREY_MODES else 3
        else:  # [H, W, C]
            height, width, channels = image.shape
        if (width, height, channels) != (self.resolution, self.resolution, self.channels):
            raise UserError(
                f"generated={self.path}: {self.source.ids[index]!r} has {width}×{height} pixels and "
                f"{channels} channels; dataset={self.dataset} is measured at {self.resolution}×{self.resolution} and "
                f"{self.channels}. Choose the data set that the images are to resemble, or its dataset.resolution= and "
                "dataset.channels=. Generated images are never resized here: that alone would change the distance."
            )
        return to_uint8(image, self.resolution, self.channels)


class GeneratedByModel:
    """Images that a denoiser makes when they are asked for: image i comes from seed `first_seed` + i.

    Raises:
        UserError: the model makes images of another size, or cannot be asked for these labels.
    """

    def __init__(self, path: Path, cfg: DictConfig, first_seed: int) -> None:
        self.denoiser, self.sampler = Denoiser.from_pretrained(path), typed_sampler(cfg)
        self.compiled = cfg.trainer.compile
        own = (self.denoiser.img_resolution, self.denoiser.img_channels)
        if own != (cfg.dataset.resolution, cfg.dataset.channels):
            raise UserError(
                f"generated={path}: the model makes images of {own[0]}×{own[0]} pixels and {own[1]} channels; "
                f"dataset={cfg.dataset.name} is measured at {cfg.dataset.resolution}×{cfg.dataset.resolution} and "
                f"{cfg.dataset.channels}. Choose the data set that it was trained on: "
                f"dataset={self.denoiser.meta.get('dataset', 'NAME')}."
            )
        check_guidance(self.sampler, self.denoiser, path)
        self.seeds = first_seed + torch.arange(cfg.num)
        self.labels = labels_of(cfg, self.denoiser, self.seeds)
        self.fingerprint = file_digest(path, cfg.cache_dir)
        self.description = {
            "from": "model",
            "path": str(path),
            "sha256": self.fingerprint,
            "num_images": cfg.num,
            "seeds": f"{first_seed} to {first_seed + cfg.num - 1}",
            "labels": describe_labels(cfg.clusters, self.denoiser),
            "steps": self.sampler.num_steps(self.denoiser.img_resolution),
            "sampler": spelled(cfg.sampler),
            "weights": "EMA",
            "trained_on": self.denoiser.meta.get("dataset"),
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

    def to(self, device: torch.device) -> None:
        place(self.denoiser, device, self.compiled)


def generated_sets(cfg: DictConfig) -> list[GeneratedSet]:
    """The sets of `generated=`: one for each entry of a list; of a model, `sets` with `num` images each.

    Raises:
        UserError: what is named is neither images nor a model, or does not fit the data set.
    """
    paths = [Path(str(path)) for path in cfg.generated] if isinstance(cfg.generated, ListConfig) else None
    if paths is None:
        path = resolve(Path(str(cfg.generated)))
        if path.suffix == ".safetensors":
            if not isinstance(cfg.num, int) or cfg.num < 2:
                raise UserError(f"num={cfg.num}: type a number of images, such as num=50000.")
            return [GeneratedByModel(path, cfg, cfg.first_seed + cfg.num * number) for number in range(cfg.sets)]
        paths = [path]
    if not paths:
        raise UserError("generated=[]: name at least one folder or ZIP of images.")
    if cfg.sets not in (1, len(paths)):
        raise UserError(
            f"sets={cfg.sets}: generated={cfg.generated} are images that exist. Name a folder or ZIP for each set, as "
            "generated=[FIRST,SECOND,THIRD], or a model that makes them."
        )
    resolved = [resolve(path) for path in paths]
    for path in resolved:
        if path.suffix == ".safetensors":
            raise UserError(f"generated={cfg.generated}: a list is of images. Give the model {path} alone, with sets=.")
    return [GeneratedFiles(path, cfg) for path in resolved]


def resolve(path: Path) -> Path:
    """The images or the model that a path means: a run folder stands for what was made in it.

    Raises:
        UserError: there is nothing of the kind.
    """
    if path.is_dir() and (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    if path.is_dir() and read_settings(path) is not None:  # a run folder
        for images in (path / "images.zip", path / "images.npy", path / "images"):
            if read_summary(path, "generate") is not None and images.exists():
                return images
        raise UserError(
            f"generated={path}: this run has neither a {MODEL_FILE} nor finished images. End it first "
            "(the same command goes on), or name another."
        )
    if runs := [child for child in path.glob("*/") if read_settings(child) is not None]:
        raise UserError(
            f"generated={path}: this folder holds runs. Name one of them, such as the newest: generated={max(runs)}."
        )
    if not path.exists():
        raise UserError(
            f"generated={path}: no such file or folder. Give a folder or ZIP of images, a {MODEL_FILE}, or the folder "
            "of a run of `cedm train` or `cedm generate`."
        )
    return path


def made_by(path: Path) -> dict[str, Any]:
    """What `cedm generate` wrote beside its images of how it made them: steps, sampler, labels, model."""
    summary = read_summary(path.parent, "generate")
    if summary is None:
        return {}
    settings = (read_settings(path.parent) or {}).get("settings", {})
    return {
        "made_by": {
            **{key: summary.get(key) for key in ("steps", "sampler", "nimg")},
            **{key: settings.get(key) for key in ("num", "first_seed", "seeds", "clusters", "keep")},
            "model_sha256": summary.get("inputs", {}).get("denoiser"),
            "head_sha256": summary.get("inputs", {}).get("head"),
        }
    }


def describe_labels(clusters: Any, denoiser: Denoiser) -> str:
    """The setting `clusters` in words, as it works out for this model."""
    if not denoiser.label_dim:
        return "none"
    if clusters == "frequencies" and "imported_from" in denoiser.meta:
        return "drawn uniformly, as a published file does not tell the classes' frequencies"
    if clusters == "frequencies":
        return "drawn from the clusters' frequencies"
    return "drawn uniformly" if clusters == "uniform" else f"clusters {clusters} in turn"
