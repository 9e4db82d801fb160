"""The settings of the network: `network=`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from storage.errors import UserError
from storage.settings import Settings, setting


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """A U-Net; the defaults are those of EDM's DDPM++ for 32×32 images (arXiv 2206.00364)."""

    group = "network"

    architecture: str = setting("ddpmpp", "DDPM++, NCSN++ or ADM", choices=("ddpmpp", "ncsnpp", "adm"))
    model_channels: int = setting(128, "channels at the full resolution, times channel_mult", low=1)
    channel_mult: list[int] = setting(
        [2, 2, 2], "multiplier of model_channels at each level, from the full resolution down", low=1
    )
    num_blocks: int = setting(4, "residual blocks per level of the encoder; the decoder has one more", low=1)
    attn_resolutions: list[int] = setting([16], "resolutions with self-attention, in pixels", low=1)
    dropout: float = setting(0.13, "dropout probability within the blocks", low=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channel_mult:
            self.refuse("channel_mult", "one multiplier of 1 or more for each level is expected, such as [2,2,2]")

    def to_json(self) -> dict[str, Any]:
        """What a denoiser's file keeps of its network."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The settings that a denoiser's file holds.

        Raises:
            UserError: one is unknown, as in a file of a later version, or outside its range.
        """
        known = [own.name for own in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise UserError(f"unknown network settings {', '.join(unknown)}; expected {', '.join(known)}.")
        return cls(**values)
