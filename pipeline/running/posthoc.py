"""The averages that a training stored, and any other put together of them."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.power_average import coefficients
from pipeline.running.run_files import AVERAGES, DENOISER
from storage.digests import file_digest
from storage.errors import UserError
from storage.fingerprints import fingerprint

NAME = re.compile(r"width([0-9.]+)-([0-9]+)\.safetensors")


@dataclass(frozen=True)
class StoredAverages:
    """What lies in `averages/` of a run, up to the images that its model has seen.

    Attributes:
        base: the run's own model, whose weights another average replaces.
        files, nimg, widths: the stored averages, the images seen, and the relative width of each.
    """

    base: Denoiser
    files: list[Path]
    nimg: list[int]
    widths: list[float]

    @classmethod
    def of_run(cls, folder: Path) -> "StoredAverages":
        """Those of a run folder.

        Raises:
            UserError: there are none.
        """
        base = Denoiser.from_pretrained(folder / DENOISER)
        named = ((path, NAME.fullmatch(path.name)) for path in sorted(folder.glob(f"{AVERAGES}/*")))
        stored = [(path, int(name[2]), float(name[1])) for path, name in named if name is not None]
        stored = [one for one in stored if one[1] <= base.meta.get("nimg", 0)]
        if not stored:
            raise UserError(
                f"run={folder} has no stored averages. Train with training.posthoc_snapshots=16; a run that was "
                "trained without it can't have them any more."
            )
        files, nimg, widths = map(list, zip(*stored, strict=True))
        return cls(base, files, nimg, widths)

    @property
    def fingerprint(self) -> str:
        """Changes with any of the files."""
        return fingerprint([file_digest(file) for file in self.files])

    @torch.no_grad()
    def denoisers(self, lengths: Sequence[float]) -> list[Denoiser]:
        """For each length a denoiser whose weights are averaged over this relative width of the training.

        Sums in float64; each file is read once.
        """
        nimg = self.base.meta["nimg"]
        factors = torch.stack([coefficients(self.nimg, self.widths, nimg, length) for length in lengths])
        names = [name for name, _ in self.base.named_parameters()]
        sums = [{name: torch.tensor(0.0, dtype=torch.float64) for name in names} for _ in lengths]
        for file, of_lengths in zip(self.files, factors.T.tolist(), strict=True):
            for name, weight in Denoiser.from_pretrained(file).named_parameters():
                for total, factor in zip(sums, of_lengths, strict=True):
                    total[name] = total[name] + factor * weight.double()
        made = [copy.deepcopy(self.base) for _ in lengths]
        for denoiser, total in zip(made, sums, strict=True):
            for name, weight in denoiser.named_parameters():
                weight.copy_(total[name])
        return made
