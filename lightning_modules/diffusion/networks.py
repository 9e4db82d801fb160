"""From settings to a network: the three published architectures by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from lightning_modules.diffusion.adm import ADM
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.unet import UNet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "ddpmpp": UNet,
    "ncsnpp": partial(UNet, fourier_features=True, input_pyramid=True, resample_taps=(1, 3, 3, 1)),
    "adm": ADM,
}


def build_network(
    settings: NetworkSettings, img_resolution: int, img_channels: int, label_dim: int = 0, augment_dim: int = 0
) -> nn.Module:
    """A freshly initialised network F(x, c_noise, class_labels, augment_labels).

    Raises ValueError where the image size cannot be halved as often as the settings want.
    """
    num_levels = len(settings.channel_mult)
    step = 2 ** (num_levels - 1)
    if img_resolution < step or img_resolution % step:
        below = img_resolution // step * step
        fitting = f"{below} or {below + step}" if below else f"{step}"
        raise ValueError(
            f"images of {img_resolution}×{img_resolution} cannot be halved {num_levels - 1} times, as the {num_levels} "
            f"levels of channel_mult={[*settings.channel_mult]} need: resize them to a multiple of {step} "
            f"(such as {fitting}), or use fewer levels"
        )
    return ARCHITECTURES[settings.architecture](
        img_resolution=img_resolution,
        img_channels=img_channels,
        label_dim=label_dim,
        augment_dim=augment_dim,
        model_channels=settings.model_channels,
        channel_mult=settings.channel_mult,
        num_blocks=settings.num_blocks,
        attn_resolutions=settings.attn_resolutions,
        dropout=settings.dropout,
    )
