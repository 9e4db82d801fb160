"""The order of training images as a pure function of where training is.

Training sees one endless stream of images. Optimizer step n of global batch size B covers positions [n·B, (n+1)·B);
which image lies at a position depends on the seed and the position alone. So a resumed run sees what an uninterrupted
one would have, and several processes together see what one alone would.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Sampler

from storage import philox
from storage.errors import UserError
from storage.philox import Stream


class SampleStream:
    """Which item lies at each position of the stream: epoch after epoch, each a permutation of its own.

    Args:
        num_items: items of the data set.
        seed: decides every permutation, with the number of the epoch.
        epoch_size: positions per epoch; fewer than `num_items` leaves out the tail of each permutation.
    """

    def __init__(self, num_items: int, seed: int, epoch_size: int | None = None) -> None:
        self.num_items = num_items
        self.seed = seed
        self.epoch_size = num_items if epoch_size is None else epoch_size

    def indices(self, positions: Tensor) -> Tensor:
        """Items at these positions: int64 of the same shape, in 0…num_items−1."""
        epochs = positions // self.epoch_size
        places = positions % self.epoch_size
        items = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            inside = epochs == epoch
            items[inside] = _permutation(self.num_items, self.seed, epoch)[places[inside]]
        return items


@lru_cache(maxsize=4)  # a batch may straddle two epochs
def _permutation(num_items: int, seed: int, epoch: int) -> Tensor:
    return philox.permutation(seed, Stream.ORDER, epoch, num_items)


class StreamBatches(Sampler[Tensor]):
    """Positions of one rank's micro-batches, int64 [b] each, for `DataLoader(dataset, sampler=…, batch_size=None)`.

    With global batch size B, world size W and A micro-batches accumulated per step, B = A·W·b; micro-batch m of step n
    on rank r takes the positions n·B + m·W·b + r·b + [0, b). They never end.

    `start_step` optimizer steps were taken before.
    """

    def __init__(
        self, global_batch_size: int, world_size: int = 1, rank: int = 0, accumulate: int = 1, start_step: int = 0
    ) -> None:
        self.images_per_device = split_batch(global_batch_size, world_size, accumulate)  # b
        self.world_size = world_size
        self.rank = rank
        self.accumulate = accumulate
        self.start_step = start_step

    def __iter__(self) -> Iterator[Tensor]:
        own = self.rank * self.images_per_device + torch.arange(self.images_per_device)
        for micro_step in itertools.count(self.start_step * self.accumulate):  # each of world_size × b images
            yield micro_step * self.world_size * self.images_per_device + own


def split_batch(global_batch_size: int, world_size: int, accumulate: int = 1) -> int:
    """Images per device and forward pass, b = B / (A·W). Raises `UserError` where that is no whole number."""
    parts = world_size * accumulate
    if global_batch_size < 1 or global_batch_size % parts:
        nearest = max(1, round(global_batch_size / parts)) * parts
        raise UserError(
            f"batch_size={global_batch_size} is the batch of all devices together and must be divisible by "
            f"{world_size} devices x {accumulate} accumulated passes = {parts}; for example {nearest}"
        )
    return global_batch_size // parts


def check_batch_size(batch_size: int, num_images: int) -> None:
    """Raise a `UserError` where a batch is larger than the data set."""
    if batch_size > num_images:
        raise UserError(f"batch_size={batch_size} is larger than the data set of {num_images} images; make it smaller")


def place_of(trainer: L.Trainer | None) -> tuple[int, int, int]:
    """World size, rank and optimizer step of the trainer; of a single process at its start without one."""
    return (1, 0, 0) if trainer is None else (trainer.world_size, trainer.global_rank, trainer.global_step)
