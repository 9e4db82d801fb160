"""The text side of CLIP: class names to embeddings in the space that they share with images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.backbones.backbone_settings import BackboneSettings
from storage.errors import UserError


class ClassTexts(NamedTuple):
    """What zero-shot classification needs beside the images."""

    embeddings: Tensor  # float32 [K, D], one per class name, as the text projection gives them
    logit_scale: float  # factor of the cosine similarities before the softmax


def read_class_names(given: str | Sequence[Any] | None, of_data_set: Sequence[str] | None) -> list[str]:
    """The class names of `clustering.class_names`: a list, the lines of a text file, or the data set's own.

    Raises:
        UserError: there are none, fewer than two, or two that are the same.
    """
    if given is None:
        names = list(of_data_set or [])
        if not names:
            cure = "Set clustering.class_names=[cat,dog] or clustering.class_names=FILE.txt with a name per line"
            raise UserError(f"clustering=clip: the data set tells no class names. {cure}.")
    elif isinstance(given, str):
        given = str(Path(given).expanduser())
        if not Path(given).is_file():
            raise UserError(f"clustering.class_names={given}: no such file. Give a list or a file of names.")
        names = [line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        names = [str(name) for name in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or twice:
        problem = f"{twice[0]!r} occurs twice" if twice else f"only {names}"
        raise UserError(f"clustering.class_names: {problem}; at least two different names are needed.")
    return names


@torch.no_grad()
def embed_class_names(backbone: BackboneSettings, names: Sequence[str], prompt: str) -> ClassTexts:
    """Text embeddings of the prompts by the CLIP model whose image side is this backbone.

    Args:
        backbone: its settings (`configs/backbone/clip_*.yaml`): `model` and `revision` on the hub, or `path`.
        names: K class names.
        prompt: a text with `{}` in the name's place.

    Raises:
        UserError: the files are no whole CLIP model, or cannot be had.
    """
    from transformers import AutoTokenizer, CLIPModel

    place, revision = str(backbone.path or backbone.model), backbone.revision or "main"
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
        arguments: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "dtype": torch.float32}
        loaded: Any = CLIPModel.from_pretrained(place, revision=revision, output_loading_info=True, **arguments)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{place}: cannot be loaded as a CLIP model with its tokenizer ({error}). Set backbone=clip_vitl14, or "
            "backbone.path=FOLDER with all files of such a model."
        ) from error
    model, loading = loaded
    if loading["missing_keys"]:
        raise UserError(f"{place}: lacks weights of a CLIP model, the first is {min(loading['missing_keys'])}.")
    prompts = [prompt.format(name) for name in names]
    tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    model.eval()
    return ClassTexts(model.get_text_features(**tokens).pooler_output, float(model.logit_scale.exp()))
