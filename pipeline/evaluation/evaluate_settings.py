"""Settings of `cedm evaluate`: which images are measured, by which metrics, against what."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.evaluation.evaluation_settings import InceptionScoreSettings, KIDSettings, PRDCSettings
from pipeline.evaluation.generate_settings import SamplingSettings
from pipeline.evaluation.metrics_table import METRICS
from storage.errors import UserError
from storage.settings import REQUIRED, setting


def check_metrics(setting_name: str, wanted: list[str]) -> None:
    """Raise a `UserError` for the name of a metric that there is not, or for none at all."""
    known = ", ".join(METRICS)
    if not wanted:
        raise UserError(f"{setting_name}=[]: name at least one of {known}.")
    for name in wanted:
        if name not in METRICS:
            near = difflib.get_close_matches(str(name), METRICS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"{setting_name}={wanted}: there is no metric {name!r}.{hint} There are: {known}.")


@dataclass(frozen=True)
class EvaluateSettings(SamplingSettings):
    """`cedm evaluate`: generated images and a data set → distances."""

    generated: Any = setting(
        REQUIRED,
        "folder, ZIP, .npy or .npz of images, denoiser.safetensors, or a run folder; or a list, a set each",
        identifies=False,
    )
    metrics: list[str] = setting(
        ["fd", "sw", "prdc", "clipped"], "; ".join(f"{m.name}: {m.meaning}" for m in METRICS.values())
    )
    memorisation: bool = setting(True, "hold the generated images against their nearest training images")
    per_cluster: bool = setting(
        False, "the kernel distance of each cluster's images to its real ones, on evaluation.backbone"
    )
    neighbour_backbone: str | None = setting(
        None,
        "features of prdc and memorisation; null: DINOv2 where fdd is asked for, else Inception where fid, kid or is "
        "are, else evaluation.backbone",
    )
    kid: KIDSettings = field(default_factory=KIDSettings)
    prdc: PRDCSettings = field(default_factory=PRDCSettings)
    inception_score: InceptionScoreSettings = field(default_factory=InceptionScoreSettings)
    reference: str | None = setting(
        None,
        "FILE.npz with mu and sigma (EDM's format) in place of the data set: one Fréchet distance",
        identifies=False,
        path=True,
    )
    save_reference: str | None = setting(
        None, "FILE.npz to write the data set's in that format to", identifies=False, path=True
    )
    num: int = setting(50_000, "images of a set, where a model makes them", low=2)
    sets: int = setting(1, "sets that a model makes, from seeds one after the other", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_metrics("metrics", self.metrics)
        for name in ("reference", "save_reference"):
            path = getattr(self, name)
            if path is not None and (not path.endswith(".npz") or "=" in path.rsplit("/", 1)[-1]):
                self.refuse(name, "the name of an .npz file (without '=') is expected")
        if self.per_cluster and self.reference is not None:
            self.refuse("per_cluster", "it needs the images of the data set. Leave reference= out")
        if None not in (self.reference, self.save_reference):
            self.refuse("save_reference", "it writes the statistics of the data set: leave reference= out")

    @property
    def paths(self) -> list[Path]:
        """What `generated` names, one or several."""
        several = self.generated if isinstance(self.generated, list) else [self.generated]
        return [Path(str(path)).expanduser() for path in several]
