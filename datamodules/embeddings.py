"""Embeddings: one feature vector per image, in data-set order, with the statistics that standardise them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.artifacts import Artifact, UserError, file_stem, fingerprint, make_once, read_artifact
from datamodules.backbones import Backbone
from datamodules.images import decode
from datamodules.sources import ImageSource

KIND = "embeddings"
MINIMAL_STD = 1e-6  # dimensions that never change are divided by this instead of by zero


@dataclass(frozen=True)
class Embeddings:
    """Feature vectors of a data set.

    Attributes:
        values: float32 [N, D], as the backbone gives them, in data-set order.
        mean, std: float32 [D], over the data set (`std` is that of the population: divided by N).
        meta: `source` (name, kind, fingerprint, number of images) and `backbone` (its identity).
    """

    values: Tensor
    mean: Tensor
    std: Tensor
    meta: dict[str, Any]

    def standardised(self) -> Tensor:
        """(values − mean) / max(std, 1e-6), float32 [N, D]: what TEMI's heads are trained on."""
        return (self.values - self.mean) / self.std.clamp(min=MINIMAL_STD)

    @property
    def fingerprint(self) -> str:
        """Known by the images and the backbone; 16 hex digits."""
        return _key(self.meta["source"]["fingerprint"], self.meta["backbone"])


def embeddings_path(cache_dir: str | Path, source: ImageSource, identity: dict[str, Any]) -> Path:
    """Where the embeddings of this source by the backbone of this identity are kept."""
    stem = file_stem(source.name, identity["kind"], _key(source.fingerprint, identity))
    return Path(cache_dir) / "embeddings" / f"{stem}.safetensors"


def load_embeddings(source: ImageSource, identity: dict[str, Any], cache_dir: str | Path, remake: str) -> Embeddings:
    """Reads embeddings that were made before; `remake` is the command that makes them."""
    return _from_artifact(read_artifact(embeddings_path(cache_dir, source, identity), KIND, remake))


def make_embeddings(
    source: ImageSource,
    backbone: Backbone,
    cache_dir: str | Path,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Embeddings:
    """Embeddings of every image, from the cache or computed now and kept there.

    The backbone sees each image whole and at its own size, which its own processing then brings to the size it was
    trained with; only `pixels` takes the images of diffusion training. Raises `UserError` naming the image where one
    cannot be decoded or the backbone returns NaN or infinity for it.
    """

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        values = _embed(source, backbone.to(device), batch_size, num_workers, progress)
        in_double = values.double()  # sums over millions of images outgrow float32
        mean, std = in_double.mean(dim=0).float(), in_double.std(dim=0, correction=0).float()
        description = {
            "name": source.name,
            "kind": source.kind,
            "fingerprint": source.fingerprint,
            "num_images": len(source),
        }
        return {"values": values, "mean": mean, "std": std}, {"source": description, "backbone": backbone.identity}

    path = embeddings_path(cache_dir, source, backbone.identity)
    return _from_artifact(make_once(path, KIND, f"cedm embed dataset={source.name} backbone={backbone.name}", make))


class _DecodedImages(Dataset):
    """The images of a source as the backbone wants them: uint8 [C, H, W]."""

    def __init__(self, source: ImageSource, resolution: int | None, channels: int) -> None:
        self.source = source
        self.resolution = resolution
        self.channels = channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        return decode(self.source, index, self.resolution, self.channels)


def _embed(
    source: ImageSource, backbone: Backbone, batch_size: int, num_workers: int, progress: bool
) -> Tensor:  # [N, dim]
    images = _DecodedImages(source, backbone.resolution, backbone.channels)
    loader = DataLoader(images, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
    values = torch.empty(len(source), backbone.dim)  # [N, dim]
    start = 0
    with tqdm(total=len(source), desc=f"embedding {source.name}", unit=" images", disable=not progress) as bar:
        for batch in loader:
            features = backbone.extract_list(batch).cpu()  # [B, dim]
            finite = features.isfinite().all(dim=1)  # [B]
            if not finite.all():
                image_id = source.ids[start + int(finite.logical_not().nonzero()[0])]
                raise UserError(
                    f"{source.name}: backbone {backbone.name} returns NaN or infinity for image {image_id!r}"
                )
            values[start : start + len(batch)] = features
            start += len(batch)
            bar.update(len(batch))
    return values


def _key(source_fingerprint: str, identity: dict[str, Any]) -> str:
    return fingerprint({"source": source_fingerprint, "backbone": identity})


def _from_artifact(artifact: Artifact) -> Embeddings:
    return Embeddings(**artifact.tensors, meta=artifact.meta)
