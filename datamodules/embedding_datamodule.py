"""Pairs of neighbouring embeddings: the batches that clustering heads are trained on."""

from collections.abc import Iterator
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.embeddings.embeddings import Embeddings
from datamodules.stream import SampleStream, StreamBatches, check_batch_size, place_of
from storage import philox
from storage.errors import UserError
from storage.philox import Stream


class PairIndices(NamedTuple):
    """Which images make the pairs of a batch."""

    indices: Tensor  # int64 [P]
    neighbours: Tensor  # int64 [P]


class PairBatch(NamedTuple):
    """What the heads read of P images, and of one neighbour each."""

    images: Tensor  # float32 [P, D]
    neighbours: Tensor  # float32 [P, D]
    indices: Tensor  # int64 [P], of the images


class EmbeddingPairs(Dataset[PairIndices]):
    """Pairs (image, one of its k nearest neighbours) by their position in the stream of training images."""

    def __init__(self, stream: SampleStream, neighbours: Tensor) -> None:
        self.stream = stream
        self.neighbours = neighbours  # [N, k]

    def __getitem__(self, positions: Tensor) -> PairIndices:
        indices = self.stream.indices(positions)  # [P]
        choices = philox.integers(self.stream.seed, Stream.NEIGHBOURS, positions, self.neighbours.shape[1])  # [P]
        return PairIndices(indices, self.neighbours[indices, choices])


class EmbeddingDataModule(L.LightningDataModule):
    """Endless pairs of embeddings for TEMI, in an order that is a pure function of the seed and the optimizer step.

    Only indices go through the loader; the embeddings lie on the training device and the pairs are gathered there.

    Args:
        embeddings: of the whole data set, [N, D].
        neighbours: indices of each image's nearest neighbours, the nearest first: int64 [N, at least num_neighbours].
        batch_size: pairs per optimizer step, of all devices together.
        num_neighbours: k; the neighbour of a pair is drawn uniformly from the k nearest.
        seed: decides the order of images and the neighbours drawn.
        standardise: bring each dimension to mean 0 and standard deviation 1 over the data set first.

    Raises:
        UserError: too few images for the batch size or for num_neighbours.

    Examples:
        >>> from datamodules.embeddings.neighbours import find_neighbours
        >>> embeddings = Embeddings.of(torch.randn(20, 4))  # of 20 images
        >>> neighbours = find_neighbours(embeddings.values, k=3).indices
        >>> data = EmbeddingDataModule(embeddings, neighbours, batch_size=8, num_neighbours=3)
        >>> pairs = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)  # as Lightning does
        >>> pairs.images.shape, pairs.neighbours.shape, data.steps_per_epoch
        (torch.Size([8, 4]), torch.Size([8, 4]), 2)
    """

    def __init__(
        self,
        embeddings: Embeddings,
        neighbours: Tensor,
        batch_size: int,
        num_neighbours: int,
        seed: int = 0,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        num_images = len(embeddings.values)
        check_batch_size(batch_size, num_images)
        if num_images < num_neighbours + 1:
            raise UserError(
                f"num_neighbours={num_neighbours}: a data set of {num_images} images has {num_images - 1} at most"
            )
        self.embeddings, self.standardise = embeddings, standardise
        self.batch_size = batch_size
        self.steps_per_epoch = num_images // batch_size  # the last, partial batch of each epoch is dropped
        stream = SampleStream(num_images, seed, epoch_size=self.steps_per_epoch * batch_size)
        self.pairs = EmbeddingPairs(stream, neighbours[:, :num_neighbours])
        self._head_inputs: Tensor | None = None  # [N, D], made when asked for, on the device that asks

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""
        return self.embeddings.values.shape[1]

    def train_dataloader(self) -> DataLoader:
        """Endless batches for this rank, from the optimizer step on that the trainer has reached."""
        world_size, rank, step = place_of(self.trainer)
        batches = StreamBatches(self.batch_size, world_size, rank, start_step=step)
        return DataLoader(self.pairs, sampler=batches, batch_size=None)

    def on_after_batch_transfer(self, batch: PairIndices, dataloader_idx: int) -> PairBatch:
        """Gathers the embeddings of the pairs, on the device that the indices have been moved to."""
        inputs = self._on_device(batch.indices.device)
        return PairBatch(inputs[batch.indices], inputs[batch.neighbours], batch.indices)

    def evaluation_batches(
        self, rank: int = 0, world_size: int = 1, batch_size: int = 4096, device: str | torch.device | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each image once over all ranks: (indices int64 [b], what the heads read float32 [b, D])."""
        inputs = self._on_device(device)
        share = torch.arange(rank, len(inputs), world_size, device=inputs.device)
        for indices in share.split(batch_size):
            yield indices, inputs[indices]

    def teardown(self, stage: str) -> None:
        """Lets go of the copy on the device, whose memory the next training needs."""
        self._head_inputs = None

    def _on_device(self, device: str | torch.device | None) -> Tensor:
        """What the heads read of all images, on a device; where it is for None."""
        if self._head_inputs is None:
            self._head_inputs = self.embeddings.head_inputs(self.standardise)
        self._head_inputs = self._head_inputs.to(device)
        return self._head_inputs
