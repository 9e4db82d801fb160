"""Where the files of pretrained backbones are: given, in a cache of this machine, or downloaded."""

import json
import logging
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from storage.digests import file_digest
from storage.errors import UserError

HUB_TIMEOUT = 10  # seconds to wait for the hub's first answer


def model_files(
    settings: Mapping[str, Any], repository: str, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> list[Path]:
    """The files `names` and the safetensors weights of a model, all of one folder: here, or from the hub.

    `settings` are those of a backbone: `path`, a folder that has the files; else `revision` of the hub's `repository`.
    `optional` files are among them where they lie there already: what reads the folder would see them too.
    """
    folder = settings["path"]
    if folder is not None and not Path(folder).is_dir():
        raise UserError(
            f"backbone.path={folder}: no such folder. Give one that holds {', '.join(names)} and the weights"
        )
    files = [_model_file(settings, repository, name) for name in names]
    missing = [name for name, path in zip(names, files, strict=True) if path is None]
    if missing:
        raise UserError(
            f"{_place(settings, repository)}: holds no {' and no '.join(missing)}. It should be what the "
            "`save_pretrained` of a model and of its image processor wrote (or timm's `save_for_hf`)"
        )
    files += [_local_file(settings, repository, name) for name in optional]
    return [path for path in files if path is not None] + _weight_files(settings, repository)


def _weight_files(settings: Mapping[str, Any], repository: str) -> list[Path]:
    index: Path | None = None
    for find in (_local_file, _model_file):
        whole = find(settings, repository, "model.safetensors")
        if whole is not None:
            return [whole]
        index = find(settings, repository, "model.safetensors.index.json")  # large models come in several files
        if index is not None:
            break
    if index is None:
        source = settings["path"] or repository
        raise UserError(
            f"{_place(settings, repository)}: holds no weights in safetensors (model.safetensors). Pickled weights "
            "(pytorch_model.bin, *.pth) are refused: reading them can run code. Convert them once, where transformers "
            'reads them as plain tensors: python -c "from transformers import AutoModel, AutoImageProcessor; '
            f"[c.from_pretrained('{source}').save_pretrained('FOLDER') for c in (AutoModel, AutoImageProcessor)]\" "
            "and type backbone.path=FOLDER; or give a backbone.revision that holds safetensors"
        )
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    paths = {shard: _model_file(settings, repository, shard) for shard in shards}
    missing = [shard for shard, path in paths.items() if path is None]
    if missing:
        raise UserError(f"{_place(settings, repository)}: holds no {missing[0]}, which {index.name} names")
    return [index, *(path for path in paths.values() if path is not None)]


def _place(settings: Mapping[str, Any], repository: str) -> str:
    if settings["path"] is not None:
        return f"backbone.path={settings['path']}"
    return f"backbone={settings['name']}: {repository} (revision {settings['revision']})"


def _model_file(settings: Mapping[str, Any], repository: str, name: str) -> Path | None:
    """One file of the folder or of the hub's repository; None where it has no such file."""
    found = _local_file(settings, repository, name)
    if found is not None or settings["path"] is not None:
        return found
    return _download_model_file(settings, repository, name)


def _local_file(settings: Mapping[str, Any], repository: str, name: str) -> Path | None:
    """One file of the folder or of the hub's cache on this machine; None where there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if settings["path"] is not None:
        path = Path(settings["path"]) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(repository, name, revision=settings["revision"], local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise _unknown(settings, repository) from error


def _download_model_file(settings: Mapping[str, Any], repository: str, name: str) -> Path | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our message follows
    revision = settings["revision"]
    try:
        # Asked once and without the library's retries: without a network the user hears of it at once.
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=HUB_TIMEOUT)
        return Path(hf_hub_download(repository, name, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise UserError(
            f"backbone={settings['name']}: {repository} is gated, its owners give access on request. Ask for it at "
            f"https://huggingface.co/{repository} (signed in), make a token with read access at "
            "https://huggingface.co/settings/tokens, type `hf auth login`, and then the same command again. "
            "Where the files lie in a folder already, type backbone.path=FOLDER"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _unknown(settings, repository) from error
    except Exception as error:  # no network, a proxy, a server's failure, offline mode: each client has its own kinds
        raise UserError(
            f"backbone={settings['name']}: {name} of {repository} (revision {revision}) is neither in the Hugging "
            f"Face cache nor can it be downloaded ({type(error).__name__}: {error}). Without a network, download the "
            f"model elsewhere with `hf download {repository} --revision {revision} --local-dir FOLDER`, copy the "
            "folder here and type backbone.path=FOLDER"
        ) from error


def _unknown(settings: Mapping[str, Any], repository: str) -> UserError:
    return UserError(
        f"backbone={settings['name']}: the Hugging Face hub knows no {repository} with revision {settings['revision']} "
        "(or it is private). Check backbone.model and backbone.revision"
    )


def checkpoint_file(settings: Mapping[str, Any]) -> Path:
    """An author's checkpoint: `path`, or `url` in torch's hub cache, downloaded there where it is missing."""
    if settings["path"] is not None:
        if not Path(settings["path"]).is_file():
            raise UserError(
                f"backbone.path={settings['path']}: no such file. Download {settings['url']} and give its path"
            )
        return Path(settings["path"])
    # Authors call their files checkpoint.pth, all of them: ours has the backbone's name.
    weights = Path(torch.hub.get_dir()) / "checkpoints" / f"{settings['name']}-{settings['url'].rsplit('/', 1)[1]}"
    if not weights.is_file():
        _download(settings["name"], settings["url"], weights)
    return weights


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
            _download("inception", URL_INCEPTION_V3, weights)
    if weights.name == published_name:
        _check_published_digest(weights, cache_dir)
    return weights


def _download(name: str, url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"backbone={name}: its weights are not at {path} and cannot be downloaded ({error}). "
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
