"""Any layout, depth, mode and value: the pixels that the bytes mean, or a refusal by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datamodules.images.decoding import UnusableImageError
from datamodules.images.formats import MODES

from .bad_files import encoded
from .handmade import packed, png, pnm, shown, tiff
from .test_formats import HEIGHT, PALETTE, WIDTH, decoded, inked, quick, random


def seen_or_refused(content: bytes, seen: np.ndarray | None, tolerance: float, name: str = "x") -> bool:
    """Whether it was taken: then with the pixels `seen`; what has none may not be taken."""
    try:
        found = decoded(content, name)
    except UnusableImageError:
        return False
    assert seen is not None, "read, where nothing says what is shown"
    assert np.abs(found - seen).max() <= tolerance
    return True


@quick
@given(
    photometric=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 32803]),
    channels=st.integers(1, 6),
    extra=st.lists(st.integers(0, 2), max_size=3),
    kind=st.sampled_from([(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 2), (16, 2), (32, 2), (32, 3), (64, 3)]),
    order=st.sampled_from("<>"),
    planar=st.booleans(),
    reversed_bits=st.booleans(),
)
def test_any_layout_of_a_tiff(
    photometric: int,
    channels: int,
    extra: list[int],
    kind: tuple[int, int],
    order: str,
    planar: bool,
    reversed_bits: bool,
) -> None:
    bits, sample_format = kind
    samples = random(min(bits, 16), channels)
    if sample_format > 1:
        samples = samples.astype(f"{'iif'[sample_format - 1]}{bits // 8}")
    seen = None
    if sample_format == 1 and channels == 1 + len(extra) and photometric in (0, 1) and not set(extra) - {2}:
        seen = shown(samples[..., 0] if channels == 1 else samples, bits, white_is_zero=photometric == 0)
    elif sample_format == 1 and photometric == 2 and (channels, extra) in [(3, []), (4, [2])]:
        seen = shown(samples, bits)
    elif sample_format == 1 and photometric == 2 and (channels, extra) == (4, [1]):
        samples[..., :3] = np.minimum(samples[..., :3], samples[..., 3:])
        seen = shown(samples[..., :3], bits) + 255 - shown(samples[..., 3], bits)
    elif sample_format == 1 and photometric == 5 and (channels, extra) == (4, []):
        seen = inked(samples, bits)
    elif sample_format == 1 and photometric == 3 and (channels, extra) == (1, []) and bits <= 8:
        seen = PALETTE[: 2**bits][samples[..., 0]]
    colour_map = PALETTE[: 2 ** min(bits, 8)] * 257 if photometric == 3 else None
    content = tiff(
        samples, bits, photometric, extra, sample_format=sample_format, order=order, planar=planar,
        reversed_bits=reversed_bits, colour_map=colour_map,
    )  # fmt: skip
    seen_or_refused(content, seen, 3 if bits == 16 else 1)


@quick
@given(
    bits=st.sampled_from([1, 2, 4, 8, 16]), colour_type=st.integers(0, 6), interlaced=st.booleans(), hole=st.booleans()
)
def test_any_kind_of_png(bits: int, colour_type: int, interlaced: bool, hole: bool) -> None:
    channels = {2: 3, 4: 2, 6: 4}.get(colour_type)
    samples = random(bits, channels)
    allowed = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}.get(colour_type, set())
    seen, chunks = shown(samples, bits), []
    if colour_type == 3:
        seen = PALETTE[: 2 ** min(bits, 8)][samples % 256]
        chunks = [(b"PLTE", PALETTE[: 2 ** min(bits, 8)].astype(np.uint8).tobytes())]
    if hole and colour_type in (0, 2):
        chunks = [(b"tRNS", packed(samples[0, 0].reshape(1, -1), 16))]
        same = samples == samples[0, 0]
        seen = np.where(same[..., None] if channels is None else same.all(2, keepdims=True), 255, seen)
    taken = seen_or_refused(png(samples, bits, colour_type, *chunks, interlaced=interlaced), seen, 3)
    assert taken == (bits in allowed and not (hole and colour_type == 2 and bits == 16))


@quick
@given(highest=st.integers(1, 65535), channels=st.sampled_from([None, 3]), plain=st.booleans(), data=st.data())
def test_any_highest_value_of_a_pnm(highest: int, channels: int | None, plain: bool, data: st.DataObject) -> None:
    shape = (HEIGHT, WIDTH) if channels is None else (HEIGHT, WIDTH, channels)
    samples = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, highest + 1, shape)
    seen = samples * 255 / highest if highest > 1 or channels else 255 - samples * 255
    assert seen_or_refused(pnm(samples, highest, plain), seen[..., None] if channels is None else seen, 0.51)


OTHER_FORMATS = ["DDS", "EPS", "ICNS", "ICO", "IM", "MSP", "PCX", "PDF", "SGI", "SPIDER"]
PILLOW_MODES = [
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:IM image format")
@quick
@given(
    image_format=st.sampled_from([*MODES, *OTHER_FORMATS]),
    mode=st.sampled_from(PILLOW_MODES),
)
def test_any_format_in_any_mode_that_pillow_writes(image_format: str, mode: str) -> None:
    """What is taken shows the picture that was written; tolerance for the lossy formats."""
    ramp = np.linspace(16, 230, 64)[None, :].repeat(64, axis=0)
    rgb = Image.fromarray(np.stack([ramp, ramp.T, ramp[::-1]], axis=2).astype(np.uint8))
    if mode in ("I", "I;16", "F"):
        if image_format in ("AVIF", "GIF", "WEBP"):  # which Pillow writes cut off at 255
            return
        image = Image.fromarray((ramp * 257).astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
        seen = shown(ramp)
    else:
        try:
            image = rgb if mode == "RGB" else rgb.convert("RGBA" if mode == "RGBa" else "LA" if mode == "La" else mode)
            image = image.convert(mode)
            seen = np.asarray(image.convert("RGB"), dtype=float)
        except ValueError:  # Pillow has no way to this mode
            return
    try:
        content = encoded(image, image_format)
    except (OSError, ValueError, KeyError, TypeError, SystemError, NotImplementedError):  # the format has no such mode
        return
    name = f"x.{image_format.lower()}"
    lossy = image_format in ("AVIF", "GIF", "HEIF", "JPEG", "JXL", "MPO", "WEBP")
    taken = seen_or_refused(content, seen, 90 if lossy else 2, name)
    if taken:
        assert image_format in MODES
