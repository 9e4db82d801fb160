"""The settings of the network: `network=`."""

from dataclasses import dataclass

from storage.additions import NETWORKS
from storage.settings import Settings, setting

DENOISER_FILE = "denoiser.safetensors"  # in the folder of a run: the network with its weights


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """A U-Net; the defaults are those of EDM's DDPM++ for 32×32 images (arXiv 2206.00364)."""

    group = "network"

    architecture: str = setting(
        "ddpmpp", "DDPM++, NCSN++ or ADM", choices=("ddpmpp", "ncsnpp", "adm"), additions=NETWORKS
    )
    model_channels: int = setting(128, "channels at the full resolution, times channel_mult", low=2)
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
