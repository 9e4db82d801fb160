"""The settings of EDM's training: `training=`."""

from dataclasses import dataclass
from typing import Any

from storage.additions import OBJECTIVES
from storage.settings import Settings, setting


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """EDM training (arXiv 2206.00364, table 1) with the batch and duration of C-EDM (arXiv 2403.00570)."""

    group = "training"

    batch_size: int = setting(1024, "images in an optimizer step, over all devices", low=1)
    max_batch_per_device: Any = setting(
        "auto",
        "larger shares are accumulated over several passes; auto: 128, or by the memory of the GPU; null: one pass",
        low=1,
        identifies=False,
    )
    duration_kimg: float = setting(200_000.0, "thousands of images to train on", above=0)
    lr: float = setting(1e-3, "learning rate after the ramp", above=0)
    lr_rampup_kimg: float = setting(10_000.0, "thousands of images over which the learning rate rises", low=0)
    objective: str = setting("edm", "weighting and noise levels", choices=("edm",), additions=OBJECTIVES)
    P_mean: float = setting(-1.2, "mean of ln σ, the noise levels of the training")
    P_std: float = setting(1.2, "standard deviation of ln σ", low=0)
    augment_probability: float = setting(
        0.12, "probability of each transform but the x flip, which has ½; 0 turns all off", low=0, high=1
    )
    label_dropout: float = setting(0.0, "share of labels hidden, for classifier-free guidance", low=0, high=1)
    ema_halflife_kimg: float = setting(500.0, "half-life of the averaged weights, which generate images", above=0)
    extra_ema_halflife_kimg: list[float] = setting(
        [], "more averages, such as [50,2000]: each a file denoiser-ema50kimg.safetensors", above=0
    )
    ema_rampup_ratio: float | None = setting(
        0.05, "half-lives are at most this share of the images seen; null: no limit", low=0
    )
    keep_guide: bool = setting(
        True, "keep the model after 1/8 of the training, for sampler.guide=auto", identifies=False
    )
    posthoc_snapshots: int = setting(
        0, "how often to store the power-function averages that `cedm average` needs; 0: none, 16 are plenty", low=0
    )
    num_workers: int | None = setting(
        None, "processes that decode images; null: as many as pay", low=0, identifies=False
    )
    memory_gb: float = setting(
        8.0, "images are decoded once, into cache_dir, up to this size; else each time", low=0, identifies=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        largest = self.max_batch_per_device
        if largest not in (None, "auto") and (not isinstance(largest, int) or isinstance(largest, bool)):
            self.refuse("max_batch_per_device", "auto, null or a whole number from 1 is expected")
        if len({self.ema_halflife_kimg, *self.extra_ema_halflife_kimg}) <= len(self.extra_ema_halflife_kimg):
            self.refuse(
                "extra_ema_halflife_kimg",
                f"half-lives name files, so they differ from one another and from {self.key('ema_halflife_kimg')}="
                f"{self.ema_halflife_kimg}, such as [50,2000]",
            )
