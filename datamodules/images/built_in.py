"""Data sets by name, that libraries bring, find or download."""

import gzip
import hashlib
import re
import struct
import tempfile
import urllib.error
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from textwrap import shorten
from typing import TypeVar

import numpy as np
import torch
from filelock import FileLock

from datamodules.images.arrays import ArrayReader, open_array
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.reader import Labels
from datamodules.packages import needed
from storage.errors import UserError, WrongPathError

T = TypeVar("T")
FIRST_FASHION = {"train": [9, 0, 0, 3], "test": [9, 2, 1, 1]}  # labels; MNIST's are 5, 0, 4, 1 and 7, 2, 1, 0
SLICES = (
    "For images, save the middle slices along the first axis, and set dataset=npy: "
    "python -c \"import numpy; numpy.save('slices.npy', numpy.load('{}')['train_images'][:, 14])\""
)
MOST_IDX = 1 << 27  # bytes; the training images are 47 million


def open_digits(settings: DatasetSettings) -> ArrayReader:
    """The 1,797 handwritten digits, uint8 [N, 8, 8, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]  # values 0..16 → [1797, 8, 8, 1]
    labels = Labels(torch.as_tensor(digits.target, dtype=torch.int64), [str(name) for name in digits.target_names])
    return ArrayReader(images, labels=labels, kind=settings.kind)


def open_cifar(settings: DatasetSettings) -> ArrayReader:
    """Images of CIFAR-10 or CIFAR-100, uint8 [N, 32, 32, 3], found in a folder or downloaded to it."""
    from torchvision.datasets import CIFAR10, CIFAR100

    part = chosen_split(settings, ("train", "test"))
    root, dataset_class = Path(settings.path or "data"), {"cifar10": CIFAR10, "cifar100": CIFAR100}[settings.kind]
    if root.name == dataset_class.base_folder:  # the folder itself was given, not the one that holds it
        root = root.parent
    where = f"Download {dataset_class.url} and unpack it; FOLDER is the one that then holds {dataset_class.base_folder}"
    dataset = found(settings.kind, root, where, partial(dataset_class, root, train=part == "train"))
    labels = Labels(torch.tensor(dataset.targets, dtype=torch.int64), list(dataset.classes))
    return ArrayReader(dataset.data, labels=labels, kind=settings.kind, split=part)


def open_fashion(settings: DatasetSettings) -> ArrayReader:
    """Fashion-MNIST, uint8 [N, 28, 28, 1]: its four files in a folder, also with `.gz`, or downloaded to it.

    Raises:
        UserError: other files, such as MNIST's, which have the same names.
    """
    from torchvision.datasets import FashionMNIST

    part = chosen_split(settings, ("train", "test"))
    prefix = {"train": "train", "test": "t10k"}[part]
    root = Path(settings.path or "data")
    images = next(iter(root.glob(f"{prefix}-images-idx3-ubyte*")), None)
    if images is None:
        names = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and their t10k-… from the mirror"
        where = f"Download {names} {FashionMNIST.mirrors[0]}; FOLDER is the one that then holds them"
        raw = found("fashion", root, where, partial(FashionMNIST, root)).raw_folder
        images = Path(raw) / f"{prefix}-images-idx3-ubyte"
    pixels, numbers = read_idx(images), read_idx(Path(str(images).replace("images-idx3", "labels-idx1")))
    if pixels.shape[1:] != (28, 28) or len(pixels) != len(numbers) or numbers[:4].tolist() != FIRST_FASHION[part]:
        raise UserError(
            f"{images}: not the file of Fashion-MNIST (MNIST's have the same names). Set dataset.path=FOLDER."
        )
    labels = Labels(torch.from_numpy(numbers.astype(np.int64)), list(FashionMNIST.classes))
    return ArrayReader(pixels[..., np.newaxis], labels=labels, kind="fashion", split=part)


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in an idx file, as MNIST's are, which may end in `.gz`.

    Raises:
        UserError: no such file, or it is damaged.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MOST_IDX)
    except FileNotFoundError as error:
        raise WrongPathError(f"{path}: no such file.", "FOLDER") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}). Copy or download it again.") from error
    axes = content[3] if content[:3] == b"\0\0\x08" else 0  # the third byte: unsigned bytes
    shape = struct.unpack_from(f">{axes}I", content, 4) if len(content) >= 4 + 4 * axes else ()
    if not shape or len(content) != 4 + 4 * axes + prod(shape):
        raise UserError(f"{path}: no whole idx file of bytes, as MNIST's are. Copy or download it again.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def open_stl10(settings: DatasetSettings) -> ArrayReader:
    """One part of STL-10, uint8 [N, 96, 96, 3], found in a folder or downloaded to it, and read from disk by image."""
    from torchvision.datasets import STL10

    part = chosen_split(settings, ("unlabeled", "train", "test"))
    root = Path(settings.path or "data")
    if root.name == STL10.base_folder:
        root = root.parent
    where = f"Download {STL10.url} and unpack it; FOLDER is the one that then holds {STL10.base_folder}"
    dataset = found("stl10", root, where, partial(STL10, root, split="test"))  # compares all MD5 sums, holds 220 MB
    labels, folder = None, root / STL10.base_folder
    if part != "unlabeled":
        numbers = np.fromfile(folder / f"{part}_y.bin", np.uint8).astype(np.int64) - 1
        labels = Labels(torch.from_numpy(numbers), list(dataset.classes))
    return ArrayReader(folder / f"{part}_X.bin", labels=labels, kind="stl10", split=part, open_file=stl10_pixels)


def stl10_pixels(path: Path) -> np.ndarray:
    """The images of a file of STL-10, which holds them by channel and column: uint8 [N, 96, 96, 3], mapped."""
    return np.memmap(path, np.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)


def open_medmnist(settings: DatasetSettings) -> ArrayReader:
    """One split of a two-dimensional set of MedMNIST: an `.npz` file, or a name for the package to download.

    Raises:
        UserError: no such file or set, or one of volumes.
    """
    path, part, names = Path(str(settings.path)), chosen_split(settings, ("train", "val", "test")), None
    if re.search("mnist3d", path.name):
        raise UserError(f"{path}: a set of volumes. {SLICES.format(path.with_suffix('.npz'))}")
    if path.suffix != ".npz":
        path, names = download_medmnist(path.name)
    whole = open_array(replace(settings, path=str(path), image_key=settings.image_key or f"{part}_images"))
    labels = whole.own_labels()
    if names is not None and labels is not None and labels.values is not None:
        labels = replace(labels, class_names=names)
    reader = ArrayReader(whole.images, None, whole.name, labels, split=part)
    reader.left_out = whole.left_out
    return reader


def download_medmnist(name: str) -> tuple[Path, list[str]]:
    """The `.npz` file of a set in the folder data, downloaded where it is not there, and the names of its classes.

    Raises:
        UserError: no such set, or the package is not installed, or the download fails.
    """
    medmnist = needed("medmnist", f"dataset.path={name} is no .npz file, and a name")
    flag, _, size = name.partition("_")
    info = medmnist.INFO.get(flag, {})
    if f"url_{size}".rstrip("_") not in info:
        known = ", ".join(known for known in medmnist.INFO if not known.endswith("3d"))
        raise UserError(f"dataset.path={name}: no set of MedMNIST; there are {known}, and with _64, _128, _224.")
    where = f"Download {info[f'url_{size}'.rstrip('_')]}, which is FILE.npz"
    make = partial(getattr(medmnist, info["python_class"]), "train", root=Path("data"), size=int(size or 28))
    found(name, Path("data"), where, make, "FILE.npz")
    return Path("data") / f"{name}.npz", list(info["label"].values())


def chosen_split(settings: DatasetSettings, known: tuple[str, ...]) -> str:
    """`dataset.split`. Raises `UserError` where the data set has no part of that name."""
    if settings.split not in known:
        raise UserError(f"dataset.split={settings.split}: {settings.name} has {', '.join(known)}. Set one of them.")
    return settings.split


def found(kind: str, root: Path, where: str, make: Callable[..., T], expected: str = "FOLDER") -> T:
    """What `make` finds in a folder, else after its download to it: whole, by the library's MD5 sums.

    Raises:
        WrongPathError: neither; `where` says how to get it, and `expected` what to set then.
    """
    try:
        return make()
    except RuntimeError:  # not there, or not whole
        try:
            with downloading_to(root, kind):
                return make(download=True)
        except (RuntimeError, urllib.error.URLError, OSError) as error:
            problem = f"not found whole in {root}, and it cannot be downloaded ({shorten(str(error), 200)})"
            raise WrongPathError(f"{kind}: {problem}. {where}.", expected) from error


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
