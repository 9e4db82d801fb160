"""The folder of a model's repository on the hub: its file, a model card, pictures that it makes of its clusters."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from PIL import Image

from callbacks.image_grid import image_grid
from callbacks.sample_grid import sample_rows
from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.evaluation.sampling import Sampler
from pipeline.pictures.html import rendered
from pipeline.running.run_files import denoiser_file
from storage.control_characters import shown
from storage.digests import file_digest
from storage.errors import UserError
from storage.files import atomic_path

FOLDER = "hub"  # in that of the run
CARD, SAMPLES, CURVE = "README.md", "samples.png", "distance.png"
LIBRARY = "cluster-conditioned-diffusion"
TAGS = ("diffusion", "edm", "image-generation", "pytorch")
ROWS, COLUMNS = 12, 8
PLACES = ("path", "file", "denoiser", "cache_dir")  # in a protocol: where something lay on the machine that measured


def write_publication(
    run: Path,
    summary: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
    sampler: Sampler,
    device: torch.device,
    repo: str,
    images_license: str,
) -> list[Path]:
    """Write the files of the repository into the folder `hub` of a training run; which they are.

    They hold no image of the data set, and tell nothing of where files lay.

    Args:
        run, summary: the training's folder and what its summary says.
        scores: the summary of an evaluation of the model, or None.
        sampler: makes the pictures.
        repo: what the card calls the model, `user/name`.
        images_license: of the images that it was trained on, as the user states it.

    Raises:
        UserError: the run has no model, or the scores are of another one.
    """
    file = denoiser_file(run, "run")
    if scores is not None and (others := measured_models(scores) - {file_digest(file)}):
        told = " and ".join(sorted(other or "not stated" for other in others))
        raise UserError(f"scores: they are of another model (SHA-256 {told}) than {file}. Run evaluate with it.")
    denoiser = Denoiser.from_pretrained(file).to(device)
    images, names = sample_rows(denoiser, sampler, ROWS, COLUMNS, batch_size=128)
    config = {"library_name": LIBRARY, **denoiser.description}  # the hub counts downloads by this file
    pictures = [SAMPLES, *([CURVE] if (run / CURVE).is_file() else [])]
    text = card(denoiser, summary, scores, repo, images_license, pictures)
    contents = {
        file.name: file.read_bytes(),
        CARD: text.encode(),
        "config.json": f"{json.dumps(config, indent=2)}\n".encode(),
        SAMPLES: png(image_grid(images, names)),
        **{name: (run / name).read_bytes() for name in pictures[1:]},
    }
    for name, content in contents.items():
        with atomic_path(run / FOLDER / name) as temporary:
            temporary.write_bytes(content)
    return [run / FOLDER / name for name in contents]


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def measured_models(scores: Mapping[str, Any]) -> set[str | None]:
    """The SHA-256 of the models that made the sets of an evaluation; None among them where one does not say."""
    sets = next(iter(scores["scores"].values()))["protocol"]["generated"]
    return {one.get("sha256") or one.get("made_by", {}).get("inputs", {}).get("denoiser") for one in sets}


def card(
    denoiser: Denoiser,
    summary: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
    repo: str,
    images_license: str,
    pictures: list[str],
) -> str:
    """The model card: what the hub reads of it, as YAML, and what people read."""
    metadata = ModelCardData(library_name=LIBRARY, pipeline_tag="unconditional-image-generation", tags=list(TAGS))
    along = dict(summary.get("distances", {}))
    curve = along.pop("kimg_and_distance", [])
    text = rendered(
        "model_card.md.j2",
        repo=repo,
        denoiser=denoiser,
        shares=[] if denoiser.cluster_frequencies is None else denoiser.cluster_frequencies.tolist(),
        summary=summary,
        images_license=images_license,
        pictures=pictures,
        distance={"name": along["name"], "kimg": curve[-1][0], "value": curve[-1][1]} if curve else None,
        scores={} if scores is None else scores["scores"],
        protocols=json.dumps(without_places({"training": along, "scores": (scores or {}).get("scores", {})}), indent=2),
    )
    return shown(f"---\n{metadata.to_yaml()}\n---\n\n{text}")


def without_places(node: Any) -> Any:
    """A protocol without the paths of files."""
    if isinstance(node, dict):
        return {key: without_places(value) for key, value in node.items() if key not in PLACES}
    return [without_places(value) for value in node] if isinstance(node, list) else node
