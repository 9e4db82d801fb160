"""Settings of embedding a data set."""

from dataclasses import dataclass
from typing import ClassVar

from storage.settings import Settings, setting


@dataclass(frozen=True)
class EmbeddingSettings(Settings):
    """How embeddings are computed."""

    group: ClassVar[str] = "embedding"

    precision: str = setting(
        "auto", "auto: bfloat16 on GPUs that compute in it", choices=("auto", "32-true", "bf16-mixed")
    )
    num_workers: int | str = setting("auto", "processes per device that load images; auto: none on a CPU", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers != "auto" and not str(self.num_workers).isdigit():
            self.refuse("num_workers", "auto or a whole number is expected, such as 4")
