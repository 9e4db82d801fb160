"""Settings of `cedm average`: which averages of a run's weights to put together, and how they are compared."""

from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.generate_settings import SamplingSettings
from storage.settings import REQUIRED, setting


@dataclass(frozen=True)
class AverageSettings(SamplingSettings):
    """`cedm average`: the averages that a training stored → one of any other length, and the best of several."""

    run: str = setting(REQUIRED, "folder of a training with training.posthoc_snapshots", identifies=False, path=True)
    length: Any = setting(
        [0.02, 0.05, 0.1, 0.15, 0.2],
        "relative width of the average, above 0 and below 0.2887; of several, the least distance tells the best",
    )
    num: int | None = setting(None, "images of each distance; null: evaluation.num_images", low=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = self.lengths
        valid = all(isinstance(each, int | float) and 0 < each < 12**-0.5 for each in lengths)
        if not (lengths and valid and len({f"{each:g}" for each in lengths}) == len(lengths)):
            self.refuse("length", "a number above 0 and below 0.2887, or a list of different ones, is expected")

    @property
    def lengths(self) -> list[float]:
        """All that are asked for."""
        return list(self.length) if isinstance(self.length, list) else [self.length]
