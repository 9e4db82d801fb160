"""Files that cannot be used: found by trying them all once, remembered, and named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import PIL

from datamodules.images.decoding import UnusableImageError, each_row
from datamodules.images.reader import Reader
from storage.errors import UserError
from storage.files import remembered_json
from storage.fingerprints import file_stem, fingerprint

SHOWN = 5  # bad files that a message names


def damaged_images(reader: Reader, name: str, cache_dir: str | Path | None) -> dict[str, str]:
    """Every image that cannot be decoded, by id, with the reason.

    Decodes the whole data set, once: what was found is remembered in `cache_dir` until a file changes.
    """

    def reason(row: int) -> str | None:
        try:
            reader.read(row)
        except UnusableImageError as error:
            return str(error)
        return None

    def find() -> dict[str, Any]:
        reasons = each_row(reason, len(reader.ids), f"looking for bad files in {name}")
        return {image_id: text for image_id, text in zip(reader.ids, reasons, strict=True) if text is not None}

    if cache_dir is None:
        return find()
    stem = file_stem(name, "bad", fingerprint([reader.state(), PIL.__version__]))
    return remembered_json(Path(cache_dir) / "data" / f"{stem}.json", find)


def refuse_bad_files(name: str, bad: Mapping[str, str], total: int, skippable: bool = True) -> NoReturn:
    """Raise a `UserError` that counts the bad files and names some, each with its reason."""
    lines = [f"{name}: {len(bad):,} of {total:,} files cannot be used as images:"]
    lines += [f"  '{image_id}': {reason}" for image_id, reason in list(bad.items())[:SHOWN]]
    lines += [f"  … and {len(bad) - SHOWN:,} more"] * (len(bad) > SHOWN)
    raise UserError("\n".join([*lines, cure(skippable)]))


def cure(skippable: bool) -> str:
    """What to do about bad files; a set of generated images would be another set without them."""
    return f"Fix or remove them{', or set dataset.on_bad_file=skip to leave out all such files' if skippable else ''}."
