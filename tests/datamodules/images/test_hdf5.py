"""Arrays in HDF5 files, which are read image by image."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from storage.errors import UserError

from .test_named_sets import opened, pixels, refusal


def read_in_another_process(source: Any, row: int, queue: Any) -> None:
    queue.put(np.asarray(source.image(row)))


def test_an_array_of_an_hdf5_file_is_read_image_by_image(tmp_path: Path) -> None:
    images, path = pixels(20, 9, 9, 3), tmp_path / "galaxies.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "images", data=images, chunks=(3, 9, 9, 3), compression="gzip", shuffle=True, fletcher32=True
        )
        file["ans"], file["names"] = np.arange(20) % 4, [b"spiral", "elliptisch, früh".encode()] * 10
        file["deep/of floats"] = np.linspace(0, 1, 20 * 81).reshape(20, 9, 9).astype(">f4")
        file["few"] = np.arange(3)
        file["nothing"] = h5py.Empty("f4")
    source = opened("hdf5", path, label_key="ans")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 3] * 5
    queue: Any = multiprocessing.get_context("fork").Queue()
    assert np.array_equal(np.asarray(source.image(3)), images[3])  # open before the fork
    worker = multiprocessing.get_context("fork").Process(target=read_in_another_process, args=(source, 19, queue))
    worker.start()
    assert np.array_equal(queue.get(timeout=60), images[19])
    worker.join()
    assert len(pickle.dumps(source)) < 10_000
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(source)).image(7)), images[7])
    assert opened("hdf5", path, label_key="names").class_names == ["elliptisch, früh", "spiral"]
    few = opened("hdf5", path, label_key="few")
    assert few.labels is None
    assert "[3] for [20] images" in few.labels_note
    floats = opened("hdf5", path, image_key="deep/of floats", channels=1, value_range=[0, 1])
    assert np.asarray(floats.image(19))[8, 8, 0] == 255
    assert floats.fingerprint != opened("hdf5", path, image_key="images").fingerprint
    assert "holds no array 'gone'; there are ans, deep/of floats, few, images, names" in refusal(
        "hdf5", path, image_key="gone"
    )
    assert "whose range nothing says" in refusal("hdf5", path, image_key="deep/of floats")
    assert "expected numbers [N, H, W]" in refusal("hdf5", path, image_key="few")
    assert "Python objects or text" in refusal("hdf5", path, image_key="names")


def test_hdf5_files_that_are_damaged_or_lead_elsewhere(tmp_path: Path) -> None:
    images, path = pixels(40, 9, 9), tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("images", data=images, chunks=(1, 9, 9), fletcher32=True)
        place = stored.id.get_chunk_info(17).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    source = opened("hdf5", path, channels=1)
    with pytest.raises(UserError, match=r"'train/00017' cannot be used: cannot be read .*filter returned failure"):
        source.image(17)
    assert len(opened("hdf5", path, channels=1, on_bad_file="skip")) == 39
    (tmp_path / "half.h5").write_bytes(content[: len(content) // 2])
    assert "truncated or damaged" in refusal("hdf5", tmp_path / "half.h5")

    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["images"] = images
    (tmp_path / "raw").write_bytes(images.tobytes())
    layout = h5py.VirtualLayout(images.shape, "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "images", images.shape)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "images")
        file["group/link"] = h5py.SoftLink("/link")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("outside", images.shape, "u1", external=[(str(tmp_path / "raw"), 0, images.size)])
        file.create_dataset("huge", (10**9, 64, 64), "u1", chunks=(1, 64, 64))
    for key in ("link", "group/link"):
        assert f"holds no array {key!r}" in refusal("hdf5", tmp_path / "other.h5", image_key=key)
    for key in ("virtual", "outside"):
        assert "its numbers lie in other files" in refusal("hdf5", tmp_path / "other.h5", image_key=key)
    assert "4,096,000,000,000 bytes in a file of" in refusal("hdf5", tmp_path / "other.h5", image_key="huge")
    (tmp_path / "plain.h5").write_bytes(b"PK\3\4")
    assert "an HDF5 file is expected, and this is a ZIP" in refusal("hdf5", tmp_path / "plain.h5")
    assert "no such file. Set dataset.path=FILE.h5" in refusal("hdf5", tmp_path / "gone.h5")
