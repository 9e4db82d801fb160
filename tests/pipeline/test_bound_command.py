"""`cedm bound`, from assignments that exist and from clusterings that it trains."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from .conftest import Cedm, summary

SHORT = ["clustering.max_epochs=2", "clustering.warmup_epochs=1", "clustering.num_heads=1", "map_images=50"]


def test_from_assignments(cedm: Cedm, workplace: Path) -> None:
    images = torch.arange(600)
    used = {("0.6", 10): 10, ("0.6", 100): 97, ("0.6", 200): 150, ("1", 100): 30, ("1", 200): 36}
    tensors = {f"x.beta{beta}.clusters{C}": images % number for (beta, C), number in used.items()}
    save_file({**tensors, "labels.x": images % 2}, workplace / "ids.safetensors")
    result = cedm("bound", "assignments=ids.safetensors", "run_dir=run")
    assert result.code == 0, result.err
    found = summary("run")
    assert (found["upper_bound"], found["coarse_end"], found["threshold"]) == (100, 33, 0.96)
    assert found["worth_training"] == [100]
    assert len(list(csv.DictReader(Path("run/bound.csv").read_text().splitlines()))) == 5
    assert Image.open("run/bound.png").width > 100
    assert cedm("bound", "assignments=ids.safetensors", "bound.threshold=0.99", "run_dir=a").code == 0
    assert summary("a")["upper_bound"] == 10
    refused = cedm("bound", "assignments=ids.safetensors", "bound.used_when=probable", "run_dir=b")
    assert (refused.code, "probabilities" in refused.err) == (2, True)


@pytest.mark.slow
def test_500_for_the_published_assignments_of_cifar10(cedm: Cedm, workplace: Path, real_data: Path) -> None:
    path = real_data / "cifar10-published-assignments.safetensors"
    assert cedm("bound", f"assignments={path}", "run_dir=run").code == 0
    assert (summary("run")["upper_bound"], summary("run")["coarse_end"]) == (500, 34)


def test_it_trains_the_grid_once_and_goes_on_where_it_stopped(
    cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cedm("embed").code == 0
    settings = [*SHORT, "bound.grid=[2,5]", "bound.num_seeds=2"]

    import pipeline.bound_grid
    from pipeline.cluster import train_temi

    trained = []

    def count_and_stop(*arguments: Any) -> Any:
        trained.append(arguments[0].clustering.num_clusters)
        if len(trained) == 3:
            raise OSError("power cut")
        return train_temi(*arguments)

    monkeypatch.setattr(pipeline.bound_grid, "train_temi", count_and_stop)
    with pytest.raises(OSError, match="power cut"):
        cedm("bound", *settings)
    result = cedm("bound", *settings, "run_dir=run")
    assert result.code == 0, result.err
    assert trained == [2, 2, 5, 5, 5, 5, 5]  # C = 2 is not trained again; then C = 5 at both β and both seeds
    found = summary("run")
    assert [m["num_clusters"] for m in found["measurements"]] == [2, 2, 5, 5, 5, 5]
    assert {m["beta"] for m in found["measurements"]} == {0.6, 1.0}
    assert "known" in result.out
    probable = cedm("bound", *settings, "bound.used_when=probable", "run_dir=probable")
    assert probable.code == 0, probable.err
    assert all(1 <= m["num_used"] <= m["num_clusters"] for m in summary("probable")["measurements"])
    assert len(trained) == 7


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["bound.rule=biggest"], "bound.rule=largest"),
        (["bound.grid=[1,10]"], "bound.grid=[1, 10]"),
        (["bound.grid=[10,5000]"], "1797 images"),
        (["bound.threshold=96"], "0.96"),
        (["assignments=gone.safetensors"], "gone.safetensors"),
        (["clustering=kmeans"], "TEMI"),
        ([], "cedm embed"),
    ],
)
def test_mistakes(cedm: Cedm, workplace: Path, overrides: list[str], expected: str) -> None:
    result = cedm("bound", *overrides)
    assert (result.code, expected in result.err) == (2, True), result.err
