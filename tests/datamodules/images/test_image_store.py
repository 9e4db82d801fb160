"""Images decoded once for all processes, kept in the cache and mapped; or when asked for."""

import errno
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images import image_store
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.image_store import ImageStore
from datamodules.images.images import decode
from datamodules.images.sources import ImageSource, open_source
from storage import artifacts
from storage.errors import UserError


def make_images(folder: Path, count: int = 7) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (9 + number, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images")


def opened(images: Path, **settings: object) -> ImageSource:
    chosen = DatasetSettings(kind="folder", name="mine", path=str(images), **settings)  # type: ignore[arg-type]
    return open_source(chosen, images.parent / "cache")


def packed(images: Path) -> list[Path]:
    return sorted((images.parent / "cache").rglob("packed-images/*.safetensors"))


def check(store: ImageStore) -> None:
    """It has the images of its source."""
    indices = torch.randperm(len(store)).repeat(2)
    expected = torch.stack([decode(store.source, index, store.resolution, store.channels) for index in indices])
    assert torch.equal(store.gather(indices), expected)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the images that are decoded."""
    ids: list[str] = []

    def counted(source: ImageSource, index: int, resolution: int, channels: int) -> torch.Tensor:
        ids.append(source.ids[index])
        return decode(source, index, resolution, channels)

    monkeypatch.setattr(image_store, "decode", counted)
    return ids


def test_images_are_decoded_once_and_mapped(images: Path, decoded: list[str]) -> None:
    first = ImageStore(opened(images), 8, 3)
    assert len(decoded) == 7
    second = ImageStore(opened(images), 8, 3)
    assert len(decoded) == 7
    for store in (first, second):
        check(store)
        assert store.in_memory
        assert str(packed(images)[0]) in store.description
    assert second._packed is not None
    address = second._packed.images.data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = [
        entry[-1] for entry in maps if (span := [int(end, 16) for end in entry[0].split("-")])[0] <= address < span[1]
    ]
    assert files == [str(packed(images)[0])]


def test_streamed_images_are_decoded_each_time(images: Path, decoded: list[str]) -> None:
    store = ImageStore(opened(images), 8, 3, memory_gb=1e-9)
    check(store)
    assert len(decoded) == 14
    assert not store.in_memory
    assert "streamed" in store.description
    assert not packed(images)


def test_all_parts_of_a_data_set_share_its_file(images: Path, decoded: list[str]) -> None:
    source = opened(images, holdout=0.4)
    assert source.held_out is not None
    for part in (source, source.held_out, source.only(source.ids[1:3]), source.part(torch.tensor([0, 2]))):
        check(ImageStore(part, 8, 3))
    assert sorted(decoded) == sorted(source.undivided.ids)
    assert len(packed(images)) == 1
    part = source.part(torch.tensor([0, 2]))
    check(ImageStore(part, 8, 3, memory_gb=3 * 192 / 1e9))  # too little for all, which is then not decoded
    assert decoded[7:] == part.ids


def test_an_image_that_is_damaged_and_not_asked_for_is_in_nobodys_way(images: Path) -> None:
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:60])
    source = opened(images)
    with pytest.raises(UserError, match=r"3\.png"):
        ImageStore(source, 8, 3)
    check(ImageStore(source.only([name for name in source.ids if name != "3.png"]), 8, 3))


def test_what_changes_the_pixels_changes_the_file(images: Path) -> None:
    check(ImageStore(opened(images), 8, 3))
    check(ImageStore(opened(images), 12, 3))
    check(ImageStore(opened(images), 8, 1))
    check(ImageStore(opened(images, fit="pad"), 8, 3))
    (images / "0.png").write_bytes((images / "6.png").read_bytes())
    check(ImageStore(opened(images), 8, 3))
    assert len(packed(images)) == 5
    shutil.copytree(images, images.parent / "moved/images")  # to another place, which changes nothing
    shutil.move(images.parent / "cache", images.parent / "moved/cache")
    ImageStore(opened(images.parent / "moved/images"), 8, 3)
    assert len(packed(images.parent / "moved/images")) == 5


def test_a_damaged_file_is_made_again_and_a_foreign_one_left(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    ImageStore(opened(images), 8, 3)
    (file,) = packed(images)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    check(ImageStore(opened(images), 8, 3))
    assert f"Set aside as {file.name}.damaged" in caplog.text
    whole = file.read_bytes()
    artifacts.write_artifact(file, "neighbours", {"images": torch.zeros(2)}, {"seed": 3})
    foreign = file.read_bytes()
    check(ImageStore(opened(images), 8, 3))
    assert file.read_bytes() == foreign
    assert file.with_stem(f"{file.stem}-2").read_bytes() == whole


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_without_room_each_process_holds_its_own(
    images: Path, decoded: list[str], number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(artifacts, "save_file", refuse)
    with caplog.at_level(logging.WARNING):
        store = ImageStore(opened(images), 8, 3)
    assert len(decoded) == 7
    check(store)
    assert "in memory" in store.description
    assert "each process holds its own" in caplog.text
    assert not packed(images)
    assert not list((images.parent / "cache").rglob("*.tmp"))


def test_without_a_cache_each_process_holds_its_own(images: Path) -> None:
    store = ImageStore(open_source(DatasetSettings(kind="folder", name="mine", path=str(images))), 8, 3)
    check(store)
    assert "in memory" in store.description
