"""The settings of the upper bound on the number of clusters: `bound=`."""

from dataclasses import dataclass

from storage.settings import Settings, setting


@dataclass(frozen=True)
class BoundSettings(Settings):
    """How many clusters are worth having (arXiv 2403.00570)."""

    group = "bound"

    grid: list[int] | None = setting(
        [10, 20, 40, 80, 160, 320, 640], "numbers of clusters C to try; null, in a study: those of its TEMI runs", low=2
    )
    num_seeds: int = setting(1, "clusterings of each C, with the seeds seed, seed + 1, …", low=1)
    threshold: float = setting(0.96, "utilization ratio that the bound must reach", above=0, high=1)
    rule: str = setting(
        "largest",
        "the largest C that reaches the threshold; unbroken: and every smaller one too",
        choices=("largest", "unbroken"),
    )
    used_when: str = setting(
        "assigned",
        "a cluster is used when some image is assigned to it; probable: when its mean probability is above 1/C, as "
        "about half are at most (set bound.threshold=0.3)",
        choices=("assigned", "probable"),
    )
    address: str | None = setting(
        None, "of a Ray cluster that trains the grid: auto or HOST:PORT; null: this machine alone", identifies=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid == []:
            self.refuse("grid", "numbers of clusters from 2 up are expected, such as [10,20,40]")
