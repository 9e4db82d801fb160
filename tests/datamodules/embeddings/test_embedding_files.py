"""Embeddings that another program computed, in files that each format's own library writes."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datamodules.embeddings.computed_elsewhere import import_embeddings
from datamodules.embeddings.embedding_files import read_embedding_file
from datamodules.embeddings.embeddings import Embeddings
from storage.errors import UserError

from ..opening import opened

VALUES = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
NAMES = [f"{folder}/{number}.png" for folder in ("a", "b") for number in range(3)]
LABELS = [0, 1, 0, 1, 0, 1]


def write_csv(path: Path, heading: list[str] | None, rows: list[list[Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([*([heading] if heading else []), *rows])


def parquet(path: Path, columns: dict[str, Any]) -> None:
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(pyarrow.table(columns), path)


def frame(path: Path, **options: Any) -> None:
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(VALUES).assign(**options).to_csv(path)


ROWS = [[name, label, *row] for name, label, row in zip(NAMES, LABELS, VALUES.tolist(), strict=True)]
IDS = torch.tensor(list("\n".join(NAMES).encode()), dtype=torch.uint8)
F16 = VALUES.astype(np.float16)
BY_ID: dict[str, Callable[[Path], object]] = {  # with ids and labels
    "a.npz": lambda path: np.savez(path, features=VALUES, ids=np.array(NAMES), labels=np.array(LABELS)),
    "a.pt": lambda path: torch.save({"x": torch.from_numpy(VALUES), "ids": NAMES, "labels": LABELS}, path),
    "a.safetensors": lambda path: save_file(
        {"x": torch.from_numpy(VALUES), "ids": IDS, "labels": torch.tensor(LABELS)}, path
    ),
    "a.csv": lambda path: write_csv(path, ["ID", "label", "f0", "f1", "f2"], ROWS),
    "semicolons.csv": lambda path: write_csv(path, ["id", "Label", "x", "y", "z"], ROWS, ";"),
    "a.tsv": lambda path: write_csv(path, ["id", "label", "0", "1", "2"], ROWS, "\t"),
    "one.parquet": lambda path: parquet(path, {"id": NAMES, "embedding": list(VALUES), "label": LABELS, "n": LABELS}),
    "many.parquet": lambda path: parquet(
        path, {"id": NAMES, "label": LABELS, **{f"f{d}": VALUES[:, d] for d in range(3)}}
    ),
}
IN_ORDER: dict[str, Callable[[Path], object]] = {  # without
    "a.npy": lambda path: np.save(path, VALUES),
    "fortran.npy": lambda path: np.save(path, np.asfortranarray(VALUES.astype(">f8"))),
    "a.pt": lambda path: torch.save(torch.from_numpy(VALUES).requires_grad_(), path),
    "A.PT": lambda path: torch.save({"a": torch.zeros(6, 3), "b": torch.from_numpy(VALUES)}, path),
    "a.safetensors": lambda path: save_file({"values": torch.from_numpy(VALUES), "mean": torch.zeros(3)}, path),
    "savetxt.csv": lambda path: np.savetxt(path, VALUES, delimiter=","),
    "pandas.csv": frame,
    "indexed.csv": lambda path: frame(path, label=LABELS),
    "lists.parquet": lambda path: parquet(path, {"embedding": list(VALUES), "caption_length": LABELS}),
}


@pytest.mark.parametrize("name", BY_ID)
def test_every_kind_of_file_with_ids_and_labels(name: str, tmp_path: Path) -> None:
    BY_ID[name](tmp_path / name)
    found = read_embedding_file(str(tmp_path / name))
    assert np.allclose(found.values, VALUES, atol=1e-7)
    assert (found.ids, list(map(int, found.labels or []))) == (NAMES, LABELS)


@pytest.mark.parametrize("name", IN_ORDER)
def test_every_kind_of_file_without_ids(name: str, tmp_path: Path) -> None:
    IN_ORDER[name](tmp_path / name)
    found = read_embedding_file(f"{tmp_path / name}{'::b' if name == 'A.PT' else ''}")
    assert np.allclose(found.values, VALUES, atol=1e-7)
    assert (found.values.dtype, found.ids) == (torch.float32, None)


def test_headings_and_other_types(tmp_path: Path) -> None:
    """A first line of numbers is data unless it counts the columns; half precision is taken as it is, and told of."""
    write_csv(tmp_path / "a.csv", None, [[row[0], *row[2:]] for row in ROWS])
    found = read_embedding_file(str(tmp_path / "a.csv"))
    assert (found.ids, len(found.values)) == (NAMES, 6)
    np.save(tmp_path / "a.npy", F16)
    torch.save(torch.from_numpy(VALUES).bfloat16(), tmp_path / "a.pt")
    parquet(tmp_path / "a.parquet", {"x": list(F16)})
    for name, kind in (("a.npy", "float16"), ("a.pt", "bfloat16"), ("a.parquet", "float16")):
        found = read_embedding_file(str(tmp_path / name))
        assert (found.values.dtype, found.note) == (torch.float32, f"{kind}, taken as float32")
        assert np.allclose(found.values, VALUES, atol=0.02)


def test_columns_that_are_left_out_are_named(tmp_path: Path) -> None:
    """One that is no feature by its heading is none by accident."""
    for name in ("a.csv", "a.parquet"):
        if name == "a.csv":
            write_csv(tmp_path / name, ["id", "score", "f0", "f1"], [["a", 0.9, 1, 2], ["b", 0.8, 3, 4]])
        else:
            parquet(tmp_path / name, {"id": ["a", "b"], "score": [0.9, 0.8], "f0": [1.0, 3.0], "f1": [2.0, 4.0]})
        found = read_embedding_file(str(tmp_path / name))
        assert found.values.tolist() == [[1, 2], [3, 4]]
        assert "columns left out: score" in found.note


def bad(place: tuple[int, int], value: float) -> np.ndarray:
    values = VALUES.astype(np.float64)
    values[place] = value
    return values


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "NaN": ("a.npy", lambda path: np.save(path, bad((4, 1), np.nan)), r"row 4 holds NaN.*1 such rows of 6"),
    "infinity": ("a.npy", lambda path: np.save(path, bad((0, 0), np.inf)), "row 0 holds NaN, infinity"),
    "beyond float32": ("a.npy", lambda path: np.save(path, bad((2, 2), 1e300)), "row 2 holds .*float32 cannot hold"),
    "missing in a table": (
        "a.csv", lambda path: write_csv(path, ["id", "x", "y"], [["a", 1, 2], ["b", "", 3]]), "row 1, 'b', holds NaN"
    ),
    "integers": ("a.npy", lambda path: np.save(path, np.zeros((6, 3), np.int64)), "6, 3. of int64; .*assignments=FILE"),
    "bools": ("a.pt", lambda path: torch.save(torch.ones(6, 3, dtype=torch.bool), path), "of bool; embeddings are"),
    "complex": ("a.npy", lambda path: np.save(path, VALUES.astype(np.complex64)), "complex64"),
    "one axis": ("a.npy", lambda path: np.save(path, VALUES[:, 0]), r"an array \[6\] of float32; embeddings are \[im"),
    "tokens": ("a.npy", lambda path: np.save(path, VALUES[:, None]), r"\[6, 1, 3\].*array\.reshape\(len\(array"),
    "no rows": ("a.npy", lambda path: np.save(path, VALUES[:0]), r"\[0, 3\]"),
    "objects": ("a.npy", lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "Python objects"),
    "code": ("a.pt", lambda path: torch.save({"x": np.random.default_rng(0)}, path), "which is no tensor"),
    "several": (
        "a.npz", lambda path: np.savez(path, x=VALUES, y=VALUES), r"2 arrays; there are x, y. Choose one with .*::KEY"
    ),
    "twice": (
        "a.csv", lambda path: write_csv(path, ["id", "x"], [["a", 1], ["b", 2], ["a", 3]]), "'a' stands in rows 0 and 2"
    ),
    "too few ids": ("a.npz", lambda path: np.savez(path, x=VALUES, ids=np.array(NAMES[1:])), "5 ids for 6 embeddings"),
    "empty id": ("a.npz", lambda path: np.savez(path, x=VALUES, ids=np.array(["", *NAMES[1:]])), "row 0: the id '' is"),
    "control character": (
        "a.pt", lambda path: torch.save({"x": torch.zeros(1, 2), "ids": ["a\nb"]}, path), r"the id 'a\\nb' is empty or"
    ),
    "ids by another name": (
        "a.csv", lambda path: write_csv(path, ["file", "x"], [["a", 1], ["b", 2]]), "ids in 'file'. Call it id"
    ),
    "ids in pandas' index": ("a.csv", lambda path: write_csv(path, ["", "0"], [["a", 1.5]]), "ids in ''. Call it id"),
    "ids by another name, Parquet": (
        "a.parquet", lambda path: parquet(path, {"url": NAMES, "x": list(VALUES)}), "ids in 'url'. Call it id"
    ),
    "decimal commas": (
        "a.csv", lambda path: path.write_text("id;f0;f1\na;1.5;2\nb;0,5;0,7\n"), "row 1: .*0,5.* a decimal point"
    ),
    "underscores": ("a.csv", lambda path: path.write_text("id,f0\na,1\nb,1_0\n"), "row 1: '1_0' is no number"),
    "a heading twice": ("a.csv", lambda path: path.write_text("id,x,x\na,1,2\n"), "id,x,x names a column twice"),
    "spaces for commas": ("a.csv", lambda path: np.savetxt(path, VALUES), "no column of numbers, separated by commas"),
    "ids of two axes": ("a.npz", lambda path: np.savez(path, x=VALUES, ids=np.array([NAMES] * 6)), "ids holds several"),
    "an id is missing": ("a.parquet", lambda path: parquet(path, {"id": ["a", None], "f0": [1.0, 2.0]}), "row 1: the"),
    "inflates": ("a.parquet", lambda path: parquet(path, {"f0": np.zeros(10**7)}), "would inflate to 80,000,000 bytes"),
    "bytes": ("a.parquet", lambda path: parquet(path, {"x": [b"a", b"b"]}), "holds nothing that may be embeddings"),
    "ragged": ("a.csv", lambda path: path.write_text("id,f0,f1\na,1,2\nb,1\n"), "line 3 has not 3 columns"),
    "heading alone": ("a.csv", lambda path: path.write_text("id,f0\n"), "no line below the heading"),
    "ragged lists": ("a.parquet", lambda path: parquet(path, {"x": [[1.0], [1.0, 2.0]]}), "lists of 1, 2 numbers"),
    "no list": ("a.parquet", lambda path: parquet(path, {"x": [[1.0], None]}), "lists of 1, none numbers"),
    "list of integers": ("a.parquet", lambda path: parquet(path, {"x": [[1], [2]]}), "of int64"),
    "no Parquet": ("a.parquet", lambda path: path.write_bytes(b"PAR1" + b"x" * 40), "cannot be read as a Parquet"),
    "another suffix": ("a.h5", lambda path: path.write_bytes(b"x"), r"ends in \.npy, \.pt"),
    "a folder": ("a.npy", lambda path: path.mkdir(), "a folder. Give FILE"),
    "nothing": ("a.npy", lambda path: None, "no such file. Give FILE or FILE::key"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(fault: str, tmp_path: Path) -> None:
    name, write, message = FAULTS[fault]
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        read_embedding_file(str(tmp_path / name))
    assert name in str(error.value)


def imported(specification: Path | str, source: Any, cache: Path) -> Embeddings:
    return import_embeddings(str(specification), source, {"kind": "embeddings", "file": str(specification)}, cache)


def test_rows_go_to_the_images_by_id_or_in_their_order(tmp_path: Path) -> None:
    digits = opened("digits", max_images=6)
    order = np.random.default_rng(1).permutation(6)
    names = np.array(digits.ids)
    np.savez(tmp_path / "mixed.npz", x=np.vstack([VALUES[order], VALUES[:1]]), ids=np.append(names[order], "other"))
    np.save(tmp_path / "a.npy", VALUES)
    by_id = imported(tmp_path / "mixed.npz", digits, tmp_path / "cache")
    in_order = imported(tmp_path / "a.npy", digits, tmp_path / "cache")
    for found in (by_id, in_order):
        assert np.array_equal(found.values, VALUES)
        assert np.allclose(found.mean, VALUES.mean(0))
        assert np.allclose(found.std, VALUES.std(0))
    assert by_id.meta["settings"]["taken"] == "by id, 1 of other images left out"
    assert in_order.meta["settings"]["taken"] == "in the order of the images"
    whole = np.random.default_rng(2).normal(size=(1797, 2)).astype(np.float32)  # of which these images are a part
    np.save(tmp_path / "whole.npy", whole)
    found = imported(tmp_path / "whole.npy", digits, tmp_path / "cache")
    assert np.array_equal(found.values, whole[digits.positions])


def test_embeddings_of_other_images_are_refused(tmp_path: Path) -> None:
    digits = opened("digits", max_images=6)
    np.save(tmp_path / "turned.npy", VALUES.T)
    np.save(tmp_path / "five.npy", VALUES[:5])
    np.savez(tmp_path / "some.npz", x=VALUES[:5], ids=np.array(digits.ids[:5]))
    for name, message in (
        ("turned.npy", r"3 embeddings for 6 images of mine, 1,797 in the whole data set.*save array\.T"),
        ("five.npy", "5 embeddings for 6 images of mine"),
        ("some.npz", f"1 of 6 images of mine have no embedding, the first is '{digits.ids[5]}'"),
    ):
        with pytest.raises(UserError, match=message):
            imported(tmp_path / name, digits, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
