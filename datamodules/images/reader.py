"""What every reader of images offers, whatever they are stored in; and the labels that come with them."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from torch import Tensor

from datamodules.images.decoding import UnusableImageError, bytes_of, load_image, open_image, upright
from datamodules.images.measured import load_measured
from datamodules.images.split_folders import Splits
from datamodules.images.window import Window, measured_picture, refuse_bands, shown

UNLABELLED = -1  # the label of an image that has none


@dataclass(frozen=True)
class Labels:
    """Labels of images.

    Attributes:
        values: int64 [N] in 0…classes−1, or UNLABELLED; None where there are no labels that can be used.
        class_names: one per class, where they have names.
        note: why there are none.
        are_ids: whether the names are numbers that stand for something else, so that no text can be made of them.
    """

    values: Tensor | None
    class_names: list[str] | None = None
    note: str = ""
    are_ids: bool = False


class Reader(ABC):
    """Reads the images of a whole data set by their row in it.

    Attributes:
        kind: how they are stored; part of the data set's fingerprint.
        ids: one name per image, in data-set order.
        unusable: files that were meant as images and cannot even be tried, each with the reason.
        left_out: how many files of which kind are no images.
        own_output: folders of this project's runs and cache that lie among the images, and are not listed.
        folders: the folders that the images may lie in; None where there is no such thing.
        splits: the split folders that the images lie in, where they do.
        window, channels: of images of measurements: what becomes black and white, and how many bands they may have.
        has_images: whether there are images, and not only their names.
    """

    has_images = True

    def __init__(self, kind: str, labels: Labels | None = None) -> None:
        self.kind = kind
        self.ids: list[str] = []
        self.unusable: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()
        self.own_output: list[str] = []
        self.folders: set[str] | None = None
        self.splits: Splits | None = None
        self.window: Window | None = None
        self.channels = 3
        self._labels = labels

    @abstractmethod
    def read(self, row: int) -> Image.Image | np.ndarray:
        """The image in this row: a Pillow image, or uint8 [H, W, C]. Raises `UnusableImageError`."""

    @abstractmethod
    def read_header(self, row: int) -> Image.Image | np.ndarray:
        """Opens the image in this row without decoding its pixels. Raises `UnusableImageError`."""

    @abstractmethod
    def contents(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        """Digests that change when the bytes of any image in `rows` change. Raises `UnusableImageError`."""

    @abstractmethod
    def image_digests(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        """A digest per row: equal for images that are stored as the same bytes, and for no others."""

    @abstractmethod
    def state(self) -> str:
        """Changes when a file may have changed, told from sizes and times without reading it."""

    def encoded(self, row: int) -> tuple[bytes, str]:
        """The image in this row as an image file, and the file's suffix: a PNG file, if it is not stored as one."""
        pixels = np.asarray(self.read(row))  # uint8 [H, W, C]
        if pixels.shape[2] not in (1, 3):
            raise UnusableImageError(f"has {pixels.shape[2]} channels, which PNG files do not hold")
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "png")
        return file.getvalue(), ".png"

    def keep(self, rows: list[int]) -> None:
        """Forget all other images."""
        self.ids = [self.ids[row] for row in rows]

    def own_labels(self) -> Labels | None:
        """The labels that the data set brings."""
        return self._labels


class EncodedReader(Reader):
    """Reads images that are stored as the files of an image format, wherever these lie."""

    @abstractmethod
    def file(self, row: int) -> tuple[Path | bytes, str]:
        """The image file in this row, or its bytes; and its name. Raises `UnusableImageError`."""

    @abstractmethod
    def refuse_changed(self, row: int) -> None:
        """Raise a `UserError` where the file with the image in this row has changed since the images were listed."""

    def read(self, row: int) -> Image.Image | np.ndarray:
        with self._unchanged(row):
            file, name = self.file(row)
            content = bytes_of(file)
            measured = load_measured(content)
            if measured is not None:
                refuse_bands(measured, self.channels)
                return shown(measured, self.window)
            picture = load_image(content, name)
            measured = None if self.window is None else measured_picture(upright(picture))
            return picture if measured is None else shown(measured, self.window)

    def read_header(self, row: int) -> Image.Image | np.ndarray:
        with self._unchanged(row):
            file, name = self.file(row)
            measured = load_measured(file)
            return open_image(file, name) if measured is None else measured.values

    @contextmanager
    def _unchanged(self, row: int) -> Iterator[None]:
        try:
            yield
        finally:  # where it was being written, it cannot be decoded either
            self.refuse_changed(row)

    def encoded(self, row: int) -> tuple[bytes, str]:
        if isinstance(self.read(row), np.ndarray):  # numbers, that others would scale otherwise
            return super().encoded(row)
        file, name = self.file(row)
        content, suffix = bytes_of(file), PurePosixPath(name).suffix.lower()
        return content, suffix or f".{(open_image(content, name).format or 'png').lower()}"

    def image_digests(self, rows: list[int], cache_dir: Path | None) -> list[str]:
        digests = []
        for row in rows:
            try:
                digests.append(hashlib.sha256(bytes_of(self.file(row)[0])).hexdigest())
            except UnusableImageError as error:
                digests.append(f"{self.ids[row]}: {error}")
        return digests
