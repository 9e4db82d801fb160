"""Settings of a study: what it asks, and the runs that answer it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from storage.settings import REQUIRED, Settings, setting

MEASUREMENTS = ("distance", "confidence", "bound")
FROM_THE_BOUND = "bound"  # in place of a list of C: those that `cedm bound` finds worth training


@dataclass(frozen=True)
class StudySettings(Settings):
    """The config group `study`. `lists` holds all other keys, which `{key}` in the runs' settings stands for."""

    group = "study"

    question: str = setting(REQUIRED, "what the study is to answer")
    clusters: Any = setting([40], "numbers of clusters C; bound: those that `cedm bound` finds worth training")
    seeds: list[int] = setting([0], "of clustering and training", low=0)
    duration_kimg: float | None = setting(None, "of each run, in thousand images; null: duration_share", above=0)
    duration_share: float = setting(1.0, "duration of each run in parts of training.duration_kimg", above=0)
    final_kimg: float | None = setting(None, "train the best of the runs once more, for this long", above=0)
    curve_points: int | None = setting(None, "distances along each training; null: evaluation.every_kimg", low=1)
    settings: list[str] = setting([], "what all runs share")
    runs: dict[str, list[str]] = setting({}, "name: [settings]; {clusters} in them gives a run for each value")
    measure: list[str] = setting(["distance"], "what is measured of the runs: distance, confidence, bound")
    plots: list[str] = setting(["bars"], "pictures of the page")
    metrics: list[str] = setting(["fd"], "of cedm evaluate; one of fid, fdd and fd among them")
    num_images: int | None = setting(None, "generated for each distance; null: evaluation.num_final", low=2)
    sampling_sets: int = setting(3, "sets of sampling seeds, for error bars", low=1)
    keep: float = setting(0.5, "confidence: the share of the images that is kept", above=0, high=1)
    jobs_dir: str = setting("", "folder of the jobs, shared by the studies", identifies=False, path=True)
    print: bool = setting(False, "print the single commands instead of running them", identifies=False)
    devices_per_job: int = setting(1, "devices that work together on each job", low=1, identifies=False)
    address: str | None = setting(
        None, "of a Ray cluster that runs the jobs: auto or HOST:PORT; null: this machine alone", identifies=False
    )
    lists: dict[str, Any] = setting({}, "the study's own lists of values, such as backbones")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.measure if name not in MEASUREMENTS]
        if unknown:
            self.refuse("measure", f"there are {', '.join(MEASUREMENTS)}, not {unknown[0]}")

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> "StudySettings":
        """The settings of a YAML's `study`, where every unknown key is one of the study's own lists."""
        known = {own.name for own in fields(cls)}
        lists = {key: value for key, value in group.items() if key not in known}
        return cls(**{key: value for key, value in group.items() if key in known}, lists=lists)
