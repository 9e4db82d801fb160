"""Data sets that libraries bring or download: scikit-learn's digits, CIFAR-10 and CIFAR-100."""

import shutil
import urllib.error
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from datamodules.images.label_files import Labels
from storage.errors import UserError


def load_digits() -> tuple[np.ndarray, Labels]:
    """The 1,797 handwritten digits, uint8 [N, 8, 8, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]  # values 0..16 → [1797, 8, 8, 1]
    labels = torch.as_tensor(digits.target, dtype=torch.int64)
    return images, Labels(labels, [str(name) for name in digits.target_names])


def load_cifar(kind: str, root: Path) -> tuple[np.ndarray, Labels]:
    """The training images of CIFAR-10 or CIFAR-100, uint8 [N, 32, 32, 3], found in `root` or downloaded to it."""
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset_class = {"cifar10": CIFAR10, "cifar100": CIFAR100}[kind]
    if root.name == dataset_class.base_folder:  # the folder itself was given, not the one that holds it
        root = root.parent
    try:
        dataset = dataset_class(root, train=True)
    except RuntimeError:  # not there, or not whole: torchvision compares MD5 sums
        was_there = root.exists()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{kind}.lock"):
                dataset = dataset_class(root, train=True, download=True)
        except (RuntimeError, urllib.error.URLError, OSError) as error:
            if not was_there:
                shutil.rmtree(root, ignore_errors=True)
            raise UserError(
                f"{kind}: not found whole in {root}, and it cannot be downloaded ({error}). "
                f"Download {dataset_class.url}, unpack it, and give the folder that then holds "
                f"{dataset_class.base_folder} with dataset.path=FOLDER"
            ) from error
    return dataset.data, Labels(torch.tensor(dataset.targets, dtype=torch.int64), list(dataset.classes))
