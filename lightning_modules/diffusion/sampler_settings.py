"""The settings of the sampler: `sampler=`."""

import math
from dataclasses import dataclass

from storage.settings import Settings, setting

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
    S_min: float = setting(0.0, "lowest noise level at which noise is added", low=0)
    S_max: float = setting(math.inf, "highest noise level at which noise is added", low=0)
    S_noise: float = setting(1.0, "standard deviation of the noise that is added", low=0)
    precision: str = setting(
        "32-true", "of the network; the solver works in float64", choices=("32-true", "bf16-mixed", "16-mixed")
    )
    labels: str = setting(
        "low_discrepancy",
        "how clusters are drawn by seed: low_discrepancy, each in its share of any consecutive seeds; independent",
        choices=("low_discrepancy", "independent"),
    )
    guidance: float = setting(1.0, "classifier-free guidance; needs training.label_dropout > 0", low=0)
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

    def num_steps(self, resolution: int) -> int:
        """`steps`, or the published number for images of this resolution."""
        return self.steps or (40 if resolution >= LARGE_FROM_PIXELS else 18)
