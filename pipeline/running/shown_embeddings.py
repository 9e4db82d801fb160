"""The embeddings that pictures of clusters show: a user's own, or those in the cache."""

from pathlib import Path

from datamodules.embeddings.map import MappedEmbeddings
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.assignment_files import read_embeddings
from pipeline.running.condition import Condition
from pipeline.settings.schemas import ScoreSettings, SharedSettings
from storage.digests import file_digest
from storage.errors import UserError
from storage.fingerprints import fingerprint


def shown_embeddings(settings: SharedSettings, source: ImageSource) -> MappedEmbeddings | None:
    """Those of `embeddings=`, else the data set's in the cache; None where there are none."""
    if not isinstance(settings, ScoreSettings) or settings.embeddings is None:
        return Condition.of(settings).mapped(source, settings.map_images)
    path, key = file_and_key("embeddings", settings.embeddings)
    values = read_embeddings(path, key)
    if len(values) != len(source):
        raise UserError(f"embeddings={settings.embeddings}: {len(values)} embeddings for {len(source)} images.")
    identity = fingerprint([file_digest(path), key])
    return MappedEmbeddings(values, identity, source.name, settings.cache_dir, settings.map_images)


def file_and_key(setting: str, value: str) -> tuple[Path, str]:
    """The file and the key of `FILE::key`; a `UserError` that names the setting where there is no such file."""
    name, _, key = value.partition("::")
    if not Path(name).is_file():
        raise UserError(f"{setting}={value}: no such file. Give FILE or FILE::key.")
    return Path(name), key
