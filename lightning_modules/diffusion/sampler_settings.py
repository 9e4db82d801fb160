"""The settings of the sampler: `sampler=`."""

import math
from dataclasses import dataclass, replace
from typing import Any

from storage.settings import Settings, setting

ITSELF = ("label", "sliding_window")  # guides made of the model itself
AUTO, HEAD = "auto", "head"
LARGE_FROM_PIXELS = 64  # from this resolution on, EDM takes 40 steps, below 18


@dataclass(frozen=True)
class SamplerSettings(Settings):
    """EDM's sampler (arXiv 2206.00364, algorithms 1 and 2); the defaults are deterministic."""

    group = "sampler"

    solver: str = setting("heun", "of second or of first order", choices=("heun", "euler"))
    steps: int | None = setting(None, "steps of the solver; null: 18 up to 32×32 pixels, 40 from 64×64 on", low=1)
    sigma_min: float = setting(0.002, "lowest noise level before 0", above=0)
    sigma_max: float = setting(80.0, "highest noise level, where sampling starts", above=0)
    rho: float = setting(7.0, "the larger, the shorter the steps near sigma_min", above=0)
    churn: float = setting(0.0, "S_churn, the amount of fresh noise; 0 is the deterministic sampler", low=0)
    S_tmin: float = setting(0.0, "lowest noise level at which noise is added", low=0)
    S_tmax: float = setting(math.inf, "highest noise level at which noise is added", low=0)
    S_noise: float = setting(1.0, "standard deviation of the noise that is added", low=0)
    precision: str = setting(
        "32-true", "of the network; the solver works in float64", choices=("32-true", "bf16-mixed", "16-mixed")
    )
    labels: str = setting(
        "low_discrepancy",
        "how clusters are drawn by seed: low_discrepancy, each in its share of any consecutive seeds; independent",
        choices=("low_discrepancy", "independent"),
    )
    guidance: float = setting(1.0, "strength w of the guidance, D_guide + w (D − D_guide); 1: none", low=0)
    guide: str = setting(
        "label",
        "label: the model without its label (training.label_dropout > 0); auto: the early model beside it; "
        "sliding_window: the model on parts of the image; head: the clustering head (head=); FILE: another denoiser",
        path=True,
    )
    window: int | None = setting(None, "side of a sliding window in pixels; null: about 3/4 of the image", low=1)
    guidance_interval: list[float] | None = setting(
        None, "[lowest,highest] noise level that is guided (arXiv 2404.07724); null: all", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_min < self.sigma_max < math.inf:
            self.refuse(
                "sigma_max",
                f"the noise falls from sigma_max to {self.key('sigma_min')}={self.sigma_min}, so a finite number above "
                "that is expected, such as 80",
            )
        interval = self.guidance_interval
        if interval is not None and not (len(interval) == 2 and interval[0] < interval[1]):
            self.refuse(
                "guidance_interval", "the lowest and the highest guided noise level are expected, such as [0.2,3]"
            )

    @property
    def guided_by_label(self) -> bool:
        """Whether the model guides itself by what it makes without its label (classifier-free guidance)."""
        return self.guidance != 1 and self.guide == "label"

    @property
    def guide_file(self) -> str | None:
        """The file of the denoiser that guides, `auto` for the one beside the model; None where no other guides."""
        return None if self.guidance == 1 or self.guide in (*ITSELF, HEAD) else self.guide

    @property
    def guided_by_head(self) -> bool:
        """Whether a clustering head guides the model."""
        return self.guidance != 1 and self.guide == HEAD

    def identity(self) -> dict[str, Any]:
        """The values that tell one run from another; of a guide's file, where it lies does not."""
        named = self.guide in (*ITSELF, AUTO, HEAD)
        return {**super().identity(), "guide": self.guide if named else "file"}

    @property
    def while_training(self) -> "SamplerSettings":
        """The sampler of the images that are looked at while a model trains, which has no guide but itself."""
        return self if self.guide in ITSELF else replace(self, guidance=1.0)

    def window_size(self, resolution: int, factor: int) -> int:
        """`window`, or the largest multiple of the network's down-sampling `factor` within 3/4 of the image.

        Raises:
            UserError: it is no such multiple, or not smaller than the image.
        """
        size = self.window or 3 * resolution // 4 // factor * factor
        if size % factor or not 0 < size < resolution:
            self.refuse("window", f"a multiple of {factor} below the image's {resolution} pixels is expected")
        return size

    def num_steps(self, resolution: int) -> int:
        """`steps`, or the published number for images of this resolution."""
        return self.steps or (40 if resolution >= LARGE_FROM_PIXELS else 18)
