"""Images with their pseudo-labels: the batches that diffusion models are trained on."""

import signal
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.image_loader import ImageLoader
from datamodules.images.image_store import ImageStore
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from datamodules.stream import SampleStream, StreamBatches, check_batch_size, place_of, split_batch
from storage.cores import cores_of_each

UNCONDITIONAL = -1  # the label of every image where there are no pseudo-labels


class ImageBatch(NamedTuple):
    """Training images with their labels and their places in the stream."""

    images: Tensor  # uint8 [b, C, R, R]
    labels: Tensor  # int64 [b], in 0…num_classes−1, or −1 where training is unconditional
    positions: Tensor  # int64 [b], in the global stream of training images


class LabelledImages(Dataset[ImageBatch]):
    """Batches of images by their positions in the stream of training images."""

    def __init__(self, store: ImageStore, labels: Tensor, stream: SampleStream) -> None:
        self.store = store
        self.labels = labels  # [N]
        self.stream = stream

    def __getitem__(self, positions: Tensor) -> ImageBatch:
        indices = self.stream.indices(positions)  # [b]
        return ImageBatch(self.store.gather(indices), self.labels[indices], positions)


class ImageDataModule(L.LightningDataModule):
    """Endless training images, in an order that is a pure function of the seed and the optimizer step.

    Args:
        source: the images.
        pseudo_labels: their clusters, looked up by image id; None trains without labels. Clusters without an image in
            `source` are dropped, so labels run over 0…num_classes−1 without gaps.
        resolution, channels: the size of the training images.
        batch_size: images per optimizer step, of all devices and accumulated passes together.
        accumulate: forward passes per optimizer step.
        seed: decides the order of images.
        num_workers: processes that decode images; None: none where they are decoded once, else up to 8 per device.
        memory_gb: decode the images once up to this size, else each time.

    Raises:
        UserError: an image without a pseudo-label, or a batch larger than the data set.

    Examples:
        >>> from datamodules.images.dataset_settings import DatasetSettings
        >>> from datamodules.images.sources import open_source
        >>> source = open_source(DatasetSettings(name="digits", kind="digits", max_images=32))
        >>> clusters = PseudoLabels(torch.arange(32) % 4, num_clusters=4, confidence=torch.ones(32), ids=source.ids)
        >>> data = ImageDataModule(source, clusters, resolution=8, channels=1, batch_size=16)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.images.shape, batch.labels.shape, data.num_classes
        (torch.Size([16, 1, 8, 8]), torch.Size([16]), 4)
    """

    def __init__(
        self,
        source: ImageSource,
        pseudo_labels: PseudoLabels | None,
        resolution: int,
        channels: int,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        num_workers: int | None = None,
        memory_gb: float = 8,
    ) -> None:
        super().__init__()
        check_batch_size(batch_size, len(source))
        self.source = source
        self.resolution = resolution
        self.channels = channels
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.num_workers = num_workers
        self.memory_gb = memory_gb
        self.pseudo_labels = None if pseudo_labels is None else pseudo_labels.select(source.ids)
        self.stream = SampleStream(len(source), seed)
        self.store: ImageStore | None = None

    @property
    def num_classes(self) -> int:
        """Clusters that hold a training image; 0 without pseudo-labels."""
        return 0 if self.pseudo_labels is None else self.pseudo_labels.num_used

    @property
    def class_frequencies(self) -> Tensor | None:
        """Share of the training images in each class: float32 [num_classes]; None without pseudo-labels."""
        return None if self.pseudo_labels is None else self.pseudo_labels.frequencies

    @property
    def cluster_ids(self) -> Tensor | None:
        """The cluster that each class stands for: int64 [num_classes]; None without pseudo-labels."""
        return None if self.pseudo_labels is None else self.pseudo_labels.used_clusters

    def image_ids(self, positions: Tensor) -> list[str]:
        """The ids of the images at these positions [b] of the training stream."""
        return [self.source.ids[index] for index in self.stream.indices(positions).tolist()]

    def setup(self, stage: str | None = None) -> None:
        """Opens the images, decoded where they fit; once per process."""
        split_batch(self.batch_size, place_of(self.trainer)[0], self.accumulate)  # tell before the long work, not after
        if self.store is None:
            self.store = ImageStore(self.source, self.resolution, self.channels, self.memory_gb)

    def labelled_images(self) -> LabelledImages:
        """The training images by their positions in the stream."""
        self.setup()
        assert self.store is not None
        unconditional = torch.full((len(self.source),), UNCONDITIONAL)
        labels = unconditional if self.pseudo_labels is None else self.pseudo_labels.compact()
        return LabelledImages(self.store, labels, self.stream)

    def workers(self, processes: int) -> int:
        """How many processes load images for each of the `processes` that train on this machine."""
        assert self.store is not None
        automatic = 0 if self.store.in_memory else min(8, cores_of_each(processes))
        return automatic if self.num_workers is None else self.num_workers

    def train_dataloader(self) -> DataLoader:
        """Endless micro-batches for this rank, from the optimizer step on that the trainer has reached."""
        images = self.labelled_images()
        world_size, rank, step = place_of(self.trainer)
        num_workers = self.workers(1 if self.trainer is None else self.trainer.num_devices)  # on this machine
        return ImageLoader(
            images,
            sampler=StreamBatches(self.batch_size, world_size, rank, self.accumulate, start_step=step),
            batch_size=None,  # the sampler gives whole batches
            num_workers=num_workers,
            worker_init_fn=_leave_signals_to_the_main_process,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A signal to the whole process group must not take the workers away before the last snapshot; they end with it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
