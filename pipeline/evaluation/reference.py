"""Feature extractors, and what they say of the data set's own images: computed once, kept in the cache."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from datamodules.backbones.backbone_base import Backbone
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import backbone_identity, build_backbone
from datamodules.backbones.transformers_backbone import TransformersBackbone
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.image_store import ImageStore
from datamodules.images.sources import ImageSource
from metrics.frechet import KIND as STATISTICS
from metrics.frechet import Statistics
from pipeline.evaluation.features import Features, extract
from pipeline.settings.compose import CONFIGS
from storage.artifacts import entry_path, read_artifact, write_artifact
from storage.errors import DamagedArtifactError, MissingArtifactError, UserError
from storage.files import lock_of, set_aside
from storage.fingerprints import fingerprint

FOLDERS = {"statistics": STATISTICS, "features": "features"}  # of the cache, and the kind of their artifacts
WHOLE_IMAGE = {"crop": "none"}  # in the identity of an extractor: its embeddings may be those of cropped images


@dataclass(frozen=True)
class Extractors:
    """Finds feature extractors by their names, and what they say of a data set. They see whole images.

    The processors of some models (DINOv2's is one) cut off an eighth of the image all around after resizing, which is
    meant for photographs with their object in the middle. A distance has to see the borders too, and FDD is defined on
    images that are resized whole (arXiv 2306.04675).
    """

    own: BackboneSettings  # of the run
    weights: Mapping[str, Any]  # local files of the others' weights (`evaluation.weights`)
    dataset: DatasetSettings  # the size of the images that they see
    cache_dir: str  # where features, statistics and checksums are kept

    def settings(self, name: str, asked_by: str = "evaluation.backbone") -> BackboneSettings:
        """The settings of the backbone `name`, with its weights from `evaluation.weights` where they are given there.

        Raises:
            UserError: there is no such backbone; the message names the setting that it is `asked_by`.
        """
        path = CONFIGS / "backbone" / f"{name}.yaml"
        if not path.exists():
            names = ", ".join(sorted(option.stem for option in path.parent.glob("*.yaml")))
            raise UserError(f"{asked_by}={name}: there is no such backbone. There are: {names}.")
        settings = self.own
        if name != self.own.name:
            settings = BackboneSettings(**OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
        weights = self.weights.get(name)
        return settings if weights is None else replace(settings, path=str(weights))

    def identity(self, name: str) -> dict[str, Any]:
        """What its features depend on, checksums of the weights among it, without building it.

        Raises:
            UserError: its weights cannot be had; the message says where to get them and what to set.
        """
        identity = backbone_identity(*self._arguments(name))
        return {**identity, **WHOLE_IMAGE} if identity["kind"] == "transformers" else identity

    def build(self, name: str) -> Backbone:
        """The extractor, on the CPU; raises as above."""
        backbone = build_backbone(*self._arguments(name))
        if isinstance(backbone, TransformersBackbone):
            processor = backbone.processor
            if getattr(processor, "do_center_crop", False):
                processor.do_center_crop, processor.size = False, processor.crop_size
            backbone.identity = {**backbone.identity, **WHOLE_IMAGE}
        return backbone

    def _arguments(self, name: str) -> tuple[BackboneSettings, int, int, str, str, str]:
        """Those of `build_backbone`; the last but one is the setting that names the file of the weights."""
        setting = f"{'' if name in self.weights else '+'}evaluation.weights.{name}"
        setting = "backbone.path" if name == self.own.name else setting
        dataset = self.dataset
        return self.settings(name), dataset.resolution, dataset.channels, self.cache_dir, setting, dataset.fit

    def build_or_own(self, name: str, say: Callable[[str], None]) -> Backbone:
        """The extractor, or the run's own backbone where its weights cannot be had, which `say` tells the user."""
        try:
            return self.build(name)
        except UserError as error:
            own = self.own.name
            if name == own:
                raise
            say(f"Note: {error}\nDistances are taken on the run's own backbone, {own}, instead.")
            return self.build(own)

    def reference(
        self,
        source: ImageSource,
        open_store: Callable[[], ImageStore],
        extractors: Sequence[Backbone],
        keep: Collection[str],
        batch_size: int,
        device: torch.device,
    ) -> dict[str, Features]:
        """Features of the whole data set by every extractor, from the cache or computed into it.

        The processes of a group compute them together, each on its `device`, and must all come here. Processes that do
        not know of each other compute them once: the others wait.

        Args:
            open_store: gives the images of `source`; called where something has to be computed.
            keep: names of the extractors whose features of each image are needed, which rank 0 alone gets.

        Raises:
            UserError: this rank has other extractors than rank 0, as where it can't read their weights: sums would
                hang.
        """
        rank = dist.get_rank() if dist.is_initialized() else 0
        own = [extractor.identity for extractor in extractors]
        if from_rank_0(own) != own:
            raise UserError(
                f"rank {rank} has another feature extractor than rank 0. Place the extractor's weights where every "
                "rank can read them, or set evaluation.backbone=pixels."
            )
        folder = Path(self.cache_dir) / "statistics"
        with suppress(OSError):  # where it cannot be written, all may be there already
            folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Features | None] = {}
        with lock_of(folder / source.name) if rank == 0 and folder.is_dir() else nullcontext():
            if rank == 0:
                found = {e.name: self.read(source, e, with_rows=e.name in keep) for e in extractors}
            missing = from_rank_0([name for name, features in found.items() if features is None])
            wanted = [e for e in extractors if e.name in missing]
            if wanted:
                name = f"{source.name} ({', '.join(missing)})"
                fresh = extract(open_store(), wanted, keep, batch_size, device, name)
                for extractor in wanted if rank == 0 else ():
                    self.write(source, extractor, fresh[extractor.name])
                found |= fresh
        known = {name: features for name, features in found.items() if features is not None}
        statistics = from_rank_0({name: features.statistics for name, features in known.items()})
        return known if rank == 0 else {name: Features(of_one) for name, of_one in statistics.items()}

    def read(self, source: ImageSource, extractor: Backbone, with_rows: bool) -> Features | None:
        """What the cache holds of a data set; None where something is missing or damaged."""
        try:
            statistics = Statistics.load(self.cached("statistics", source, extractor))
            path = self.cached("features", source, extractor)
            rows = read_artifact(path, "features").tensors["rows"] if with_rows else None
            return Features(statistics, rows)
        except MissingArtifactError:
            return None
        except DamagedArtifactError as error:
            with suppress(OSError):  # in another user's cache
                print(f"{error} Set aside as {set_aside(error.path).name}; computed again.", file=sys.stderr)
            return None

    def write(self, source: ImageSource, extractor: Backbone, features: Features) -> None:
        """Keep what was computed."""
        meta = {"made_from": self.description(source, extractor)}
        replace(features.statistics, meta=meta).save(self.cached("statistics", source, extractor))
        if features.rows is not None:
            write_artifact(self.cached("features", source, extractor), "features", {"rows": features.rows}, meta)

    def cached(self, folder: str, source: ImageSource, extractor: Backbone) -> Path:
        """Where the statistics (or the features themselves) of a data set are kept."""
        made_from = self.description(source, extractor)
        path = Path(self.cache_dir) / folder / f"{source.name}-{extractor.name}-{fingerprint(made_from)}.safetensors"
        return entry_path(path, FOLDERS[folder], {"made_from": made_from})

    def description(self, source: ImageSource, extractor: Backbone) -> dict[str, Any]:
        """All that decides the features of a data set."""
        return {
            "source": source.fingerprint,
            "resolution": self.dataset.resolution,
            "channels": self.dataset.channels,
            "extractor": extractor.identity,
            **({} if self.dataset.fit == "crop" else {"fit": self.dataset.fit}),
        }


def from_rank_0(value: Any) -> Any:
    """What rank 0 of the process group has; the value itself where there is no group."""
    held = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(held)
    return held[0]
