"""Which numbers of measured images become black and white: one window for a whole data set.

It is stated, or taken from percentiles of the data set, so that the same number is as bright in every image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from datamodules.images.decoding import UnusableImageError
from datamodules.images.measured import Measured
from datamodules.images.tiff import PHOTOMETRIC, WHITE_IS_ZERO

PERCENTILES = 0.5, 99.5
SAMPLE, PIXELS = 200, 20_000  # evenly spaced images of a data set, and pixels of each
STATED = "set dataset.window=[LOW,HIGH]"


@dataclass(frozen=True)
class Window:
    """What becomes black and white.

    Attributes:
        limits: lowest and highest of each band, for images of as many bands; where stated, of every band of all.
        told: which these are, for the survey.
        stated: whether they were, and not taken from the images.
    """

    limits: list[list[list[float]]]
    told: str
    stated: bool = False

    @classmethod
    def of_setting(cls, span: Sequence[float]) -> "Window":
        """The numbers that `dataset.window` names."""
        return cls([[[*map(float, span)]]], f"{span[0]:g} to {span[1]:g} become black to white", stated=True)

    @classmethod
    def of_sample(cls, samples: Iterable[np.ndarray | None]) -> "Window | None":
        """Two percentiles of each band, from pixels [n, bands] of some images; None where there are none."""
        by_bands: dict[int, list[np.ndarray]] = {}
        for pixels in samples:
            if pixels is not None:
                by_bands.setdefault(pixels.shape[1], []).append(pixels)
        limits: list[list[list[float]]] = []
        for _, parts in sorted(by_bands.items()):
            low, high = np.percentile(np.concatenate(parts), PERCENTILES, axis=0)
            limits.append(np.stack([low, np.where(high > low, high, low + 1)], axis=1).tolist())
        if not limits:
            return None
        said = "; ".join(", ".join(f"{low:.4g} to {high:.4g}" for low, high in spans) for spans in limits)
        shares = " and ".join(f"{share:g}%" for share in PERCENTILES)
        return cls(limits, f"{said} become black to white, where {shares} of the pixels are below; or {STATED}")

    def of(self, bands: int) -> np.ndarray:
        """float64 [2, 1 or bands]: lowest and highest."""
        spans = next((spans for spans in self.limits if self.stated or len(spans) == bands), None)
        if spans is None:
            raise UnusableImageError(f"{bands} bands, unlike the images that the window was taken from; {STATED}")
        return np.array(spans, dtype=np.float64).T


def shown(measured: Measured, window: Window | None) -> np.ndarray:
    """The numbers of an image as uint8 [H, W, bands]: linear between black and white, cut off beyond.

    Raises:
        UnusableImageError: some are no numbers, or nothing says what is black and white.
    """
    values = refuse_missing(measured.values).astype(np.float64)
    if measured.bytes_as_they_are:
        scaled = values
    elif window is None:
        raise UnusableImageError(f"nothing says which of its numbers are black and white; {STATED}")
    else:
        low, high = window.of(values.shape[2])
        scaled = np.clip((values - low) / (high - low), 0, 1) * 255
    return np.rint(255 - scaled if measured.inverted else scaled).astype(np.uint8)


def refuse_bands(measured: Measured, channels: int) -> None:
    """Raise `UnusableImageError` for an image of another number of bands, unless one is grey and the other RGB."""
    bands = measured.values.shape[2]
    if bands != channels and not {bands, channels} <= {1, 3}:
        setting = f"set dataset.channels={bands}" + " and backbone=pixels" * (bands not in (1, 3))
        raise UnusableImageError(f"{bands} bands, where dataset.channels={channels}; if all have them, {setting}")


def refuse_missing(values: np.ndarray) -> np.ndarray:
    """The values; raises `UnusableImageError` where some are NaN or infinite."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        missing = int((~np.isfinite(values)).sum())
        raise UnusableImageError(f"{missing:,} of {values.size:,} values are NaN or infinite; fill or crop them")
    return values


def sampled(measured: Measured) -> np.ndarray | None:
    """Some pixels of an image, float64 [n, bands]; None where its numbers are bytes as they are."""
    if measured.bytes_as_they_are:
        return None
    flat = refuse_missing(measured.values).reshape(-1, measured.values.shape[2])
    return flat[:: max(1, len(flat) // PIXELS)].astype(np.float64)


def measured_picture(picture: Image.Image) -> Measured | None:
    """The numbers of a grey PNG or TIFF of 16 bits, which does not say how many of them are in use; None for others."""
    if not picture.mode.startswith("I") or picture.format not in ("PNG", "TIFF"):
        return None  # the headers of the others say it
    if "transparency" in picture.info:
        raise UnusableImageError("16 bits and a transparent grey, for which there is no window; save it without")
    inverted = isinstance(picture, TiffImageFile) and picture.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return Measured(np.asarray(picture)[..., np.newaxis], inverted=inverted)
