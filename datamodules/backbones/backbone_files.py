"""Where the files of pretrained backbones are: given, in a cache of this machine, or downloaded."""

import json
import logging
import urllib.error
from pathlib import Path

import torch

from datamodules.backbones.backbone_settings import BackboneSettings
from storage.digests import file_digest
from storage.errors import UserError, WrongPathError

HUB_TIMEOUT = 10  # seconds to wait for the hub's first answer
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # large models come in several files


def model_files(
    settings: BackboneSettings, repository: str, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> list[Path]:
    """The files `names` and the safetensors weights of a model, all of one folder: `path`, or the hub's `repository`.

    `optional` files are among them where they lie there already: what reads the folder would see them too.
    """
    if settings.path is not None and not Path(settings.path).is_dir():
        raise WrongPathError(
            f"{settings.path}: no such folder. It should hold {', '.join(names)} and the weights.", "FOLDER"
        )
    found = {name: _model_file(settings, repository, name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise UserError(
            f"{_place(settings, repository)}: holds no {' and no '.join(missing)}. It should be what the "
            "`save_pretrained` of a model and of its image processor wrote (or timm's `save_for_hf`)."
        )
    files = [*found.values(), *(_local_file(settings, repository, name) for name in optional)]
    return [path for path in files if path is not None] + _weight_files(settings, repository)


def _weight_files(settings: BackboneSettings, repository: str) -> list[Path]:
    places = [(find, name) for find in (_local_file, _model_file) for name in (WEIGHTS, INDEX)]
    found = next((path for find, name in places if (path := find(settings, repository, name)) is not None), None)
    if found is None:
        raise WrongPathError(
            f"{_place(settings, repository)}: holds no weights in safetensors ({WEIGHTS}). Pickled weights "
            "(pytorch_model.bin, *.pth) are refused: reading them can run code. Convert them once, where transformers "
            'reads them as plain tensors: python -c "from transformers import AutoModel, AutoImageProcessor; '
            f"[c.from_pretrained('{settings.path or repository}').save_pretrained('FOLDER') for c in (AutoModel, "
            'AutoImageProcessor)]" (or set a backbone.revision that holds safetensors).',
            "FOLDER",
        )
    if found.name != INDEX:
        return [found]
    names = sorted(set(json.loads(found.read_text())["weight_map"].values()))
    shards = {name: _model_file(settings, repository, name) for name in names}
    missing = [name for name, path in shards.items() if path is None]
    if missing:
        raise UserError(f"{_place(settings, repository)}: holds no {missing[0]}, which {INDEX} names.")
    return [found, *(path for path in shards.values() if path is not None)]


def _place(settings: BackboneSettings, repository: str) -> str:
    if settings.path is not None:
        return settings.path
    return f"backbone={settings.name}: {repository} (revision {settings.revision})"


def _model_file(settings: BackboneSettings, repository: str, name: str) -> Path | None:
    """One file of the folder or of the hub's repository; None where it has no such file."""
    found = _local_file(settings, repository, name)
    return found if found is not None or settings.path is not None else _download(settings, repository, name)


def _local_file(settings: BackboneSettings, repository: str, name: str) -> Path | None:
    """One file of the folder or of the hub's cache on this machine; None where there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if settings.path is not None:
        path = Path(settings.path) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(repository, name, revision=settings.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise _unknown(settings, repository) from error


def _download(settings: BackboneSettings, repository: str, name: str) -> Path | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our message follows
    revision = settings.revision
    try:
        # Asked once and without the library's retries: without a network the user hears of it at once.
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=HUB_TIMEOUT)
        return Path(hf_hub_download(repository, name, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise WrongPathError(
            f"backbone={settings.name}: {repository} is gated, its owners give access on request. Ask for it at "
            f"https://huggingface.co/{repository} (signed in), make a token with read access at "
            "https://huggingface.co/settings/tokens, run `hf auth login`, and then the same command again. "
            "Or, where the files lie in a folder already:",
            "FOLDER",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _unknown(settings, repository) from error
    except Exception as error:  # no network, a proxy, a server's failure, offline mode: each client has its own kinds
        raise WrongPathError(
            f"backbone={settings.name}: {name} of {repository} (revision {revision}) is neither in the Hugging "
            f"Face cache nor can it be downloaded ({type(error).__name__}: {error}). Without a network, download the "
            f"model elsewhere with `hf download {repository} --revision {revision} --local-dir FOLDER` and copy the "
            "folder here.",
            "FOLDER",
        ) from error


def _unknown(settings: BackboneSettings, repository: str) -> UserError:
    return UserError(
        f"backbone={settings.name}: the Hugging Face hub knows no {repository} with revision {settings.revision} "
        "(or it is private). Check backbone.model and backbone.revision."
    )


def checkpoint_file(settings: BackboneSettings) -> Path:
    """An author's checkpoint: `path`, or `url` in torch's hub cache, downloaded there where it is missing."""
    url = str(settings.url)
    # Authors call their files checkpoint.pth, all of them: ours has the backbone's name.
    return _published_file(settings.name, settings.path, url, f"{settings.name}-{url.rsplit('/', 1)[-1]}")


def inception_weights(settings: BackboneSettings, cache_dir: str | Path | None = None) -> Path:
    """The weights file of torch-fidelity's Inception-v3: given, in torch's hub cache, or downloaded there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    published_name, path = URL_INCEPTION_V3.rsplit("/", 1)[1], settings.path
    if path is not None and Path(path).is_dir():
        path = str(Path(path) / published_name)
    weights = _published_file(settings.name, path, URL_INCEPTION_V3, published_name)
    if weights.name == published_name:  # NAME-6726825d.pth: the first digits of the SHA-256
        expected, digest = weights.stem.rsplit("-", 1)[1], file_digest(weights, cache_dir)
        if not digest.startswith(expected):
            raise UserError(
                f"{weights}: its SHA-256 begins with {digest[: len(expected)]}; expected {expected}. The file is "
                "damaged or not what its name says: delete it and download it again."
            )
    return weights


def _published_file(name: str, path: str | None, url: str, stored_as: str) -> Path:
    """`path`, or what `url` leads to, in torch's hub cache, downloaded there where it is missing."""
    if path is not None:
        if not Path(path).is_file():
            raise WrongPathError(f"{path}: no such file. Download {url}.", "FILE")
        return Path(path)
    weights = Path(torch.hub.get_dir()) / "checkpoints" / stored_as
    if not weights.is_file():
        weights.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(weights))
        except (urllib.error.URLError, OSError) as error:
            raise WrongPathError(
                f"backbone={name}: its weights are not at {weights} and cannot be downloaded ({error}). "
                f"Download {url} elsewhere and copy it here.",
                "FILE",
            ) from error
    return weights
