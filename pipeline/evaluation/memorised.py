"""Generated images beside their nearest training images: the numbers, and the picture to judge them by."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.image_grid import image_grid
from datamodules.images.images import ImageStore
from metrics.memorisation import Memorisation, TrainingNeighbours, memorisation, training_neighbours
from pipeline.evaluation.features import GeneratedSet
from storage.files import atomic_path

NUM_SHOWN = 12
NEARLY_EQUAL = 0.01  # of the training images' median spacing: nearer pairs are compared pixel by pixel


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
    shown = found.most_suspicious(NUM_SHOWN)
    draw(generated, store, found, neighbours, shown, picture)
    return {
        "authenticity": found.authenticity,
        "authenticity_of_training_images": neighbours.authenticity,
        "copies": count_copies(generated, store, found, neighbours),
        "median_distance": float(found.distances.median()),
        "median_distance_between_training_images": float(neighbours.distances.median()),
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


def count_copies(
    generated: GeneratedSet, store: ImageStore, found: Memorisation, neighbours: TrainingNeighbours, batch: int = 256
) -> int:
    """Generated images that are their nearest training image, pixel by pixel."""
    near = (found.distances <= NEARLY_EQUAL * neighbours.distances.median()).nonzero().squeeze(1)
    copies = 0
    for part in near.split(batch) if len(near) else ():
        ours, theirs = generated.gather(part).cpu(), store.gather(found.nearest[part])
        copies += int((ours == theirs).flatten(1).all(dim=1).sum())
    return copies


def draw(
    generated: GeneratedSet,
    store: ImageStore,
    found: Memorisation,
    neighbours: TrainingNeighbours,
    shown: Tensor,
    path: Path,
) -> None:
    """A column per suspicious image: itself, its nearest training image, and that one's nearest."""
    nearest = found.nearest[shown]
    rows = [generated.gather(shown).cpu(), store.gather(nearest), store.gather(neighbours.indices[nearest])]
    names = ["generated", "nearest in training set", "nearest to that one"]
    with atomic_path(path) as temporary:
        image_grid(torch.stack(rows), names).save(temporary)
