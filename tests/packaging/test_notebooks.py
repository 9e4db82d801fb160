"""The notebooks of the documentation, each in a kernel and an empty folder of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_ends_in_what_it_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shown = nbformat.read(path, as_version=4)
    ran = nbformat.from_dict(shown)
    NotebookClient(ran, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [kinds(cell) for cell in ran.cells] == [kinds(cell) for cell in shown.cells]


def kinds(cell: nbformat.NotebookNode) -> set[str]:
    """What kinds of output a cell has: text, pictures."""
    return {kind for output in cell.get("outputs", []) for kind in output.get("data", [output.output_type])}


def test_notebooks_are_small():
    assert len(NOTEBOOKS) == 2
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 200_000
