"""What a data set holds: every image is decoded once, and the rest told from listings and digests."""

from collections import Counter
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch

from datamodules.images.arrays import digest
from datamodules.images.decoding import each_row
from datamodules.images.images import to_uint8
from datamodules.images.reader import UNLABELLED
from datamodules.images.sources import ImageSource, refuse_bad_files
from storage.errors import UserError
from storage.files import own_folder, remembered_json
from storage.fingerprints import file_stem, fingerprint

SHOWN = 5  # duplicates that the survey names


@dataclass(frozen=True)
class Survey:
    """What a data set holds."""

    num_images: int  # that are used
    sizes: list[tuple[int, int, int]]  # (width, height, count), the most frequent first, as stored
    modes: dict[str, int]  # images by file format and mode, such as `PNG RGBA`
    num_duplicates: int  # images stored as the same bytes as an earlier one
    duplicates: list[tuple[str, str]]  # some of them, each with the earlier one
    num_distinct: int  # images of different pixels, however they are stored
    num_blank: int  # images of one colour throughout
    blank: list[str]  # some of them
    num_grey: int  # images in which no pixel has a colour
    class_counts: list[int] | None  # images per class; None without labels
    class_names: list[str] | None  # None where classes are numbers
    num_unlabelled: int  # images without a label, where others have one
    labels_note: str  # why there are no labels
    split: str  # which split folders are taken, and which are not; empty where there are none
    window: str  # what becomes black and white in images of measurements; empty where there are none
    skipped: dict[str, str]  # files that cannot be used and are left out, each with the reason
    left_out: dict[str, int]  # how many files of which kind are no images

    @property
    def areas(self) -> np.ndarray:
        """Width, height of the smallest, the median and the largest image, by pixels: int64 [3, 2]."""
        sizes = np.array(sorted(self.sizes, key=lambda size: size[0] * size[1]), dtype=np.int64)  # [S, 3]
        places = np.searchsorted(sizes[:, 2].cumsum(), [1, (self.num_images + 1) // 2, self.num_images])
        return sizes[places, :2]

    @property
    def not_square(self) -> list[tuple[float, int, int, int]]:
        """Sizes that are no squares: (share of the longer side beyond the shorter, width, height, images), sorted."""
        shares = ((1 - min(w, h) / max(w, h), w, h, count) for w, h, count in self.sizes if w != h)
        return sorted(shares)

    def enlarged(self, resolution: int, fit: str) -> list[tuple[int, int]]:
        """(side, images) of those whose side is below the resolution, sorted: the shorter side; padded, the longer."""
        side_of = max if fit == "pad" else min
        sides = ((side_of(width, height), count) for width, height, count in self.sizes)
        return sorted((side, count) for side, count in sides if side < resolution)


def survey(source: ImageSource, cache_dir: str | Path) -> tuple[Survey, Path]:
    """The survey of a source, and the JSON file in the cache that keeps it.

    It is made again when a file may have changed, when others are listed, or under another version of Pillow.

    Raises:
        UserError: images that cannot be used, unless they are skipped; the message counts and names them.
    """
    labels = None if source.labels is None else [source.labels.tolist(), source.class_names]
    told = [source.labels_note, str(source.splits), source.left_out]
    key = fingerprint([source.state, labels, told, PIL.__version__, [field.name for field in fields(Survey)]])
    path = own_folder(Path(cache_dir) / "surveys") / f"{file_stem(source.name, key)}.json"
    return Survey(**remembered_json(path, key, lambda: asdict(_look(source)))), path


def _look(source: ImageSource) -> Survey:
    found = list(each_row(partial(_look_at, source), len(source), f"looking at {source.name}"))
    bad = {source.ids[index]: reason for index, reason in enumerate(found) if isinstance(reason, str)}
    if bad:
        refuse_bad_files(source.name, bad, len(source))
    looks = [look for look in found if not isinstance(look, str)]
    sizes, modes = Counter(look.size for look in looks), Counter(look.mode for look in looks)
    blank = [source.ids[index] for index, look in enumerate(looks) if look.blank]
    first: dict[str, int] = {}
    earlier = [first.setdefault(digest, index) for index, digest in enumerate(source.image_digests())]
    copies = [(source.ids[index], source.ids[other]) for index, other in enumerate(earlier) if other != index]
    class_counts, num_unlabelled = None, 0
    if source.labels is not None:  # classes without an image included
        labelled = source.labels[source.labels != UNLABELLED]
        class_counts = torch.bincount(labelled, minlength=len(source.class_names or [])).tolist()
        num_unlabelled = len(source) - len(labelled)
    return Survey(
        num_images=len(source),
        sizes=[(*size, count) for size, count in sizes.most_common()],
        modes=dict(modes.most_common()),
        num_duplicates=len(copies),
        duplicates=copies[:SHOWN],
        num_distinct=len({look.pixels for look in looks}),
        num_blank=len(blank),
        blank=blank[:SHOWN],
        num_grey=sum(look.grey for look in looks),
        class_counts=class_counts,
        class_names=source.class_names,
        num_unlabelled=num_unlabelled,
        labels_note=source.labels_note,
        split="" if source.splits is None else str(source.splits),
        window="" if source.window is None else source.window.told,
        skipped=source.skipped,
        left_out=source.left_out,
    )


class _Look(NamedTuple):
    """What is found out about one image."""

    size: tuple[int, int]  # width, height
    mode: str  # format and mode, or type and channels of an array
    blank: bool
    grey: bool
    pixels: str  # their digest


def _look_at(source: ImageSource, index: int) -> _Look | str:
    """What one image is; or why it cannot be used."""
    try:
        image = source.decoded(index)
        stored = source.header(index) if isinstance(image, np.ndarray) else image
        values = image if isinstance(image, np.ndarray) else to_uint8(image, None, 3).permute(1, 2, 0).numpy()
    except (UserError, ValueError, OSError) as error:
        return str(error)
    height, width, channels = values.shape
    if isinstance(stored, np.ndarray):
        mode = f"{stored.dtype.name}, {channels} channel{'s' if channels > 1 else ''}"
    else:
        mode = f"{stored.format} {stored.mode}"
    blank, grey = bool((values == values[0, 0]).all()), channels in (1, 3) and bool((values == values[..., :1]).all())
    return _Look((width, height), mode, blank, grey, f"{values.shape} {digest(values)}")
