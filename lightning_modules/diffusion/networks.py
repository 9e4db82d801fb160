"""From settings to a network: the three published architectures by name."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from torch import nn

from lightning_modules.diffusion.adm import ADM
from lightning_modules.diffusion.unet import UNet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "ddpmpp": UNet,
    "ncsnpp": partial(UNet, fourier_features=True, input_pyramid=True, resample_taps=(1, 3, 3, 1)),
    "adm": ADM,
}


@dataclass(frozen=True)
class NetworkSettings:
    """What a researcher chooses about a network; `unet.UNet` explains each."""

    architecture: str
    model_channels: int
    channel_mult: tuple[int, ...]
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            nearest = _nearest(self.architecture, ARCHITECTURES)
            raise ValueError(f"architecture is {self.architecture!r}; expected one of {[*ARCHITECTURES]}{nearest}")
        for name in ("model_channels", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(
                f"channel_mult is {[*self.channel_mult]}; expected one multiplier of 1 or more for each level"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected a probability from 0 up to, but not, 1")

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Self:
        """Reads `{"architecture": ..., "model_channels": ..., ...}`; an unknown or missing key is a ValueError."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in settings:
            if key not in names:
                raise ValueError(f"unknown network setting {key!r}; expected {names}{_nearest(str(key), names)}")
        if missing := [name for name in names if name not in settings]:
            raise ValueError(f"network settings lack {missing}; expected {names}")
        return cls(
            architecture=str(settings["architecture"]),
            model_channels=int(settings["model_channels"]),
            channel_mult=tuple(int(mult) for mult in settings["channel_mult"]),
            num_blocks=int(settings["num_blocks"]),
            attn_resolutions=tuple(int(res) for res in settings["attn_resolutions"]),
            dropout=float(settings["dropout"]),
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as a dictionary that survives a round trip through JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }


def build_network(
    settings: Mapping[str, Any], img_resolution: int, img_channels: int, label_dim: int = 0, augment_dim: int = 0
) -> nn.Module:
    """A freshly initialised network F(x, c_noise, class_labels, augment_labels).

    Raises ValueError where the settings are wrong or the image size cannot be halved as often as they want.
    """
    chosen = NetworkSettings.from_mapping(settings)
    num_levels = len(chosen.channel_mult)
    step = 2 ** (num_levels - 1)
    if img_resolution < step or img_resolution % step:
        below = img_resolution // step * step
        fitting = f"{below} or {below + step}" if below else f"{step}"
        raise ValueError(
            f"images of {img_resolution}×{img_resolution} cannot be halved {num_levels - 1} times, as the {num_levels} "
            f"levels of channel_mult={[*chosen.channel_mult]} need: resize them to a multiple of {step} "
            f"(such as {fitting}), or use fewer levels"
        )
    return ARCHITECTURES[chosen.architecture](
        img_resolution=img_resolution,
        img_channels=img_channels,
        label_dim=label_dim,
        augment_dim=augment_dim,
        model_channels=chosen.model_channels,
        channel_mult=chosen.channel_mult,
        num_blocks=chosen.num_blocks,
        attn_resolutions=chosen.attn_resolutions,
        dropout=chosen.dropout,
    )


def _nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
