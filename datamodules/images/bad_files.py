"""Files that cannot be used: found by trying them all once, remembered, and named."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import PIL
from tqdm import tqdm

from datamodules.images.decoding import UnusableImageError
from storage.cores import available_cores
from storage.errors import DamagedArtifactError, UserError
from storage.files import read_sealed_json, write_sealed_json
from storage.fingerprints import file_stem, fingerprint

if TYPE_CHECKING:
    from datamodules.images.sources import Reader

SHOWN = 5  # bad files that a message names
CHUNK = 64  # images that one thread decodes at a stretch


def damaged_images(reader: "Reader", name: str, cache_dir: str | Path | None) -> dict[str, str]:
    """Every image that cannot be decoded, by id, with the reason.

    Decodes the whole data set, once: what was found is remembered in `cache_dir` until a file changes.
    """
    memory = None
    if cache_dir is not None:
        stem = file_stem(name, "bad-files", fingerprint([reader.state(), PIL.__version__]))
        memory = Path(cache_dir) / "data" / f"{stem}.json"
        with suppress(DamagedArtifactError):  # then it is made again
            remembered = read_sealed_json(memory)
            if remembered is not None:
                return remembered["bad"]
    found = dict(_try_all(reader, name))
    if memory is not None:
        write_sealed_json(memory, {"bad": found})
    return found


def _try_all(reader: "Reader", name: str) -> Iterator[tuple[str, str]]:
    def try_chunk(start: int) -> list[tuple[str, str]]:
        bad = []
        for row in range(start, min(start + CHUNK, len(reader.ids))):
            try:
                reader.read(row)
            except UnusableImageError as error:
                bad.append((reader.ids[row], str(error)))
        return bad

    bar = tqdm(total=len(reader.ids), desc=f"looking for bad files in {name}", unit=" images", delay=2)
    with bar, ThreadPoolExecutor(len(available_cores())) as threads:  # Pillow lets go of the interpreter lock
        for bad in threads.map(try_chunk, range(0, len(reader.ids), CHUNK)):
            yield from bad
            bar.update(min(CHUNK, len(reader.ids) - bar.n))


def refuse_bad_files(name: str, bad: Mapping[str, str], total: int, skippable: bool = True) -> None:
    """Raise a `UserError` that counts the bad files and names some, each with its reason."""
    lines = [f"  '{image_id}': {reason}" for image_id, reason in list(bad.items())[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  … and {len(bad) - SHOWN:,} more")
    advice = "Mend or remove them"
    if skippable:
        advice += ", or type dataset.on_bad_file=skip to leave them out"
    heading = f"{name}: {len(bad):,} of {total:,} files cannot be used as images:"
    raise UserError("\n".join([heading, *lines, f"{advice}."]))
