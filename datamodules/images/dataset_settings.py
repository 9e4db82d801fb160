"""Settings of the data set, and the table of its kinds."""

import math
import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from storage.additions import DATASETS
from storage.settings import Settings, setting


class Kind(NamedTuple):
    """One kind of data set; another is one more entry of `KINDS`.

    Attributes:
        opener: `module:function` that takes the settings and returns a `Reader`; imported when it is called.
            Empty for a kind of an installed package.
        path: what `dataset.path` is for it; empty where it has no use for one.
        needs_path: whether it has to be given.
    """

    opener: str
    path: str = ""
    needs_path: bool = True


KINDS = {
    "digits": Kind("datamodules.images.built_in:open_digits", needs_path=False),
    "emoji": Kind("datamodules.images.emoji:open_emoji", needs_path=False),
    "cifar10": Kind("datamodules.images.built_in:open_cifar", "FOLDER", needs_path=False),
    "cifar100": Kind("datamodules.images.built_in:open_cifar", "FOLDER", needs_path=False),
    "fashion": Kind("datamodules.images.built_in:open_fashion", "FOLDER", needs_path=False),
    "stl10": Kind("datamodules.images.built_in:open_stl10", "FOLDER", needs_path=False),
    "medmnist": Kind("datamodules.images.built_in:open_medmnist", "NAME or FILE.npz"),
    "folder": Kind("datamodules.images.image_files:FolderReader", "FOLDER"),
    "zip": Kind("datamodules.images.image_files:ZipReader", "FILE.zip"),
    "files": Kind("datamodules.images.image_files:open_files", "FOLDER or FILE.zip"),
    "array": Kind("datamodules.images.arrays:open_array", "FILE.npy"),
    "hdf5": Kind("datamodules.images.hdf5:open_hdf5", "FILE.h5"),
    "embeddings": Kind("datamodules.embeddings.computed_elsewhere:RowsWithoutImages", "FILE, set as embeddings=FILE"),
    "hf": Kind("datamodules.images.hugging_face:open_hugging_face", "NAME or FOLDER"),
}


def kind_of(name: str) -> Kind:
    """The kind of this name: ours, or an installed package's, whose opener gets `dataset.path` as it is."""
    return KINDS.get(name) or Kind("", "PATH", needs_path=False)


MEASURED_KINDS = ("folder", "zip", "files", "hf", "array", "hdf5")


@dataclass(frozen=True)
class DatasetSettings(Settings):
    """Which images, and the size at which diffusion models see them."""

    group: ClassVar[str] = "dataset"

    name: str = setting("digits", "names the folders of runs and the files in the cache")
    kind: str = setting("digits", "how the images are stored", choices=tuple(KINDS), additions=DATASETS)
    path: str | None = setting(None, "where they lie; see KINDS", identifies=False, path=True)
    resolution: int = setting(8, "pixels of a side of the training images", low=8)
    channels: int = setting(1, "1 grey, 3 RGB; arrays: as many as they have", low=1)
    fit: str = setting(
        "crop",
        "how an image becomes a square: crop takes the central one, pad adds bars in the colour of its border, "
        "stretch changes its proportions",
        choices=("crop", "pad", "stretch"),
    )
    max_images: int | None = setting(None, "an evenly spaced part of the data set; null: all", low=1)
    holdout: float = setting(
        0.0, "share of the images, chosen by their ids, that is kept out of clustering and training", low=0, below=1
    )
    labels: str | None = setting(
        None, "folders, none, or a file; null: those that the data set brings", identifies=False, path=True
    )
    label_columns: list[str] | None = setting(
        None, "what a CSV file of labels calls the ids and the labels; null: id and label", identifies=False
    )
    on_bad_file: str = setting(
        "stop", "skip: try all files first, leave out bad ones", choices=("stop", "skip"), identifies=False
    )
    value_range: list[float] | None = setting(None, "of arrays: the values that become black and white")
    window: list[float] | None = setting(
        None, "of measurements (more than 8 bits): the values that become black and white, beyond which all are cut off"
    )
    image_key: str | None = setting(None, "array of a file, or column, that holds the images; null: the usual one")
    label_key: str | None = setting(None, "array of a file, or column, that holds the labels; null: the usual one")
    split: str = setting(
        "train", "train, val, test …: the part of a data set, or of folders of these names; all: all of it"
    )
    config_name: str | None = setting(None, "which of several configurations of a Hugging Face data set")
    revision: str | None = setting(None, "branch, tag or commit on the hub")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.+-]+", str(self.name)):
            self.refuse("name", "it names folders: letters, digits, '.', '_', '+' and '-' will do")
        if self.path is not None and not kind_of(self.kind).path:
            self.refuse("path", f"dataset={self.name} has no use for a path. Leave it out, or set dataset=folder")
        columns = self.label_columns
        if columns is not None and (len(columns) != 2 or columns[0] == columns[1]):
            self.refuse("label_columns", "[IDS,LABELS] is expected, such as [image_id,dx]")
        for name in ("value_range", "window"):
            span = getattr(self, name)
            if span is not None and not (len(span) == 2 and -math.inf < span[0] < span[1] < math.inf):
                self.refuse(name, "[LOW,HIGH] is expected, such as [0,1]")
        if self.window is not None and self.value_range is not None:
            self.refuse("window", "dataset.value_range is set, too, beyond which nothing may be. Set one of them")
        if self.value_range is not None and self.kind not in ("array", "hdf5"):
            self.refuse("value_range", "it is for arrays. Leave it out, or set dataset.window for measurements")
        if self.window is not None and self.kind not in MEASURED_KINDS:
            self.refuse("window", f"dataset={self.name} has no use for it. Leave it out")
