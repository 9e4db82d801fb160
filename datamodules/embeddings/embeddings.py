"""Embeddings: one feature vector per image, in data-set order, with the statistics that standardise them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.backbones.backbone_base import Backbone
from datamodules.embeddings.shards import embed_shards, join_shards, missing_shards, remove_shards, shards_folder
from datamodules.images.sources import ImageSource
from storage.artifacts import entry_path, make_once, read_artifact
from storage.files import make_folder
from storage.fingerprints import file_stem, fingerprint
from storage.standardised import standardised

KIND = "embeddings"


@dataclass(frozen=True)
class Embeddings:
    """Feature vectors of a data set.

    Attributes:
        values: float32 [N, D], as the backbone gives them, in data-set order.
        mean, std: float32 [D], over the data set (`std` is that of the population: divided by N).
        meta: `source` (name, kind, fingerprint, number of images), `backbone` (its identity) and `settings`.
    """

    values: Tensor
    mean: Tensor
    std: Tensor
    meta: dict[str, Any]

    @classmethod
    def of(cls, values: Tensor, meta: dict[str, Any] | None = None) -> "Embeddings":
        """Feature vectors [N, D] with their mean and standard deviation.

        Examples:
            >>> Embeddings.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).std
            tensor([1., 0.])
        """
        std, mean = torch.std_mean(values.double(), dim=0, correction=0)
        return cls(values, mean.float(), std.float(), meta or {})

    def scaling(self, standardise: bool) -> tuple[Tensor, Tensor]:
        """What clustering heads subtract from an embedding, and divide it by, [D] each: 0 and 1 for raw embeddings."""
        return (self.mean, self.std) if standardise else (torch.zeros_like(self.mean), torch.ones_like(self.std))

    def head_inputs(self, standardise: bool) -> Tensor:
        """What clustering heads read, float32 [N, D]: `values`, or (values − mean) / std, 0 where nothing changes."""
        return standardised(self.values, self.mean, self.std) if standardise else self.values

    @property
    def fingerprint(self) -> str:
        """Known by the images and the backbone; 16 hex digits."""
        return _key(self.meta["source"]["fingerprint"], self.meta["backbone"])


def embeddings_path(cache_dir: str | Path, source: ImageSource, identity: dict[str, Any]) -> Path:
    """Where the embeddings of this source by the backbone of this identity are kept."""
    stem = file_stem(source.name, identity["kind"], _key(source.fingerprint, identity))
    made_from = {"source": {"fingerprint": source.fingerprint, "num_images": len(source)}, "backbone": identity}
    return entry_path(Path(cache_dir) / "embeddings" / f"{stem}.safetensors", KIND, made_from)


def load_embeddings(source: ImageSource, identity: dict[str, Any], cache_dir: str | Path) -> Embeddings:
    """Reads embeddings that were made before; of a part of a divided data set, out of those of the whole one.

    `mean` and `std` are over the images of `source` alone, whose fingerprint these embeddings go by.
    """
    whole = source.undivided
    artifact = read_artifact(embeddings_path(cache_dir, whole, identity), KIND)
    if source is whole:
        return Embeddings(**artifact.tensors, meta=artifact.meta)
    values = artifact.tensors["values"][source.places]
    return Embeddings.of(values, {**artifact.meta, "source": described(source)})


def make_embeddings(
    source: ImageSource,
    backbone: Backbone,
    cache_dir: str | Path,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "32-true",
) -> Embeddings:
    """Embeddings of every image, from the cache or computed now in this process and kept there: see `embed_shards`.

    Computed again after an interruption, they go on from the last whole shard.
    """

    def fill(folder: Path) -> None:
        missing = missing_shards(folder, len(source))
        with embedding_bar(source, missing) as bar:
            embed_shards(source, backbone.to(device), folder, missing, batch_size, num_workers, precision, bar.update)

    return collect_embeddings(source, backbone.identity, cache_dir, fill, {"precision": precision})


def collect_embeddings(
    source: ImageSource,
    identity: dict[str, Any],
    cache_dir: str | Path,
    fill: Callable[[Path], None],
    settings: dict[str, Any],
) -> Embeddings:
    """Embeddings from the cache; where there are none, `fill(folder)` writes the shards that `folder` lacks.

    Until they are joined, memory does not grow with the data set; what is returned is [N, D] in memory.
    `settings`, `precision` among them, are noted in the artifact.
    """
    path = embeddings_path(cache_dir, source, identity)
    folder = shards_folder(path.with_suffix(f".{settings['precision']}.shards"), source, identity)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        make_folder(folder)
        fill(folder)
        made_from = {"source": described(source), "backbone": identity, "settings": settings}
        return join_shards(folder, len(source)), made_from

    artifact = make_once(path, KIND, make)
    remove_shards(folder, len(source))
    return Embeddings(**artifact.tensors, meta=artifact.meta)


def embedding_bar(source: ImageSource, missing: Sequence[range]) -> tqdm:
    """A progress bar in images, with their rate, that begins where an earlier run stopped."""
    done = len(source) - sum(map(len, missing))
    what = f"embedding {source.name}"
    return tqdm(total=len(source), initial=done, desc=what, unit=" images", dynamic_ncols=True)


def described(source: ImageSource) -> dict[str, Any]:
    """What embeddings say of their images."""
    return {name: getattr(source, name) for name in ("name", "kind", "fingerprint")} | {"num_images": len(source)}


def _key(source_fingerprint: str, identity: dict[str, Any]) -> str:
    return fingerprint({"source": source_fingerprint, "backbone": identity})
