"""Generated images beside their nearest training images: the numbers, and the picture to judge them by."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.image_grid import image_grid
from datamodules.images.images import ImageStore
from metrics.memorisation import memorisation, training_neighbours
from pipeline.evaluation.features import GeneratedSet
from storage.files import atomic_path

NUM_SHOWN = 12
NEARLY_EQUAL = 0.01  # of the training images' median spacing: nearer pairs are compared pixel by pixel
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
    near = (found.distances <= NEARLY_EQUAL * spacing).nonzero().flatten()
    return {
        "authenticity": found.authenticity,
        "authenticity_of_training_images": neighbours.authenticity,
        "copies": count_equal(generated, near, store, found.nearest[near]),
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


def count_equal(generated: GeneratedSet, ours: Tensor, store: ImageStore, theirs: Tensor, batch: int = 256) -> int:
    """How many of the generated images `ours` [B] are the training images `theirs` [B], pixel by pixel."""
    parts = zip(ours.split(batch), theirs.split(batch), strict=True) if len(ours) else ()
    equal = ((generated.gather(one).cpu() == store.gather(other)).flatten(1).all(dim=1) for one, other in parts)
    return sum(int(part.sum()) for part in equal)
