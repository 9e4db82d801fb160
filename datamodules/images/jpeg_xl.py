"""What the header of a JPEG XL file says, which the plugin of Pillow decodes without asking.

Source: ISO/IEC 18181-1, D.2 and D.3 (the codestream's headers); 18181-2 (the boxes around it).
"""

import struct

from PIL import Image

RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width to height


class Bits:
    """Numbers of a few bits each, the lowest bit of a byte first."""

    def __init__(self, content: bytes) -> None:
        self.rest = int.from_bytes(content, "little")

    def take(self, count: int) -> int:
        value = self.rest & ((1 << count) - 1)
        self.rest >>= count
        return value

    def length(self) -> int:
        """A length in pixels, of which two bits say how many bits it has."""
        return self.take((9, 13, 18, 30)[self.take(2)]) + 1

    def size(self) -> tuple[int, int]:
        """Width and height."""
        small = self.take(1)
        height = (self.take(5) + 1) * 8 if small else self.length()
        ratio = self.take(3)
        if ratio:
            return height * RATIOS[ratio][0] // RATIOS[ratio][1], height
        return (self.take(5) + 1) * 8 if small else self.length(), height


def jxl_problem(content: bytes) -> str | None:
    """Why a JPEG XL file is not taken; None where it is one upright picture, not too large."""
    bits = Bits(codestream(content)[2:66])
    width, height = bits.size()
    if width * height > (limit := Image.MAX_IMAGE_PIXELS or 0):
        return f"{width}×{height} pixels, more than {limit / 1e6:.0f} megapixels; cut it into tiles"
    if bits.take(1) or not bits.take(1):  # all as usual, or no further fields
        return None
    if bits.take(3):
        return "a JPEG XL that its header turns; turn its pixels: djxl FILE.jxl FILE.png"
    if bits.take(1):
        bits.size()  # as which it is meant to be shown
    if bits.take(1) or bits.take(1):
        return "a JPEG XL with a preview or several frames; save one as PNG: djxl FILE.jxl FILE.png"
    return None


def codestream(content: bytes) -> bytes:
    """The codestream, or its first part, in a file with boxes or without. Raises ValueError where there is none."""
    if content.startswith(b"\xff\x0a"):
        return content
    place = 0
    while place + 16 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", content, place + 8), 16
        if kind in (b"jxlc", b"jxlp"):
            return content[place + head + 4 * (kind == b"jxlp") :]
        if length < head:  # up to the end
            break
        place += length
    raise ValueError("no codestream in this JPEG XL file")
