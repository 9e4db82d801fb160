"""Data sets for other people's trainers: images as they are stored, with a class 0…U−1 each."""

import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from datamodules.images.sources import ImageSource
from datamodules.packages import needed
from storage.files import atomic_path


@dataclass(frozen=True)
class ClassedImages:
    """The images of a source and what is written of them.

    Attributes:
        classes: of each image, 0…U−1.
        class_names: of the U classes.
    """

    source: ImageSource
    classes: Sequence[int]
    class_names: Sequence[str]

    def files(self) -> Iterator[tuple[str, bytes, int]]:
        """Name, bytes and class of each image; the name is its id, with a suffix."""
        for row in tqdm(range(len(self.source)), desc="export", unit="img", dynamic_ncols=True):
            content, suffix = self.source.encoded(row)
            image_id = self.source.ids[row]
            name = image_id if PurePosixPath(image_id).suffix.lower() == suffix else f"{image_id}{suffix}"
            yield name, content, self.classes[row]


def write_edm_zip(images: ClassedImages, folder: Path) -> Path:
    """`images.zip`, stored without compression, with `dataset.json`."""
    with atomic_path(folder / "images.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        labels = []
        for name, content, label in images.files():
            archive.writestr(name, content)
            labels.append((name, label))
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return folder / "images.zip"


def write_folders(images: ClassedImages, folder: Path) -> Path:
    """`images/0007/…`: a folder for each class, named by its number."""
    digits = len(str(len(images.class_names) - 1))
    with atomic_path(folder / "images") as temporary:
        for name, content, label in images.files():
            file = temporary / f"{label:0{digits}d}" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return folder / "images"


def write_hugging_face(images: ClassedImages, folder: Path) -> Path:
    """`hf/`, as `datasets.load_from_disk` reads it, with the columns image, cluster and id."""
    datasets = needed("datasets", "format=hf", "'datasets>=4.0'")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "cluster": datasets.ClassLabel(names=list(images.class_names)),
            "id": datasets.Value("string"),
        }
    )

    def rows() -> Iterator[dict[str, Any]]:
        for (name, content, label), image_id in zip(images.files(), images.source.ids, strict=True):
            yield {"image": {"bytes": content, "path": name}, "cluster": label, "id": image_id}

    with atomic_path(folder / "hf") as temporary, tempfile.TemporaryDirectory(dir=temporary.parent) as building:
        made = datasets.Dataset.from_generator(rows, features=features, cache_dir=building, split="train")
        made.save_to_disk(temporary)
    return folder / "hf"


FORMATS: dict[str, Callable[[ClassedImages, Path], Path]] = {
    "edm_zip": write_edm_zip,
    "folders": write_folders,
    "hf": write_hugging_face,
}
