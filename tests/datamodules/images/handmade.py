"""Image files written byte by byte from their formats' specifications, and the pixels that a person sees in them.

Nothing here uses Pillow, so that what Pillow reads can be held to it.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

Chunk = tuple[bytes, bytes]


def shown(samples: np.ndarray, bits: int = 8, white_is_zero: bool = False) -> np.ndarray:
    """Grey [H, W], RGB [H, W, 3], grey or RGB with alpha [H, W, 2 or 4] as float RGB 0…255, laid over white."""
    values = samples.astype(np.float64) * 255 / (2**bits - 1)
    if white_is_zero:
        values = 255 - values
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=2)
    if values.shape[2] == 2:
        values = values[..., [0, 0, 0, 1]]
    if values.shape[2] == 4:
        alpha = values[..., 3:] / 255
        values = values[..., :3] * alpha + 255 * (1 - alpha)
    return values


def packed(samples: np.ndarray, bits: int, order: str = ">", most_first: bool = True) -> bytes:
    """Rows [H, n] of samples of 1, 2, 4, 8 or 16 bits, each row on whole bytes."""
    if bits == 16:
        return samples.astype(f"{order}u2").tobytes()
    places = np.arange(bits)[::-1] if most_first else np.arange(bits)
    flat = (samples[..., None] >> places & 1).reshape(len(samples), -1).astype(np.uint8)
    return np.packbits(flat, axis=1, bitorder="big" if most_first else "little").tobytes()


def png(samples: np.ndarray, bits: int, colour_type: int, *chunks: Chunk, interlaced: bool = False) -> bytes:
    """PNG of samples [H, W] or [H, W, C], unfiltered; `chunks` such as PLTE and tRNS go before the pixels."""
    height, width = samples.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first column, first row, steps between columns and rows
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for column, row, across, down in passes:
        part = samples[row::down, column::across]
        if part.size:
            rows += b"".join(b"\0" + packed(line.reshape(1, -1), bits) for line in part)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    extra: Sequence[int] = (),
    *,
    sample_format: int = 1,
    order: str = "<",
    planar: bool = False,
    reversed_bits: bool = False,
    colour_map: np.ndarray | None = None,
    tags: dict[int, tuple[int, bytes, int]] | None = None,
) -> bytes:
    """Uncompressed TIFF of samples [H, W, C] in one strip per plane; `tags` adds (type, value, count) by number."""
    height, width, channels = samples.shape
    if sample_format > 1 or bits > 16:
        planes = np.moveaxis(samples, 2, 0) if planar else samples[np.newaxis]
        body = [plane.astype(samples.dtype.newbyteorder(order)).tobytes() for plane in planes]
    elif planar:
        body = [packed(samples[..., channel], bits, order) for channel in range(channels)]
    else:
        body = [packed(samples.reshape(height, -1), bits, order)]
    if reversed_bits:
        body = [np.packbits(np.unpackbits(np.frombuffer(part, np.uint8)), bitorder="little").tobytes() for part in body]
    sizes = [len(part) for part in body]
    starts = [8 + sum(sizes[:number]) for number in range(len(body))]

    def shorts(*values: int) -> tuple[int, bytes, int]:
        return 3, struct.pack(f"{order}{len(values)}H", *values), len(values)

    def longs(*values: int) -> tuple[int, bytes, int]:
        return 4, struct.pack(f"{order}{len(values)}I", *values), len(values)

    fields = {256: longs(width), 257: longs(height), 258: shorts(*[bits] * channels), 259: shorts(1)}
    fields |= {262: shorts(photometric), 273: longs(*starts), 277: shorts(channels), 278: longs(height)}
    fields |= {279: longs(*sizes), 284: shorts(1 + planar), 339: shorts(*[sample_format] * channels)}
    fields |= {338: shorts(*extra)} if extra else {}
    fields |= {266: shorts(2)} if reversed_bits else {}
    fields |= {320: shorts(*colour_map.T.ravel().tolist())} if colour_map is not None else {}
    fields |= tags or {}
    directory_at = 8 + sum(sizes) + sum(sizes) % 2
    values_at = directory_at + 2 + 12 * len(fields) + 4
    directory, values = struct.pack(f"{order}H", len(fields)), b""
    for tag, (kind, value, count) in sorted(fields.items()):
        inline = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(f"{order}I", values_at + len(values))
        values += (value + b"\0" * (len(value) % 2)) if len(value) > 4 else b""
        directory += struct.pack(f"{order}HHI", tag, kind, count) + inline
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", directory_at)
    return start + b"".join(body) + b"\0" * (sum(sizes) % 2) + directory + b"\0" * 4 + values


def pnm(samples: np.ndarray, highest: int, plain: bool = False, comment: bytes = b"") -> bytes:
    """PBM where the highest value is 1, PGM of [H, W], PPM of [H, W, 3]; as text where `plain`."""
    height, width = samples.shape[:2]
    kind = (1 if highest == 1 and samples.ndim == 2 else samples.ndim) + 3 * (not plain)
    header = b"P%d\n%s%d %d\n" % (kind, comment, width, height)
    header += b"" if kind in (1, 4) else b"%d\n" % highest
    if plain:
        return header + b"\n".join(b" ".join(b"%d" % value for value in row.ravel()) for row in samples) + b"\n"
    if kind == 4:
        return header + packed(samples, 1)
    return header + samples.astype(">u2" if highest > 255 else "u1").tobytes()


def bmp(
    samples: np.ndarray, bits: int, palette: np.ndarray | None = None, top_down: bool = False, alpha: bool = False
) -> bytes:
    """BMP of [H, W] with a palette [n, 3] at 1, 4 or 8 bits, or of RGB [H, W, 3 or 4] at 24 or 32 bits.

    The fourth channel is reserved and means nothing, unless `alpha` writes a header that says otherwise (version 4).
    """
    height, width = samples.shape[:2]
    colours = b"" if palette is None else np.pad(palette[:, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
    if palette is None:
        wide = np.zeros((height, width, bits // 8), np.uint8)
        wide[..., :3] = samples[..., 2::-1]
        if samples.shape[2] == 4:
            wide[..., 3] = samples[..., 3]
        lines = [row.tobytes() for row in wide]
    else:
        lines = [packed(row[None], bits) for row in samples]
    lines = [line.ljust((len(line) + 3) // 4 * 4, b"\0") for line in (lines if top_down else lines[::-1])]
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000) if alpha else ()
    return bmp_file(b"".join(lines), width, -height if top_down else height, bits, 3 * alpha, colours, masks)


def bmp_file(
    body: bytes, width: int, height: int, bits: int, compression: int, colours: bytes = b"", masks: Sequence[int] = ()
) -> bytes:
    """BMP with this body; four masks stand in a header of version 4, three behind that of version 3."""
    length = 108 if len(masks) == 4 else 40
    info = struct.pack(
        "<IiiHHIIiiII", length, width, height, 1, bits, compression, len(body), 0, 0, len(colours) // 4, 0
    )
    info = (info + struct.pack(f"<{len(masks)}I", *masks)).ljust(length, b"\0")
    start = 14 + len(info) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + colours + body


def bmp_runs(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """BMP of [H, W] with 256 colours, run-length coded: one pixel per run, then half a row as it is."""
    height, width = indices.shape
    colours = np.pad(palette[:, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
    body = b""
    for row in indices[::-1].tolist():
        rest = bytes(row[width // 2 :])
        runs = b"".join(bytes([1, value]) for value in row[: width // 2])
        body += runs + bytes([0, len(rest)]) + rest + b"\0" * (len(rest) % 2) + b"\0\0"
    return bmp_file(body + b"\0\1", width, height, 8, 1, colours)


def bmp_16(samples: np.ndarray, bits: tuple[int, int, int]) -> bytes:
    """BMP of RGB [H, W, 3] with 5 or 6 bits per channel, in words of 16 bits."""
    height, width = samples.shape[:2]
    shifts = bits[1] + bits[2], bits[2], 0
    words = sum(samples[..., channel] << shift for channel, shift in enumerate(shifts))
    body = b"".join(row.astype("<u2").tobytes().ljust((2 * width + 3) // 4 * 4, b"\0") for row in np.array(words)[::-1])
    masks = [(2**count - 1) << shift for count, shift in zip(bits, shifts, strict=True)]
    return bmp_file(body, width, height, 16, 3, masks=masks)


def tga(samples: np.ndarray, alpha_bits: int = 0, top_down: bool = False, packets: bool = False) -> bytes:
    """TGA of [H, W], RGB or RGBA; in raw packets of the run-length coding where `packets`."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    kind = (3 if channels == 1 else 2) + 8 * packets
    pixels = samples.reshape(height, width, channels)
    pixels = pixels if channels == 1 else pixels[..., [2, 1, 0, 3][:channels]]
    pixels = pixels if top_down else pixels[::-1]
    header = struct.pack(
        "<BBBHHBHHHHBB", 0, 0, kind, 0, 0, 0, 0, 0, width, height, 8 * channels, 32 * top_down + alpha_bits
    )
    if not packets:
        return header + pixels.astype(np.uint8).tobytes()
    return header + b"".join(
        bytes([len(part) - 1]) + part.astype(np.uint8).tobytes()
        for row in pixels
        for part in np.split(row, range(128, width, 128))
    )


def gif(
    indices: np.ndarray,
    palette: np.ndarray,
    transparent: int | None = None,
    canvas: tuple[int, int] | None = None,
    interlaced: bool = False,
) -> bytes:
    """GIF of one frame [H, W] in the upper left corner of the canvas (width, height), with 256 colours [256, 3]."""
    height, width = indices.shape
    rows = range(height)
    if interlaced:
        rows = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4), *range(1, height, 2)]
    codes: list[int] = []
    for number, value in enumerate(indices[list(rows)].ravel().tolist()):
        codes += [256] * (number % 200 == 0) + [value]  # clear the table before its codes need a tenth bit
    bits = (np.array([*codes, 257])[:, None] >> np.arange(9) & 1).astype(np.uint8)
    data = np.packbits(bits.ravel(), bitorder="little").tobytes()
    blocks = b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255))
    control = b"" if transparent is None else b"!\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", *(canvas or (width, height)), 0xF7, 0, 0)
        + palette.astype(np.uint8).tobytes()
        + control
        + b","
        + struct.pack("<HHHHB", 0, 0, width, height, 64 * interlaced)
        + b"\x08"
        + blocks
        + b"\0;"
    )


def qoi(samples: np.ndarray) -> bytes:
    """QOI of RGB or RGBA [H, W, C], each pixel written in full."""
    height, width, channels = samples.shape
    header = b"qoif" + struct.pack(">IIBB", width, height, channels, 0)
    mark = b"\xfe" if channels == 3 else b"\xff"
    return (
        header + b"".join(mark + bytes(pixel) for pixel in samples.reshape(-1, channels).tolist()) + b"\0" * 7 + b"\1"
    )


def fits(values: np.ndarray, extension: bool = False, **cards: float) -> bytes:
    """FITS of integers or floats [..., H, W], with further header cards such as BZERO; or one of its extensions."""
    bits = values.dtype.itemsize * (8 if values.dtype.kind != "f" else -8)
    axes = {f"NAXIS{number}": size for number, size in enumerate(reversed(values.shape), 1)}
    header = {"BITPIX": bits, "NAXIS": values.ndim, **axes, **cards}
    first = "XTENSION= 'IMAGE   '           " if extension else "SIMPLE  =                    T"
    lines = [first, *(f"{key:<8}= {value:>20}" for key, value in header.items()), "END"]
    text = "".join(f"{line:<80}" for line in lines)
    body = values.astype(values.dtype.newbyteorder(">")).tobytes()
    return text.ljust(-(-len(text) // 2880) * 2880).encode() + body.ljust(-(-len(body) // 2880) * 2880, b"\0")


def dicom(
    pixels: bytes,
    height: int,
    width: int,
    allocated: int,
    stored: int | None = None,
    *,
    photometric: str = "MONOCHROME2",
    signed: bool = False,
    channels: int = 1,
    syntax: str = "1.2.840.10008.1.2.1",
    more: Sequence[tuple[int, int, str, bytes]] = (),
    without: Sequence[int] = (),
) -> bytes:
    """DICOM of one frame whose bytes are as the transfer syntax stores them.

    Args:
        more: further elements (group, number, value representation, value), such as RescaleSlope.
        without: numbers in group 0028 to leave out.
    """
    order = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
    explicit, wrapped = syntax != "1.2.840.10008.1.2", syntax not in PLAIN

    def element(group: int, number: int, kind: str, value: bytes, order: str, explicit: bool) -> bytes:
        tag, value = struct.pack(f"{order}HH", group, number), value + b"\0" * (len(value) % 2)
        if kind == "encapsulated":
            return tag + b"OB\0\0\xff\xff\xff\xff" + value
        if not explicit:
            return tag + struct.pack("<I", len(value)) + value
        if kind in ("OB", "OW", "SQ"):
            return tag + kind.encode() + struct.pack(f"{order}HI", 0, len(value)) + value
        return tag + kind.encode() + struct.pack(f"{order}H", len(value)) + value

    def short(value: int) -> bytes:
        return struct.pack(f"{order}H", value)

    meta = element(2, 0x10, "UI", syntax.encode(), "<", True)
    meta = element(2, 0, "UL", struct.pack("<I", len(meta)), "<", True) + meta
    stored = stored or allocated
    numbers = {2: channels, 0x10: height, 0x11: width, 0x100: allocated, 0x101: stored, 0x102: stored - 1}
    numbers |= {0x103: signed} | ({6: 0} if channels > 1 else {})
    elements = [(0x28, number, "US", short(value)) for number, value in numbers.items() if number not in without]
    elements += [(0x28, 4, "CS", photometric.encode() + b" " * (len(photometric) % 2)), *more]
    if wrapped:  # an empty table of offsets, one fragment, the end
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
        item += struct.pack("<HHI", 0xFFFE, 0xE000, len(pixels) + len(pixels) % 2) + pixels + b"\0" * (len(pixels) % 2)
        elements.append((0x7FE0, 0x10, "encapsulated", item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)))
    else:
        elements.append((0x7FE0, 0x10, "OW" if allocated > 8 else "OB", pixels))
    body = b"".join(element(*one, order, explicit) for one in sorted(elements, key=lambda one: one[:2]))
    return b"\0" * 128 + b"DICM" + meta + body


PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")


def dicom_runs(samples: np.ndarray) -> bytes:
    """Samples [H, W] of 8, 16 or 32 bits in DICOM's RLE: a segment for each byte, the highest first, by rows."""
    size, segments = samples.dtype.itemsize, []
    for place in range(size):
        plane = samples.astype(samples.dtype.newbyteorder(">")).view(np.uint8).reshape(*samples.shape, size)[..., place]
        rows = [bytes([len(row) - 1]) + bytes(row) for row in plane.tolist()]  # up to 128 literal bytes each
        segments.append(b"".join(rows) + b"\0" * (len(b"".join(rows)) % 2))
    starts = [64 + sum(map(len, segments[:place])) for place in range(size)]
    return struct.pack("<16I", size, *starts, *[0] * (15 - size)) + b"".join(segments)
