"""Where the files of pretrained backbones are: given, in a cache of this machine, or downloaded."""

import json
import logging
import re
import urllib.error
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from datamodules.backbones.backbone_settings import BackboneSettings
from storage.bounds import refuse_large
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
    found = {name: _find(settings, repository, name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise UserError(
            f"{_place(settings, repository)}: holds no {' and no '.join(missing)}. It should be what the "
            "`save_pretrained` of a model and of its image processor wrote (or timm's `save_for_hf`)."
        )
    files = [*found.values(), *(_find(settings, repository, name, download=False) for name in optional)]
    return [path for path in files if path is not None] + _weight_files(settings, repository)


def _weight_files(settings: BackboneSettings, repository: str) -> list[Path]:
    places = [(name, download) for download in (False, True) for name in (WEIGHTS, INDEX)]
    found = next(filter(None, (_find(settings, repository, *place) for place in places)), None)
    if found is None:
        raise WrongPathError(
            f"{_place(settings, repository)}: holds no weights in safetensors ({WEIGHTS}). Pickled weights "
            "(pytorch_model.bin, *.pth) are refused: reading them can run code. Convert them once, where transformers "
            'reads them as plain tensors: python -c "from transformers import AutoModel, AutoImageProcessor; '
            f"[c.from_pretrained('{settings.path or repository}').save_pretrained('FOLDER') for c in (AutoModel, "
            'AutoImageProcessor)]" (or set a backbone.revision that holds safetensors).',
            "FOLDER",
        )
    names = shard_names(found) if found.name == INDEX else []
    shards = [_find(settings, repository, name) for name in names]
    if None in shards:
        problem = f"holds no {names[shards.index(None)]}, which {INDEX} names"
        raise UserError(f"{_place(settings, repository)}: {problem}.")
    return [found, *filter(None, shards)]


def refuse_deep(folder: Path) -> None:
    """Raise a `UserError` where a `config.json` tells of more layers than its weights have tensors.

    The libraries make all of them before they look for their weights.
    """
    file, told, tensors = folder / "config.json", list[int](), 0

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, value in pairs:
            if re.search("layer|depth", key):
                told.extend(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
        return dict(pairs)

    refuse_large(file, 1 << 20, "a description of a network")
    try:
        json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=look)
        for weights in folder.glob("*.safetensors"):
            with safe_open(weights, framework="pt") as opened:
                tensors += len(opened.keys())
    except (ValueError, SafetensorError, RecursionError) as error:
        raise UserError(f"{file}: it, or the weights beside it, cannot be read ({error}).") from error
    if max(told, default=0) > tensors:
        raise UserError(f"{file}: tells of {max(told):,} layers, and there are weights of {tensors:,} in all.")


def shard_names(index: Path) -> list[str]:
    """The files of weights that a model's index names. Raises `UserError` where it is no such index."""
    refuse_large(index, 1 << 26, "an index of weights")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a name leads out of the folder")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: no index of weights ({type(error).__name__}: {error}).") from error
    return names


def _place(settings: BackboneSettings, repository: str) -> str:
    return settings.path or f"backbone={settings.name}: {repository} (revision {settings.revision})"


def _find(settings: BackboneSettings, repository: str, name: str, download: bool = True) -> Path | None:
    """One file of the folder, of the hub's cache on this machine, or of the hub; None where there is no such file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    revision, place = settings.revision, _place(settings, repository)
    if settings.path is not None:
        path = Path(settings.path) / name
        return path if path.is_file() else None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our message follows
    try:
        cached = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str) or not download:
            return Path(cached) if isinstance(cached, str) else None
        # Asked once and without the library's retries: without a network the user hears of it at once.
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=HUB_TIMEOUT)
        return Path(hf_hub_download(repository, name, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise WrongPathError(
            f"{place} is gated, its owners give access on request. Ask for it at https://huggingface.co/{repository} "
            "(signed in), make a token with read access at https://huggingface.co/settings/tokens, run "
            "`hf auth login`, and then the same command again. Or, where the files lie in a folder already:",
            "FOLDER",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        problem = "the Hugging Face hub knows no such model and revision (or it is private)"
        raise UserError(f"{place}: {problem}. Check backbone.model and backbone.revision.") from error
    except Exception as error:  # no network, a proxy, a server's failure, offline mode: each client has its own kinds
        raise WrongPathError(
            f"{place}: {name} is neither in the Hugging Face cache nor can it be downloaded "
            f"({type(error).__name__}: {error}). Without a network, download the model elsewhere with "
            f"`hf download {repository} --revision {revision} --local-dir FOLDER` and copy the folder here.",
            "FOLDER",
        ) from error


def checkpoint_file(settings: BackboneSettings) -> Path:
    """An author's checkpoint: `path`, or `url` in torch's hub cache, downloaded there where it is missing."""
    url = str(settings.url)
    # Authors call their files checkpoint.pth, all of them: ours has the backbone's name.
    return _published_file(settings.name, settings.path, url, f"{settings.name}-{url.rsplit('/', 1)[-1]}")


def inception_weights(settings: BackboneSettings) -> Path:
    """The weights file of torch-fidelity's Inception-v3: given, in torch's hub cache, or downloaded there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    name, path = URL_INCEPTION_V3.rsplit("/", 1)[1], settings.path
    if path is not None and Path(path).is_dir():
        path = str(Path(path) / name)
    return _published_file(settings.name, path, URL_INCEPTION_V3, name)


def check_name_against_digest(weights: Path, digest: str) -> None:
    """Raise a `UserError` where the SHA-256 does not begin as the file's name says: x-6726825d.pth."""
    published = re.fullmatch(r"(weights-inception|efficientnet-lite).*-([0-9a-f]{8})\.pth", weights.name)
    if published and not digest.startswith(published[2]):
        raise UserError(
            f"{weights}: its SHA-256 begins with {digest[:8]}; expected {published[2]}. The file is damaged or not "
            "what its name says: delete it and download it again."
        )


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
