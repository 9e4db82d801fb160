"""What `cedm embed` says of the images: how it understood them, what it left out and why, and how they look."""

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from callbacks.image_grid import image_grid
from datamodules.images.image_files import printable
from datamodules.images.images import decode
from datamodules.images.sources import ImageSource, evenly_spaced
from datamodules.images.survey import Survey, survey
from storage.files import atomic_path, write_json

COLUMNS = 10
ROWS = 6
SHOWN_SIZES = 3
SHOWN_SKIPPED = 10
SHOWN_NAMES = 5
DARK = 64  # a data set whose brightest shown pixel is below this was probably scaled wrongly


def report_data(source: ImageSource, resolution: int, channels: int, cache_dir: Path) -> tuple[Survey, Path]:
    """Print what the data set holds; returns that, and the contact sheet.

    Raises:
        UserError: images that cannot be used, counted and named, unless `dataset.on_bad_file=skip`.
    """
    found, path = survey(source, cache_dir)
    fit = "" if source.fit == "crop" else f"-{source.fit}"
    picture = path.with_name(f"{path.stem}-{resolution}x{channels}{fit}.png")
    lines = describe(found, source.name, resolution, source.fit)
    if source.own_output:
        lines.append(f"{'not listed':<15}{', '.join(source.own_output)}: runs and cache of this project")
    if not picture.exists():
        lines += draw_contact_sheet(source, resolution, channels, picture)
    print("\n".join([*lines, f"contact sheet  {picture}"]))
    return found, picture


def keep_report(found: Survey, picture: Path, folder: Path) -> None:
    """The survey and a copy of the contact sheet in a run folder, under plain names."""
    write_json(folder / "data.json", asdict(found))
    with atomic_path(folder / "data.png") as temporary:
        shutil.copyfile(picture, temporary)


def describe(found: Survey, name: str, resolution: int, fit: str) -> list[str]:
    """The survey as lines for a terminal."""
    said = {"sizes": describe_sizes(found)}
    said["modes"] = ", ".join(f"{mode} {count:,}" for mode, count in found.modes.items())
    if found.window:
        said["window"] = found.window
    if found.not_square:
        what, text = describe_not_square(found, fit)
        said[what] = text
    if small := found.enlarged(resolution, fit):
        side = small[0][0]
        said["enlarged"] = (
            f"{sum(count for _, count in small):,} images are smaller than dataset.resolution={resolution}; of the "
            f"smallest {side}×{side} pixels are drawn {resolution / side:.2g} times as large"
        )
    if found.num_distinct == 1 and found.num_images > 1:
        said["identical"] = f"all {found.num_images:,} images have the same pixels"
    if found.num_blank:
        said["blank"] = f"{found.num_blank:,} images of one colour throughout, such as {found.blank[0]}"
    if found.split:
        said["split"] = printable(found.split)
    if found.class_counts is not None:
        said["labels"] = describe_classes(found.class_counts, found.class_names)
        if found.num_unlabelled:
            said["labels"] += f"; {found.num_unlabelled:,} without a label"
    elif found.labels_note:
        said["labels"] = f"none: {printable(found.labels_note)}"
    if found.num_duplicates:
        copy, original = found.duplicates[0]
        said["duplicates"] = f"{found.num_duplicates:,}, exact copies such as {copy} of {original}"
    if found.left_out:
        said["left out"] = ", ".join(f"{kind} ({count:,})" for kind, count in found.left_out.items())
    if found.skipped:
        lines = [f"{image_id}: {reason}" for image_id, reason in found.skipped.items()]
        more = [f"… and {len(lines) - SHOWN_SKIPPED:,} more"] if len(lines) > SHOWN_SKIPPED else []
        lines = [f"{len(lines):,}, which cannot be used:", *lines[:SHOWN_SKIPPED], *more]
        said["skipped"] = f"\n{'':<15}".join(lines)
    return [f"{name}: {found.num_images:,} images", *(f"{what:<15}{text}" for what, text in said.items())]


def describe_sizes(found: Survey) -> str:
    """All sizes where they are few, else the smallest, the median and the largest."""
    if len(found.sizes) <= SHOWN_SIZES:
        return ", ".join(f"{width}×{height} ({count:,})" for width, height, count in found.sizes)
    smallest, median, largest = (f"{width}×{height}" for width, height in found.areas.tolist())
    return f"{len(found.sizes):,} different: smallest {smallest}, median {median}, largest {largest}"


def describe_not_square(found: Survey, fit: str) -> tuple[str, str]:
    """What becomes of images that are not square, in a word and in a line: how many, and how much of them."""
    counts = np.array([count for _, _, _, count in found.not_square])
    share, *_ = found.not_square[int(np.searchsorted(counts.cumsum(), (counts.sum() + 1) // 2))]  # the median
    most, width, height, _ = found.not_square[-1]
    size = f"{width}×{height}"
    what, text = {
        "crop": (
            "cut off",
            f"training sees the central square, without {share:.0%} of the pixels (median; {most:.0%} of {size})",
        ),
        "pad": ("padded", f"bars are {share:.0%} of what training sees (median; {most:.0%} of {size})"),
        "stretch": (
            "stretched",
            f"the shorter side is drawn {1 / (1 - share):.2g} times as long (median; of {size} {1 / (1 - most):.2g})",
        ),
    }[fit]
    return what, f"{counts.sum():,} images are not square: {text}"


def describe_classes(counts: list[int], names: list[str] | None) -> str:
    """How many classes, how large, and which are empty."""
    empty = [names[number] if names else str(number) for number, count in enumerate(counts) if count == 0]
    filled = [count for count in counts if count]
    text = f"{len(filled):,} class{'es' if len(filled) > 1 else ''} of {min(filled):,} to {max(filled):,} images"
    text += f" ({listed(names)})" if names else ""
    return f"{text}; no image of {listed(empty)}" if empty else text


def listed(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(map(printable, names[:SHOWN_NAMES])) + (" …" if len(names) > SHOWN_NAMES else "")


def draw_contact_sheet(source: ImageSource, resolution: int, channels: int, path: Path) -> list[str]:
    """A picture of some images as training will see them; returns a warning where they are nearly black."""
    rows = evenly_spaced(len(source), ROWS * COLUMNS).tolist()
    images = torch.stack([decode(source, row, resolution, channels) for row in rows])  # [n, C, R, R]
    blanks = images.new_full((-len(rows) % COLUMNS, *images.shape[1:]), 255)
    grid = torch.cat([images, blanks]).unflatten(0, (-1, COLUMNS))  # [rows, COLUMNS, C, R, R]
    with atomic_path(path) as temporary:
        image_grid(grid).save(temporary)
    brightest = int(images.max())
    if brightest >= DARK:
        return []
    return [
        f"nearly black   the brightest pixel of {len(rows)} images is {brightest} of 255. Were 12-bit values stored in "
        "16 bits? Then set dataset.window=[0,4095]"
    ]
