"""Files of earlier runs that a setting names, by themselves or by the folder of their run; needs no PyTorch."""

from pathlib import Path

from lightning_modules.diffusion.network_settings import DENOISER_FILE as DENOISER
from storage.errors import UserError

BEST, GUIDE, HEAD = "denoiser-best.safetensors", "guide.safetensors", "head.safetensors"
HELD_OUT = "held_out.safetensors"  # errors on images held out
AVERAGES = "averages"  # folder of the power-function averages
MADE_BY = {
    DENOISER: "a training run, such as runs/digits/train-temi-40/TIME; `make train` makes one",
    GUIDE: "a training run with training.keep_guide=true",
    HEAD: "a TEMI clustering, such as runs/digits/cluster-temi-40/TIME; `cedm cluster clustering=temi` makes one",
}


def file_of_run(setting: str, path: str | Path, name: str) -> Path:
    """The file that `setting=path` means: itself, or the one of this name in the folder of a run.

    Raises:
        UserError: there is none.
    """
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"{setting}={path}: there is no {file}. Give a {name} or the folder of {MADE_BY[name]}.")
    return file


def denoiser_file(path: str | Path, setting: str = "ckpt") -> Path:
    """The denoiser that a setting names."""
    return file_of_run(setting, path, DENOISER)


def head_file(path: str | Path) -> Path:
    """The clustering head that `head=` names."""
    return file_of_run("head", path, HEAD)
