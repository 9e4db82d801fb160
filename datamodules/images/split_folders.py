"""Split folders: `train`, `val` and `test` with images below them, of which a data set takes one.

Without it people would train on their test images, and `train` and `test` would pass for classes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
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
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # trainA
WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLIT_OF, key=len, reverse=True))})(?![a-z])")  # DIV2K_train_HR


@dataclass(frozen=True)
class Splits:
    """The split folders of a tree, and what is taken of them.

    Attributes:
        depth: of the split folders: 0 for `train/cat/1.png`, 1 for `images/train/cat/1.png`.
        counts: images in each folder at this depth; '' for those outside of them.
        taken: the folders whose images are taken; all of the tree where `asked` is all.
        asked: the split that was asked for.
        folders: of all images, those of other splits among them.
        names: train, val or test, by the name of the split folder.
    """

    depth: int
    counts: dict[str, int]
    taken: list[str]
    asked: str
    folders: list[str]
    names: dict[str, str]

    def takes(self, place: str) -> bool:
        """Whether the file or folder at this place is one of those taken."""
        parts = place.split("/")
        return self.asked == ALL or (len(parts) > self.depth and parts[self.depth] in self.taken)

    def without(self, folder: str) -> str:
        """The folder's place in its split: `cat` for `train/cat`, and for `train/train/cat`."""
        parts = folder.split("/")
        if len(parts) <= self.depth or parts[self.depth] not in self.names:
            return folder
        end = self.depth + 1
        while end < len(parts) and "/".join(parts[:end]) in self._doubled:
            end += 1
        return "/".join(parts[: self.depth] + parts[end:])

    @cached_property
    def _doubled(self) -> set[str]:
        """Folders that hold nothing but one of the same split again: `train` of `train/train/cat`, where all lie so."""
        inside: dict[str, set[str]] = {}
        for folder in self.folders:
            parts = [*folder.split("/"), ""]
            for end in range(self.depth + 1, len(parts)):
                inside.setdefault("/".join(parts[:end]), set()).add(parts[end])
        own = {folder: self.names.get(folder.split("/")[self.depth]) for folder in inside}
        return {folder for folder, names in inside.items() if own[folder] and {*map(split_of, names)} == {own[folder]}}

    @property
    def shared(self) -> list[str]:
        """The folders around all classes, whatever the split: `images` of `images/train/cat` and `images/test/dog`."""
        parts = (folder.split("/") for folder in self.folders)
        inside = ["/".join(names) for names in parts if len(names) > self.depth and names[self.depth] in self.names]
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
    return split_and_rest(folder)[0]


@cache
def split_and_rest(folder: str) -> tuple[str | None, str]:
    """The split, and what else is in the name: of `train2017` nothing, of `DIV2K_valid_HR` `div2k_*_hr`."""
    name = CAMEL.sub("_", folder).lower()
    if split := SPLIT_OF.get(name) or SPLIT_OF.get(ENDING.sub("", name)):
        return split, ""
    word = WORD.search(name)
    return (SPLIT_OF[word[1]], WORD.sub("*", name, count=1)) if word else (None, name)


def find_splits(ids: Iterable[str], asked: str, empty: Iterable[str] = ()) -> Splits | None:
    """The split folders that the images `ids` lie in; None where they lie in none.

    Folders are splits where two of them beside one another are called so, or one that is asked for. One of them may
    be among the folders `empty`, of which no image can be taken.

    Raises:
        UserError: the split that is asked for is not among them; or some folders hold splits, and others none.
    """
    asked, split = asked.lower(), split_of(asked)
    folders = Counter(image_id.rpartition("/")[0] for image_id in ids)
    places = {folder: folder.split("/") if folder else [] for folder in folders}
    others = [folder.split("/") for folder in empty]
    for depth in range(max(map(len, places.values()), default=0)):
        siblings: dict[tuple[str, ...], set[str]] = {}
        counts: Counter[str] = Counter()
        for folder, parts in places.items():
            counts[parts[depth] if len(parts) > depth else ""] += folders[folder]
            if len(parts) > depth:
                siblings.setdefault(tuple(parts[:depth]), set()).add(parts[depth])
        for parts in others:
            beside = siblings.get(tuple(parts[:depth]), set())
            if len(parts) > depth and split_of(parts[depth]) and any(map(split_of, beside)):
                beside.add(parts[depth])
        names = sorted(set[str]().union(*siblings.values()))
        splits = splits_beside(list(siblings.values()))
        without = ["/".join(place) for place, beside in siblings.items() if not beside & splits.keys()]
        if splits and without and asked != ALL:
            both = f"some hold splits ({', '.join(splits)}), and others none, such as {without[0]}"
            cure = "Set dataset.path to the folder around the splits, or dataset.split=all for all images"
            raise UserError(f"dataset.split={asked}: of the folders at one depth {both}. {cure}.")
        splits = {} if without else splits
        taken = [name for name in names if name.lower() == asked]
        if not splits and asked != "train" and split:  # one that is asked for may lie alone
            alone = taken or [name for name in names if split_and_rest(name) == (split, "")]
            splits = dict.fromkeys(alone, split) if all(beside & {*alone} for beside in siblings.values()) else {}
        if splits:
            taken = taken or [name for name in names if split and splits.get(name) == split]
            if not taken and asked != ALL:
                there = f"there is no such folder; there are {', '.join(names)}"
                raise UserError(f"dataset.split={asked}: {there}. {other_split(names)}")
            shown = {name: counts[name] for name in (*names, "") if counts[name]}
            return Splits(depth, shown, names if asked == ALL else taken, asked, sorted(folders), splits)
    if asked not in ("train", ALL):
        raise UserError(
            f"dataset.split={asked}: the images lie in no such folder, nor in folders of splits, such as train and "
            "test. Leave dataset.split out to take all images."
        )
    return None


def splits_beside(siblings: Sequence[set[str]]) -> dict[str, str]:
    """train, val or test by name, of the folders of one depth, by the folder around them; those that are splits.

    Two that lie beside one another differ in nothing but the split: `seg_train` and `seg_test`, `trainA` and `testA`.
    Where some are called so and no more (`train`), those that have more in their name (`train_masks`) are none.
    """
    known = {name: split_and_rest(name) for names in siblings for name in names}
    splits: dict[str, set[tuple[int, str]]] = {}
    for number, names in enumerate(siblings):
        for split, rest in (known[name] for name in names):
            if split:
                splits.setdefault(rest, set()).add((number, split))
    rests = {rest for rest, pairs in splits.items() if len(pairs) > len({number for number, _ in pairs})}
    rests = {""} if "" in rests else rests
    return {name: split for name, (split, rest) in known.items() if split and rest in rests}


def other_split(names: Iterable[str]) -> str:
    """What to set instead of a split that is not there, or has no images."""
    return f"Set dataset.split={next(iter(names))}, or dataset.split=all for all of them."
