"""Whatever is typed or found in a file is taken, or refused by one clear message; never a traceback."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from datamodules.pseudo_labels.assignment_files import assignment_keys, label_key, read_cluster_ids
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.diffusion.denoiser import Denoiser
from metrics.frechet import Statistics
from pipeline.settings.compose import compose_config, leaves, to_settings
from storage.artifacts import _checksum
from storage.errors import UserError

few = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = st.integers(-(10**20), 10**20) | st.floats()
plain = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = plain | st.lists(plain, max_size=3) | st.dictionaries(st.text(max_size=4), plain, max_size=2)


@pytest.fixture(scope="module")
def defaults() -> DictConfig:
    return compose_config("train", [])


@settings(few, max_examples=50)  # each takes a tenth of a second
@given(data=st.data())
def test_any_value_of_any_setting(defaults: DictConfig, data: st.DataObject) -> None:
    cfg = defaults.copy()
    OmegaConf.set_struct(cfg, False)
    for key in data.draw(st.lists(st.sampled_from([key for key, _ in leaves(defaults)]), min_size=1, max_size=3)):
        OmegaConf.update(cfg, key, data.draw(values.filter(no_interpolation)), merge=False, force_add=True)
    refuses_or_takes(lambda: to_settings("train", cfg))


def no_interpolation(value: Any) -> bool:
    """`${…}` is Hydra's own language, and its errors are Hydra's."""
    return "$" not in str(value)


def refuses_or_takes(action: Callable[[], Any]) -> None:
    with suppress(UserError):
        action()


@few
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".pt", ".npy", ".csv", ".safetensors", ".txt"]))
def test_any_bytes_as_assignments(tmp_path: Path, content: bytes, suffix: str) -> None:
    read_as_assignments(tmp_path / f"a{suffix}", content, "")


csv_cells = st.text(alphabet='0123456789.-e"\n,idcluster ', max_size=6)


@few
@given(rows=st.lists(st.lists(csv_cells, min_size=1, max_size=3).map(",".join), max_size=5), key=st.text(max_size=3))
def test_any_table_as_assignments(tmp_path: Path, rows: list[str], key: str) -> None:
    read_as_assignments(tmp_path / "a.csv", "\n".join(rows).encode(), key)


@few
@given(ids=st.lists(numbers, max_size=5), dtype=st.sampled_from(["int64", "float32", "float64", "int8", "bool", "U5"]))
def test_any_array_as_assignments(tmp_path: Path, ids: list[float], dtype: str) -> None:
    """What is taken is what was written; NaN is no cluster, as −1 is."""
    try:
        with np.errstate(all="ignore"):
            array = np.array(ids).astype(dtype)
    except (OverflowError, ValueError, TypeError):
        return
    np.save(tmp_path / "a.npy", array, allow_pickle=array.dtype.hasobject)
    try:
        found = read_cluster_ids(tmp_path / "a.npy", "", None)
    except UserError:
        return
    if found.names is None:
        written = np.nan_to_num(array.astype(np.float64), nan=-1)
        assert torch.equal(found.values, torch.from_numpy(written.astype(np.int64)))


plain_json = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=8)
json_values = (
    plain_json | st.lists(plain_json, max_size=3) | st.dictionaries(st.text(max_size=4), plain_json, max_size=2)
)
ARTIFACTS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], dict[str, torch.Tensor]]] = {
    "pseudo-labels": (
        PseudoLabels.load,
        {"num_clusters": 2, "made_from": {}},
        {"cluster_ids": torch.tensor([0, 1]), "confidence": torch.ones(2), "ids": torch.tensor([97, 10, 98]).byte()},
    ),
    "clustering-head": (
        ClusteringHead.from_pretrained,
        {"architecture": {"embedding_dim": 2, "num_clusters": 2}, "backbone": {}, "temperature": 0.1},
        {"mean": torch.zeros(2), "std": torch.ones(2)},
    ),
    "feature-statistics": (Statistics.load, {"n": 3}, {"mean": torch.zeros(2), "cov": torch.eye(2)}),
    "denoiser": (Denoiser.from_pretrained, {"network": {}, "label_dim": 2, "sigma_data": 0.5}, {"x": torch.zeros(2)}),
}
DTYPES = [torch.float8_e4m3fn, torch.bfloat16, torch.int64, torch.uint16, torch.bool, torch.complex64]


@few
@given(data=st.data(), kind=st.sampled_from(sorted(ARTIFACTS)))
def test_any_artifact_with_the_right_checksum(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    """Of one thing in it, header or tensor, the value or the type is another."""
    read, meta, tensors = ARTIFACTS[kind]
    header: dict[str, Any] = {"kind": kind, "format": 1, "meta": dict(meta)}
    place = data.draw(st.sampled_from([header, header["meta"], tensors := dict(tensors)]))
    key = data.draw(st.sampled_from(sorted(place)))
    if place is tensors:
        tensors[key] = data.draw(
            st.sampled_from([tensors[key][:, None], tensors[key][:0], *map(tensors[key].to, DTYPES)])
        )
    else:
        place[key] = data.draw(json_values)
    text = json.dumps({**header, "sha256": _checksum(header, tensors)})
    save_file(tensors, tmp_path / "a.safetensors", metadata={"cedm": text})
    refuses_or_takes(lambda: read(tmp_path / "a.safetensors"))


@few
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), suffix=st.sampled_from([".pt", ".npy", ".safetensors"]))
def test_a_flipped_bit_in_assignments(tmp_path: Path, position: int, bit: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save({"clusters3": torch.arange(20) % 3}, path)
    elif suffix == ".npy":
        np.save(path, np.arange(20) % 3)
    else:
        save_file({"clusters3": torch.arange(20) % 3}, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    read_as_assignments(path, bytes(content), "")


def read_as_assignments(path: Path, content: bytes, key: str) -> None:
    path.write_bytes(content)
    for action in (
        lambda: read_cluster_ids(path, key, None),
        lambda: read_cluster_ids(path, key, ["a", "b"]),
        lambda: assignment_keys(path),
        lambda: label_key(path),
    ):
        refuses_or_takes(action)
