"""No file passes silently wrong: each is refused with its name and a cure, or read as a person sees it."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.decoding import UnusableImageError, load_image
from datamodules.images.image_files import ZipReader, printable
from datamodules.images.images import decode, to_uint8
from datamodules.images.sources import ImageSource
from datamodules.images.survey import survey
from storage.errors import UserError

from ..opening import opened
from .bad_files import (
    GREY,
    LEFT_OUT,
    PNG,
    REFUSED,
    REFUSED_IN_FOLDERS,
    TAKEN,
    Refused,
    Taken,
    encoded,
    random_pixels,
)


def write_zip(path: Path, *entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def read_all(source: ImageSource) -> None:
    for index in range(len(source)):
        decode(source, index, None, 3)


@pytest.mark.parametrize("case", REFUSED + REFUSED_IN_FOLDERS, ids=lambda case: ascii(case.name))
def test_refused_from_a_folder(case: Refused, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(PNG)
    case.write(tmp_path)
    with pytest.raises(UserError) as error:
        read_all(opened("folder", tmp_path))
    message = str(error.value)
    assert case.reason in message
    assert printable(case.name) in message
    assert "dataset.on_bad_file=skip" in message
    skipping = opened("folder", tmp_path, on_bad_file="skip")
    assert skipping.ids == ["good.png"]
    assert [case.reason in reason for reason in skipping.skipped.values()] == [True]
    read_all(skipping)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused_from_a_zip(case: Refused, tmp_path: Path) -> None:
    assert isinstance(case.make, bytes)
    entries = ("a/good.png", PNG), (f"a/{case.name}", case.make)
    path = write_zip(tmp_path / "x.zip", *entries, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError) as error:
        read_all(opened("zip", path))
    assert case.reason in str(error.value)
    assert case.name in str(error.value)
    assert opened("zip", path, on_bad_file="skip").ids == ["a/good.png"]


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_taken_as_a_person_sees_it(case: Taken, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / case.name).write_bytes(case.content)
    archive = write_zip(tmp_path / "x.zip", (case.name, case.content), method=zipfile.ZIP_DEFLATED)
    for kind, path in (("folder", folder), ("zip", archive)):
        pixels = decode(opened(kind, path), 0, None, 3).permute(1, 2, 0).numpy()
        assert pixels.shape == case.pixels.shape
        assert np.abs(pixels.astype(int) - case.pixels).max() <= case.tolerance


def test_what_is_no_image_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "x.png").mkdir(parents=True)  # a folder may be called so
    (folder / "x.png/good.png").write_bytes(PNG)
    for name in LEFT_OUT:
        (folder / name).write_bytes(PNG)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints/good.png").write_bytes(PNG)
    source = opened("folder", folder)
    assert source.ids == ["x.png/good.png"]
    expected = {kind: list(LEFT_OUT.values()).count(kind) for kind in LEFT_OUT.values()}
    assert source.left_out == expected | {"hidden folders": 1}
    entries = [(name, PNG) for name in (*LEFT_OUT, "__MACOSX/good.png", "x.png/good.png")]
    archive = opened("zip", write_zip(tmp_path / "x.zip", *entries))
    assert archive.ids == source.ids
    assert archive.left_out == expected | {"hidden files like .x, ._x, __MACOSX": 3}


def test_a_folder_of_other_things_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"no images in there; found \.txt files \(1\)"):
        opened("folder", tmp_path)
    (tmp_path / "a.png").write_text("")
    with pytest.raises(
        UserError, match=r"1 of 1 files cannot be used as images:\n  'a\.png': an empty file.*\nFix or remove"
    ):
        opened("folder", tmp_path, on_bad_file="skip")


# ZIP files ------------------------------------------------------------------------------------------------------------


def encrypted_zip(path: Path) -> Path:
    """The flag that says so is enough: the standard library writes no encrypted files."""
    content = bytearray(write_zip(path, ("good.png", PNG), ("secret.png", PNG)).read_bytes())
    directory_entry = content.rindex(b"PK\x01\x02")
    content[directory_entry + 8] |= 1
    path.write_bytes(content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "name", "reason"),
    [
        ([("a.png", PNG), ("a.png", encoded(GREY, "PNG"))], "a.png", "2 entries have this name"),
        ([("../../etc/a.png", PNG)], "../../etc/a.png", "leads out of the archive"),
        ([("b/../../a.png", PNG)], "b/../../a.png", "leads out of the archive"),
        ([("/root/a.png", PNG)], "/root/a.png", "leads out of the archive"),
    ],
)
def test_zip_entries_with_wrong_names(entries: list[tuple[str, bytes]], name: str, reason: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", ("good.png", PNG), *entries)
    with pytest.raises(UserError) as error:
        opened("zip", path)
    assert f"'{name}'" in str(error.value)
    assert reason in str(error.value)
    assert opened("zip", path, on_bad_file="skip").ids == ["good.png"]


def test_encrypted_and_strangely_compressed_entries(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'secret\.png': encrypted; unpack it with its password"):
        opened("zip", encrypted_zip(tmp_path / "secret.zip"))
    path = write_zip(tmp_path / "lzma.zip", ("a.png", PNG), method=zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match=r"'a\.png': compressed by ZIP method 14; zip it again"):
        opened("zip", path)


def test_archives_that_are_none(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "x.zip", ("a.png", PNG)).read_bytes()
    damaged = [(content, "not a readable ZIP") for content in (whole[: len(whole) // 2], whole[:-10])]
    others = [(b"", "an empty file"), (b"<html>", "a web page"), (b"Rar!\x1a\x07\x00", "a RAR archive")]
    for content, reason in damaged + others:
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(UserError, match=reason):
            opened("zip", tmp_path / "bad.zip")
    nested = write_zip(tmp_path / "nested.zip", ("inner.zip", whole))
    with pytest.raises(UserError, match=r"no images in there; found \.zip files \(1\)"):
        opened("zip", nested)


# Skipping -------------------------------------------------------------------------------------------------------------


def test_skipping_is_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = tmp_path / "images", tmp_path / "cache"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.png").write_bytes(encoded(random_pixels(seed=number), "PNG"))
    (folder / "4.png").write_bytes(PNG[:-200])
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{number}.png", number] for number in range(9)]}))
    first = opened("folder", folder, cache_dir=cache, on_bad_file="skip")
    assert first.labels is not None
    assert first.labels.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    for index, number in enumerate(first.labels.tolist()):
        np.testing.assert_array_equal(np.asarray(first.image(index)), random_pixels(seed=number))
    part = opened("folder", folder, max_images=4, cache_dir=cache, on_bad_file="skip")
    assert (part.ids, part.total) == (["0.png", "2.png", "5.png", "7.png"], 8)

    decoded = []
    monkeypatch.setattr("datamodules.images.reader.load_image", lambda *given: decoded.append(given))
    again = opened("folder", folder, cache_dir=cache, on_bad_file="skip")
    assert (again.ids, again.fingerprint, decoded) == (first.ids, first.fingerprint, [])
    monkeypatch.undo()
    (folder / "4.png").write_bytes(PNG)
    mended = opened("folder", folder, cache_dir=cache, on_bad_file="skip")
    assert (len(mended), mended.skipped) == (9, {})
    assert mended.fingerprint != first.fingerprint


def test_the_survey_stops_before_the_work_and_counts(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for case in REFUSED:
        case.write(tmp_path / "images")
    for name in ("brain.nii", "layers.psd", ".away.jpg.icloud"):
        (tmp_path / "images" / name).unlink()
    (tmp_path / "images/good.png").write_bytes(PNG)
    with pytest.raises(UserError, match=r"\d\d of 50 files cannot be used as images:\n(.+\n){5}  … and \d\d more\n"):
        survey(opened("folder", tmp_path / "images"), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.json"))


# Properties -----------------------------------------------------------------------------------------------------------

SMALL = random_pixels(6, 7)
quick = settings(max_examples=120, deadline=None, derandomize=True)


def pixels_or_refusal(content: bytes, name: str) -> np.ndarray | None:
    try:
        return to_uint8(load_image(content, name), None, 3).permute(1, 2, 0).numpy()
    except UnusableImageError:
        return None


@quick
@given(st.integers(0, len(encoded(SMALL, "PNG")) - 1), st.integers(1, 255))
def test_a_changed_byte_in_a_png_is_never_a_changed_pixel(place: int, change: int) -> None:
    content = bytearray(encoded(SMALL, "PNG"))
    content[place] ^= change
    found = pixels_or_refusal(bytes(content), "x.png")
    assert found is None or np.array_equal(found, SMALL)


@quick
@given(st.sampled_from(["PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG"]), st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_or_whole(image_format: str, share: float) -> None:
    content = encoded(SMALL, image_format)
    whole = pixels_or_refusal(content, "x")
    assert whole is not None
    found = pixels_or_refusal(content[: int(share * len(content))], "x")
    assert found is None or np.array_equal(found, whole)


@quick
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]), st.data())
def test_no_bytes_raise_anything_but_a_refusal(image_format: str, data: st.DataObject) -> None:
    content = bytearray(encoded(SMALL, image_format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 120) - 1))] = data.draw(st.integers(0, 255))
    pixels_or_refusal(bytes(content), f"x.{image_format.lower()}")


@quick
@given(
    place=st.integers(0, 10_000),
    change=st.integers(1, 255),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_a_changed_byte_in_a_zip_is_never_a_changed_pixel(
    place: int, change: int, method: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.bmp", encoded(SMALL, "BMP"))  # BMP itself has no checksum
    content = bytearray(buffer.getvalue())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    try:
        reader = ZipReader(DatasetSettings(kind="zip", path=str(path)))
        found = [to_uint8(reader.read(row), None, 3).permute(1, 2, 0).numpy() for row in range(len(reader.ids))]
    except UserError:
        return
    assert all(np.array_equal(pixels, SMALL) for pixels in found)
