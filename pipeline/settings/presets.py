"""The settings that follow from a user's own images: `preset=`."""

from dataclasses import dataclass
from typing import Any

from storage.settings import Settings, setting

FEW_IMAGES = 10_000  # a network of 60 M parameters would learn so few by heart
PACKAGED = "efficientnet_lite0"  # the backbone whose weights come with pip


@dataclass(frozen=True)
class PresetSettings(Settings):
    """Which settings a data set starts with; named data sets bring those that are published for them."""

    group = "preset"

    name: str = setting("published", "see below", choices=("auto", "laptop", "published"))
    settings: dict[str, Any] = setting({}, "what it has set; filled in when the images are looked at")


@dataclass(frozen=True)
class OwnImages:
    """What a preset looks at.

    Attributes:
        num_images: how many there are.
        side: the median of what becomes the side of the training image: the shorter side, of padded images the longer.
        channels: 1 where no pixel of any image has a colour, else 3; of an array as many as it has.
    """

    num_images: int
    side: int
    channels: int


def preset_values(preset: str, images: OwnImages, gpu: bool, packaged: bool) -> tuple[str, dict[str, Any]]:
    """laptop or published, and what it sets for these images. What a user types wins over it.

    | preset             | laptop                                   | published                              |
    |--------------------|------------------------------------------|----------------------------------------|
    | auto chooses it    | without a CUDA GPU, or for fewer than    | with a CUDA GPU and 10,000 images or   |
    |                    | 10,000 images                            | more                                   |
    | dataset.channels   | 1 where no pixel has a colour, else 3    | the same                               |
    | dataset.resolution | the median side, rounded down to a       | 64; 32 where the median side is below  |
    |                    | multiple of 4, from 8 to 32              | 48                                     |
    | backbone           | efficientnet_lite0 where it is installed | dino_vitb16                            |
    |                    | (cluster-conditioned-diffusion[backbone])|                                        |
    |                    | and the images are grey or RGB; else     |                                        |
    |                    | pixels                                   |                                        |
    | clusters           | one for 100 images, from 2 to 100        | one for 100 images, from 2 to 400      |
    | network            | ddpmpp_small with a third level          | ddpmpp_64; ddpmpp at 32×32             |
    | training           | 48 kimg at 32×32; more where images are  | 200,000 kimg                           |
    |                    | smaller, up to 200                       |                                        |

    Args:
        preset: auto, laptop or published.
        gpu: whether a CUDA GPU will work.
        packaged: whether the backbone whose weights come with pip is installed.
    """
    if preset == "auto":
        preset = "published" if gpu and images.num_images >= FEW_IMAGES else "laptop"
    values = laptop(images, packaged) if preset == "laptop" else published(images)
    return preset, {"dataset.channels": images.channels, **values}


def laptop(images: OwnImages, packaged: bool) -> dict[str, Any]:
    """Minutes on two CPU cores; all numbers are our own choice."""
    resolution = max(8, min(32, images.side // 4 * 4))
    backbone = PACKAGED if packaged and images.channels in (1, 3) else "pixels"
    kimg = min(200, round(48 * (32 / resolution) ** 2))
    return {
        "dataset.resolution": resolution,
        "backbone": backbone,
        "clustering.num_clusters": clusters(images, 100),
        "clustering.num_neighbours": max(1, min(20, images.num_images // 4)),
        "clustering.standardise": True,
        "clustering.num_heads": 4,
        "clustering.batch_size": min(256, images.num_images),
        "clustering.max_epochs": max(10, min(200, 150_000 // images.num_images)),
        "clustering.warmup_epochs": 5,
        "clustering.lr": 1e-3,
        "network": "ddpmpp_small",
        "network.channel_mult": [1, 2, 2],
        "network.attn_resolutions": [resolution // 4],
        "training.batch_size": min(32, images.num_images),
        "training.duration_kimg": kimg,
        "training.lr": 1e-3,
        "training.lr_rampup_kimg": 3,
        "training.ema_halflife_kimg": 5,
        "training.augment_probability": 0.0,  # a mirrored letter is none
        "evaluation.backbone": backbone,
        "evaluation.every_kimg": kimg,
        "evaluation.num_images": 250,
        "evaluation.num_final": 1000,
        "evaluation.grid_every_kimg": kimg / 2,
        "evaluation.snapshot_every_kimg": kimg / 8,
        "evaluation.log_every_kimg": 1,
        "trainer.channels_last": False,
    }


def published(images: OwnImages) -> dict[str, Any]:
    """Of the published settings those that are nearest: FFHQ's for 64×64 stand in configs/dataset, here CIFAR-10's."""
    values: dict[str, Any] = {"dataset.resolution": 64, "clustering.num_clusters": clusters(images, 400)}
    if images.side < 48:
        own = {"network": "ddpmpp", "training.lr": 1e-3, "training.augment_probability": 0.12}
        return {**values, "dataset.resolution": 32, **own}
    return values


def clusters(images: OwnImages, most: int) -> int:
    """One for 100 images, as in C-EDM's experiments there are 100 to 500 for each."""
    return max(2, min(most, images.num_images // 100))
