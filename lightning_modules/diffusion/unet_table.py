"""A U-Net as a table of its layers, worked out from the settings before anything is built.

The encoder goes down the levels, each half the size of the one above, and the decoder comes back up. Every block of the
decoder reads, beside what comes before it, one output of the encoder's level of the same size: the latest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

from lightning_modules.diffusion.network_settings import NetworkSettings

Kind = Literal["convolution", "block", "down", "up", "pyramid", "normalisation"]


class Layer(NamedTuple):
    """A row of the table: a layer, in the order of the forward pass. It reads the output of the row above.

    Attributes:
        name: Its place in the network, by which published weights are found.
        kind: `convolution`: 3×3. `block`: a residual block; `down` and `up`: one that halves or doubles the resolution.
            `pyramid`: carries the residual input pyramid of NCSN++ (arXiv 2011.13456, section H.1) one level down, and
            adds it. `normalisation`: with SiLU after it.
        in_channels, out_channels: Channels of what it reads (what it joins included) and returns.
        resolution: Height and width of what it returns, pixels.
        attention: Whether a block has self-attention.
        joins: The layer of the encoder whose output is concatenated to what it reads.
    """

    name: str
    kind: Kind
    in_channels: int
    out_channels: int
    resolution: int
    attention: bool = False
    joins: str | None = None


@dataclass(frozen=True)
class Design:
    """What the tables of DDPM++, NCSN++ and ADM differ in.

    Attributes:
        wide_input: The first convolution has the channels of the first level, not `model_channels`.
        attention_throughout: In the decoder too, all blocks of a level have attention, not the last one alone.
        pyramid: The encoder is given the image at every resolution.
        ending: Names of the last normalisation and convolution; {} stands for the size of the images.
    """

    wide_input: bool
    attention_throughout: bool
    pyramid: bool
    ending: tuple[str, str]


class Level(NamedTuple):
    """All that happens at one resolution.

    Attributes:
        resolution: Height and width, pixels.
        width: Channels of its blocks.
        above, below: Those of the levels that it takes its input from, on the way down and on the way up; None: none.
        pyramid: Channels of the input pyramid as it comes down to this level; None: there is none.
        attention: Whether the encoder's blocks have attention.
    """

    resolution: int
    width: int
    above: int | None
    below: int | None
    pyramid: int | None
    attention: bool

    def place(self, half: Literal["enc", "dec"], layer: str) -> str:
        """The name of a layer of this level: `enc.32x32_block0`."""
        return f"{half}.{self.resolution}x{self.resolution}_{layer}"


def unet_table(design: Design, settings: NetworkSettings, img_resolution: int, img_channels: int) -> list[Layer]:
    """The layers of a network for images of this size."""
    levels = levels_of(design, settings, img_resolution, img_channels)
    top = levels[0]
    first_width = top.width if design.wide_input else settings.model_channels
    first = Layer(top.place("enc", "conv"), "convolution", img_channels, first_width, img_resolution)
    encoder = [encoder_level(level, settings.num_blocks, first) for level in levels]
    decoder = [
        decoder_level(level, rows[-settings.num_blocks - 1 :], design.attention_throughout)
        for level, rows in zip(levels, encoder, strict=True)
    ]
    norm, conv = (name.format(f"{img_resolution}x{img_resolution}") for name in design.ending)
    ending = [
        Layer(norm, "normalisation", top.width, top.width, img_resolution),
        Layer(conv, "convolution", top.width, img_channels, img_resolution),
    ]
    return list(chain(*encoder, *reversed(decoder), ending))


def levels_of(design: Design, settings: NetworkSettings, img_resolution: int, img_channels: int) -> list[Level]:
    """The levels, from the size of the images down."""
    widths = [settings.model_channels * multiplier for multiplier in settings.channel_mult]
    pyramid = [None, img_channels, *widths] if design.pyramid else [None] * len(widths)
    resolutions = [img_resolution // 2**depth for depth in range(len(widths))]
    attention = [resolution in settings.attn_resolutions for resolution in resolutions]
    fields = zip(resolutions, widths, [None, *widths], [*widths[1:], None], pyramid, attention, strict=False)
    return [Level(*values) for values in fields]


def encoder_level(level: Level, num_blocks: int, first: Layer) -> list[Layer]:
    """From the level above down to this one, then its blocks; `first` opens the level that has none above."""
    if level.above is None:
        rows = [first]
    else:
        rows = [Layer(level.place("enc", "down"), "down", level.above, level.above, level.resolution)]
    if level.above and level.pyramid:
        name = level.place("enc", "aux_residual")
        rows.append(Layer(name, "pyramid", level.pyramid, level.above, level.resolution))
    for number in range(num_blocks):
        name, reads = level.place("enc", f"block{number}"), rows[-1].out_channels
        rows.append(Layer(name, "block", reads, level.width, level.resolution, level.attention))
    return rows


def decoder_level(level: Level, kept: Sequence[Layer], attention_throughout: bool) -> list[Layer]:
    """From the level below up to this one, then a block for each layer of the encoder that was kept, the latest first.

    Below the last level there is nothing: two blocks turn round there, the first of them with attention.
    """
    if level.below is None:
        turn = Layer(level.place("dec", "in0"), "block", level.width, level.width, level.resolution, attention=True)
        rows = [turn, turn._replace(name=level.place("dec", "in1"), attention=False)]
    else:
        rows = [Layer(level.place("dec", "up"), "up", level.below, level.below, level.resolution)]
    for number, joined in enumerate(reversed(kept)):
        name, reads = level.place("dec", f"block{number}"), rows[-1].out_channels + joined.out_channels
        attention = level.attention and (attention_throughout or joined is kept[0])
        rows.append(Layer(name, "block", reads, level.width, level.resolution, attention, joined.name))
    return rows
