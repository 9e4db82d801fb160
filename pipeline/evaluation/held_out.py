"""Images held out as a reference: a model that copies its training images is nearer to these than to others."""

from collections.abc import Sequence
from functools import partial

import torch

from datamodules.backbones.backbone_base import Backbone
from datamodules.images.image_store import ImageStore
from datamodules.images.sources import ImageSource, evenly_spaced
from pipeline.evaluation.measures import HELD_OUT, SAMPLE, OtherReference, Plan, backbones, distances
from pipeline.evaluation.metrics_table import REAL
from pipeline.evaluation.reference import Extractors


def references_beside(
    source: ImageSource,
    plan: Plan,
    extractors: Extractors,
    built: Sequence[Backbone],
    batch_size: int,
    device: torch.device,
) -> list[OtherReference]:
    """The images that `source` holds out, and as many of its own, evenly spaced; none where a distance needs more.

    A distance depends on the number of real images, so one to images held out compares with one to equally many
    training images, and not with that to all of them.
    """
    if source.held_out is None or len(source.held_out) < 2:
        return []
    count, compared = len(source.held_out), distances(plan)
    wanted = [extractor for extractor in built if extractor.name in backbones(compared)]
    found, size = [], (extractors.dataset.resolution, extractors.dataset.channels)
    parts = {HELD_OUT: source.held_out, SAMPLE: source.part(evenly_spaced(len(source), count))}
    for name, part in parts.items():
        said = f"to {len(part):,} {'images held out' if name == HELD_OUT else 'training images'}"
        description = {"dataset": part.name, "fingerprint": part.fingerprint, "num_images": len(part), "images": said}
        keep, store = backbones(compared, side=REAL), partial(ImageStore, part, *size)
        features = extractors.reference(part, store, wanted, keep, batch_size, device)
        found.append(OtherReference(name, said, description, len(part), features))
    return found
