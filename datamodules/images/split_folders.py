"""Split folders: `train`, `val` and `test` with images below them, of which a data set takes one.

Without it people would train on their test images, and `train` and `test` would pass for classes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from storage.errors import UserError

ALL = "all"
NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}
ENDING = re.compile(r"([-_ ]?(set|split|data|images?|imgs|\d+))+$")  # train2017, test_set, val-images


@dataclass(frozen=True)
class Splits:
    """The split folders of a tree, and what is taken of them.

    Attributes:
        depth: of the split folders: 0 for `train/cat/1.png`, 1 for `images/train/cat/1.png`.
        counts: images in each folder at this depth; '' for those outside of them.
        taken: the folders whose images are taken; all of the tree where `asked` is all.
        asked: the split that was asked for.
        folders: of all images, those of other splits among them.
    """

    depth: int
    counts: dict[str, int]
    taken: list[str]
    asked: str
    folders: list[str]

    def takes(self, place: str) -> bool:
        """Whether the file or folder at this place is one of those taken."""
        parts = place.split("/")
        return self.asked == ALL or (len(parts) > self.depth and parts[self.depth] in self.taken)

    def without(self, folder: str) -> str:
        """The folder's place in its split: `cat` for `train/cat`, and for `train/train/cat`."""
        parts = folder.split("/")
        split = split_of(parts[self.depth]) if len(parts) > self.depth else None
        while split is not None and len(parts) > self.depth and split_of(parts[self.depth]) == split:
            del parts[self.depth]
        return "/".join(parts)

    @property
    def shared(self) -> list[str]:
        """The folders around all classes, whatever the split: `images` of `images/train/cat` and `images/test/dog`."""
        parts = (folder.split("/") for folder in self.folders)
        inside = ["/".join(names) for names in parts if len(names) > self.depth and split_of(names[self.depth])]
        below = [list(filter(None, self.without(folder).split("/"))) for folder in inside]
        return list(commonprefix(below))  # noqa: RUF071 (of lists of folders, not of texts)

    def __str__(self) -> str:
        """`train (40 images); left out: test (20). dataset.split=all takes all`."""

        def listed(names: Iterable[str]) -> str:
            return ", ".join(f"{name or 'outside of these folders'} ({self.counts[name]:,})" for name in names)

        if self.asked == ALL:
            return f"all: {listed(self.counts)}"
        rest = [name for name in self.counts if name not in self.taken]
        return (
            f"{listed(self.taken)}; left out: {listed(rest)}. dataset.split=all takes all"
            if rest
            else listed(self.taken)
        )


def split_of(folder: str) -> str | None:
    """train, val or test, where the folder's name says so."""
    name = folder.lower()
    return SPLIT_OF.get(name) or SPLIT_OF.get(ENDING.sub("", name))


def find_splits(ids: Iterable[str], asked: str) -> Splits | None:
    """The split folders that the images `ids` lie in; None where they lie in none.

    Folders are splits where two of them beside one another are called so, or one that is asked for.

    Raises:
        UserError: the split that is asked for is not among them.
    """
    asked = asked.lower()
    folders = Counter(image_id.rpartition("/")[0] for image_id in ids)
    places = {folder: folder.split("/") if folder else [] for folder in folders}
    for depth in range(max(map(len, places.values()), default=0)):
        siblings: dict[tuple[str, ...], set[str]] = {}
        counts: Counter[str] = Counter()
        for folder, parts in places.items():
            counts[parts[depth] if len(parts) > depth else ""] += folders[folder]
            if len(parts) > depth:
                siblings.setdefault(tuple(parts[:depth]), set()).add(parts[depth])
        names = sorted(counts.keys() - {""})
        taken = [name for name in names if name.lower() == asked]
        taken = taken or [name for name in names if split_of(name) and split_of(name) == split_of(asked)]
        alone = set(taken) if asked != "train" and split_of(asked) else set[str]()
        if are_splits(list(siblings.values()), alone):
            if not taken and asked != ALL:
                raise UserError(
                    f"dataset.split={asked}: there is no such folder; there are {', '.join(names)}. "
                    f"Set dataset.split={names[0]}, or dataset.split=all for all of them."
                )
            shown = {name: counts[name] for name in (*names, "") if counts[name]}
            return Splits(depth, shown, names if asked == ALL else taken, asked, sorted(folders))
    if asked not in ("train", ALL):
        raise UserError(
            f"dataset.split={asked}: the images lie in no such folder, nor in folders of splits, such as train and "
            "test. Leave dataset.split out to take all images."
        )
    return None


def are_splits(siblings: Sequence[set[str]], asked: set[str]) -> bool:
    """Whether the folders of one depth, by the folder around them, are those of splits."""
    found = [{split_of(name) for name in names} - {None} for names in siblings]
    beside = all(found) and any(len(splits) > 1 for splits in found)
    return beside or (bool(asked) and all(names & asked for names in siblings))
