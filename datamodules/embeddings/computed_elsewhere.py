"""Embeddings of a file in the places of a backbone's, and of a data set that has no images."""

from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Self

import torch

from datamodules.backbones.backbone_base import Backbone, Size
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.embeddings.embedding_files import read_embedding_file
from datamodules.embeddings.embeddings import KIND, Embeddings, described, embeddings_path, load_embeddings
from datamodules.images.arrays import numbered_ids
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.decoding import UnusableImageError
from datamodules.images.label_values import labels_from_values
from datamodules.images.reader import Labels, Reader
from datamodules.images.sources import ImageSource
from datamodules.plain_files import file_and_key
from storage.artifacts import make_once
from storage.digests import file_digest, file_state
from storage.errors import DamagedArtifactError, MissingArtifactError, UserError


class EmbeddingsOfFile(Backbone):
    """Stands for the network that made the embeddings of a file: it has an identity, the file's, and nothing else."""

    @classmethod
    def identify(cls, settings: BackboneSettings, size: Size, cache_dir: str | Path | None) -> dict[str, Any]:
        path, key = file_and_key("embeddings", str(settings.path))
        return {"kind": settings.kind, "file": file_digest(path, cache_dir), "key": key}

    @classmethod
    def build(cls, settings: BackboneSettings, identity: dict[str, Any]) -> Self:
        raise UserError(
            f"embeddings={settings.path}: the network that made them is not known here, so no other images can be "
            "embedded. Choose a backbone for that."
        )


class RowsWithoutImages(Reader):
    """The rows of a file of embeddings (`dataset=embeddings`), by their ids, in the place of images."""

    has_images = False

    def __init__(self, settings: DatasetSettings) -> None:
        self._specification = str(settings.path)
        self._path, self._key = file_and_key("embeddings", self._specification)
        count, ids, labels = _names_in(self._specification, self.state())
        super().__init__(settings.kind, labels)
        self.ids = numbered_ids(count) if ids is None else list(ids)

    def read(self, row: int) -> NoReturn:
        raise UnusableImageError("an embedding without its image")

    read_header = read

    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        return [file_digest(self._path, cache_dir), self._key, str(rows if len(rows) < len(self.ids) else "all")]

    def image_digests(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        return [self.ids[row] for row in rows]

    def state(self) -> str:
        return file_state(self._path)


@cache  # a grid of clusterings asks once for each
def _names_in(specification: str, state: str) -> tuple[int, list[str] | None, Labels | None]:
    """Number of rows, ids and labels of a file; `state` changes when the file may have changed."""
    file = read_embedding_file(specification)
    labels = None if file.labels is None else labels_from_values(file.labels, file.name)
    return len(file.values), file.ids, labels


def import_embeddings(
    specification: str, source: ImageSource, identity: dict[str, Any], cache_dir: str | Path
) -> Embeddings:
    """The embeddings of a file in the order of the images, from the cache or read now and kept there.

    Raises:
        UserError: they cannot be read, or do not fit the images.
    """

    whole = source.undivided

    def make() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        file = read_embedding_file(specification)
        values = file.values[file.rows_of(whole)]
        variance, mean = torch.var_mean(values.double(), dim=0, correction=0)
        tensors = {"values": values, "mean": mean.float(), "std": variance.sqrt().float()}
        notes = [file.note, "in the order of the images" if file.ids is None else "by id"]
        if len(file.values) > len(values):
            notes.append(f"{len(file.values) - len(values):,} of other images left out")
        settings = {"taken": ", ".join(filter(None, notes))}
        return tensors, {"source": described(whole), "backbone": identity, "settings": settings}

    try:
        return load_embeddings(source, identity, cache_dir)
    except (MissingArtifactError, DamagedArtifactError):
        make_once(embeddings_path(cache_dir, whole, identity), KIND, make)
        return load_embeddings(source, identity, cache_dir)
