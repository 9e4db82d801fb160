"""Data sets that libraries bring or download: scikit-learn's digits, CIFAR-10 and CIFAR-100."""

import hashlib
import tempfile
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from datamodules.images.arrays import ArrayReader
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.reader import Labels
from storage.errors import WrongPathError


def open_digits(settings: DatasetSettings) -> ArrayReader:
    """The 1,797 handwritten digits, uint8 [N, 8, 8, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]  # values 0..16 → [1797, 8, 8, 1]
    labels = Labels(torch.as_tensor(digits.target, dtype=torch.int64), [str(name) for name in digits.target_names])
    return ArrayReader(images, labels=labels, kind=settings.kind)


def open_cifar(settings: DatasetSettings) -> ArrayReader:
    """The training images of CIFAR-10 or CIFAR-100, uint8 [N, 32, 32, 3], found in a folder or downloaded to it."""
    from torchvision.datasets import CIFAR10, CIFAR100

    root, dataset_class = Path(settings.path or "data"), {"cifar10": CIFAR10, "cifar100": CIFAR100}[settings.kind]
    if root.name == dataset_class.base_folder:  # the folder itself was given, not the one that holds it
        root = root.parent
    try:
        dataset = dataset_class(root, train=True)
    except RuntimeError:  # not there, or not whole: torchvision compares MD5 sums
        try:
            with downloading_to(root, settings.kind):
                dataset = dataset_class(root, train=True, download=True)
        except (RuntimeError, urllib.error.URLError, OSError) as error:
            raise WrongPathError(
                f"{settings.kind}: not found whole in {root}, and it cannot be downloaded ({error}). Download "
                f"{dataset_class.url} and unpack it; FOLDER is the one that then holds {dataset_class.base_folder}.",
                "FOLDER",
            ) from error
    labels = Labels(torch.tensor(dataset.targets, dtype=torch.int64), list(dataset.classes))
    return ArrayReader(dataset.data, labels=labels, kind=settings.kind)


@contextmanager
def downloading_to(root: Path, name: str) -> Iterator[None]:
    """One process at a time downloads to a folder, which is made where it is missing; nothing else is left in it."""
    key = hashlib.sha256(f"{Path.home()} {root.resolve()}".encode()).hexdigest()[:16]
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(tempfile.gettempdir()) / f"cedm-{name}-{key}.lock"):
            yield
    finally:
        for folder in missing:
            with suppress(OSError):  # it holds what was downloaded
                folder.rmdir()
