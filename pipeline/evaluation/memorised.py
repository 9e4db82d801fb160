"""Generated images beside their nearest training images: the numbers, and the picture to judge them by."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.image_grid import image_grid
from datamodules.images.image_store import ImageStore
from metrics.memorisation import memorisation, training_neighbours
from pipeline.evaluation.features import GeneratedSet, ImageSet
from storage.distances import SquaredDistances
from storage.files import atomic_path

NUM_SHOWN = 12
NEARLY_EQUAL = 0.01  # of the training images' median spacing: nearer pairs are compared pixel by pixel,
ROUNDING = 1e-5  # and those that are nearer than this share of a feature's length, which may be rounding
ROW_NAMES = ["generated", "nearest in training set", "nearest to that one"]  # of the picture


def memorisation_report(
    generated: GeneratedSet, store: ImageStore, picture: Path, features: Tensor, reference: Tensor
) -> dict[str, Any]:
    """Hold every generated image against the training images, and draw the most suspicious ones.

    Args:
        generated, store: the generated and the training images.
        picture: the PNG file to write.
        features, reference: [N, D] and [M, D], of the generated and of the training images.
    """
    neighbours = training_neighbours(reference)
    found = memorisation(features, reference, neighbours)
    shown, spacing = found.most_suspicious(NUM_SHOWN), float(neighbours.distances.median())
    nearest = found.nearest[shown]
    rows = [generated.gather(shown).cpu(), store.gather(nearest), store.gather(neighbours.indices[nearest])]
    with atomic_path(picture) as temporary:
        image_grid(torch.stack(rows), ROW_NAMES).save(temporary)
    reach = max(NEARLY_EQUAL * spacing, ROUNDING * float(reference.double().norm(dim=1).median()))
    near = (found.distances <= reach).nonzero().flatten()
    return {
        "authenticity": found.authenticity,
        "authenticity_of_training_images": neighbours.authenticity,
        "copies": count_copies(generated, near, store, rows_within(features[near], reference, reach)),
        "median_distance": float(found.distances.median()),
        "median_distance_between_training_images": spacing,
        "picture": str(picture),
        "most_suspicious": [
            {
                "generated": generated.name(index),
                "training": store.source.ids[int(found.nearest[index])],
                "distance": float(found.distances[index]),
                "ratio": float(found.ratios[index]),
            }
            for index in shown.tolist()
        ],
    }


def rows_within(features: Tensor, reference: Tensor, reach: float) -> Tensor:
    """The rows of `reference` [M, D] that are at most `reach` away from one of `features` [n, D]."""
    near = torch.zeros(len(reference), dtype=torch.bool, device=features.device)
    limits = features.new_full((len(features),), reach**2, dtype=torch.float64)
    no_limits = features.new_full((len(reference),), -torch.inf, dtype=torch.float64)
    for pairs in SquaredDistances(features, reference).within(limits, no_limits) if len(features) else ():
        near[pairs.columns[pairs.squared <= reach**2]] = True
    return near.nonzero().flatten().cpu()


def count_copies(generated: GeneratedSet, ours: Tensor, store: ImageStore, theirs: Tensor) -> int:
    """How many of the generated images `ours` [n] are one of the training images `theirs` [m], pixel by pixel."""
    known = set(digests(store, theirs))
    return sum(digest in known for digest in digests(generated, ours))


def digests(images: ImageSet, rows: Tensor, batch: int = 256) -> Iterator[bytes]:
    """What tells the pixels of these images from any others."""
    for part in rows.split(batch) if len(rows) else ():
        for image in images.gather(part).cpu():  # uint8 [C, H, W]
            yield hashlib.sha256(image.numpy().tobytes()).digest()
