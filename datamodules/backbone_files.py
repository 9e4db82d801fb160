"""Where the files of pretrained backbones are: given, in a cache of this machine, or downloaded."""

import json
import logging
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datamodules.artifacts import UserError, file_digest


def transformers_files(settings: Mapping[str, Any]) -> list[Path]:
    """Configuration, processor and weight files of a Hugging Face model, all of one folder, here or downloaded."""
    if settings["path"] is not None and not Path(settings["path"]).is_dir():
        raise UserError(f"backbone.path={settings['path']}: no such folder. Give one that `save_pretrained` wrote")
    files = [_model_file(settings, name) for name in ("config.json", "preprocessor_config.json")]
    try:
        return [*files, _model_file(settings, "model.safetensors")]
    except UserError:
        index = _find_model_file(settings, "model.safetensors.index.json")  # large models come in several files
        if index is None:
            raise
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [*files, index, *(_model_file(settings, shard) for shard in shards)]


def _model_file(settings: Mapping[str, Any], file_name: str) -> Path:
    path = _find_model_file(settings, file_name)
    if path is not None:
        return path
    if settings["path"] is not None:
        raise UserError(
            f"backbone.path={settings['path']}: holds no {file_name}. It should be what the `save_pretrained` of a "
            "model and of its image processor wrote (weights in safetensors)"
        )
    raise UserError(
        f"backbone={settings['name']}: {file_name} of {settings['model']} (revision {settings['revision']}) is neither "
        "in the Hugging Face cache nor could it be downloaded. With a network, check backbone.model and "
        "backbone.revision (it must hold safetensors). Without one, download the model elsewhere with "
        f"`hf download {settings['model']} --local-dir FOLDER`, copy the folder here and set backbone.path=FOLDER"
    )


def _find_model_file(settings: Mapping[str, Any], file_name: str) -> Path | None:
    from transformers.utils import cached_file

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries without a network; our message follows
    model, revision = str(settings["path"] or settings["model"]), settings["revision"]
    for local_files_only in (True, False):
        try:
            found = cached_file(model, file_name, revision=revision, local_files_only=local_files_only)
        except (OSError, ValueError):  # what the library raises over a missing file, model, revision or network
            continue
        if found is not None:
            return Path(found)
    return None


def inception_weights(settings: Mapping[str, Any], cache_dir: str | Path | None = None) -> Path:
    """The weights file of torch-fidelity's Inception-v3: given, in torch's hub cache, or downloaded there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    published_name = URL_INCEPTION_V3.rsplit("/", 1)[1]
    if settings["path"] is not None:
        weights = Path(settings["path"])
        weights = weights / published_name if weights.is_dir() else weights
        if not weights.is_file():
            raise UserError(f"backbone.path={weights}: no such file. Download {URL_INCEPTION_V3} and give its path")
    else:
        weights = Path(torch.hub.get_dir()) / "checkpoints" / published_name
        if not weights.is_file():
            _download(URL_INCEPTION_V3, weights)
    if weights.name == published_name:
        _check_published_digest(weights, cache_dir)
    return weights


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"backbone=inception: its weights are not at {path} and cannot be downloaded ({error}). "
            f"Download {url} elsewhere, copy it here and set backbone.path=FILE"
        ) from error


def _check_published_digest(weights: Path, cache_dir: str | Path | None) -> None:
    """torch-fidelity writes the first digits of the SHA-256 into the file's name: NAME-6726825d.pth."""
    expected = weights.stem.rsplit("-", 1)[1]
    digest = file_digest(weights, cache_dir)
    if not digest.startswith(expected):
        raise UserError(
            f"{weights}: its SHA-256 begins with {digest[: len(expected)]}; expected {expected}. The file is damaged "
            "or not what its name says: delete it and download it again"
        )
