"""`cedm bound`, from assignments that exist and from clusterings that it trains."""

import csv
import re
import shlex
import shutil
from pathlib import Path

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
    assert found["upper_bound_by_threshold"] == {"0.94": 100, "0.95": 100, "0.96": 100, "0.97": 100, "0.98": 10}
    assert "0.94: 100, 0.95: 100, 0.96: 100, 0.97: 100, 0.98: 10" in result.out
    refused = cedm("bound", "assignments=ids.safetensors", "bound.used_when=probable", "run_dir=b")
    assert (refused.code, "probabilities" in refused.err) == (2, True)


def test_a_number_of_clusters_that_one_empty_one_would_decide_is_marked(cedm: Cedm, workplace: Path) -> None:
    images = torch.arange(600)
    used = {10: 9, 20: 20, 30: 28, 100: 95}
    save_file({f"x.beta0.6.clusters{C}": images % number for C, number in used.items()}, workplace / "ids.safetensors")
    result = cedm("bound", "assignments=ids.safetensors", "bound.rule=unbroken", "run_dir=run")
    assert (result.code, summary("run")["upper_bound"]) == (0, 20), result.err
    marks = {int(line.split()[0]): line.split()[2:-1] for line in result.out.splitlines() if line[:6].strip().isdigit()}
    assert marks == {10: ["(✓)"], 20: ["✓"], 30: [], 100: []}


@pytest.mark.slow
def test_500_for_the_published_assignments_of_cifar10(cedm: Cedm, workplace: Path, real_data: Path) -> None:
    path = real_data / "cifar10-published-assignments.safetensors"
    assert cedm("bound", f"assignments={path}", "run_dir=run").code == 0
    assert (summary("run")["upper_bound"], summary("run")["coarse_end"]) == (500, 34)


def test_it_trains_the_grid_once_and_takes_the_rest_from_the_cache(cedm: Cedm, workplace: Path) -> None:
    assert cedm("embed").code == 0
    settings = [*SHORT, "bound.num_seeds=2", "trainer.accelerator=cpu"]
    first = cedm("bound", *settings, "bound.grid=[2]", "run_dir=first")
    assert first.code == 0, first.err
    settings += ["bound.grid=[2,5]"]
    result = cedm("bound", *settings, "run_dir=run")
    assert result.code == 0, result.err
    trained = sorted(path.name for path in workplace.glob("run/clusterings/*"))
    assert trained == [f"clusters5-beta{beta}-seed{seed}" for beta in (0.6, 1.0) for seed in (0, 1)]
    for name in ("gallery.png", "clusters.png", "map.png", "clusters.csv", "summary.json"):
        assert (workplace / "run/clusterings" / trained[0] / name).is_file(), name
    found = summary("run")
    assert [m["num_clusters"] for m in found["measurements"]] == [2, 2, 5, 5, 5, 5]
    assert {m["beta"] for m in found["measurements"]} == {0.6, 1.0}
    assert result.out.count("known") == 2
    assert ("at least 5 (no larger" in result.out) == (found["upper_bound"] == 5)
    assert "no C of 100 or more was tried" in result.out
    probable = cedm("bound", *settings, "bound.used_when=probable", "run_dir=probable")
    assert probable.code == 0, probable.err
    assert "set bound.threshold=0.3" in probable.out
    assert all(1 <= m["num_used"] <= m["num_clusters"] for m in summary("probable")["measurements"])
    assert not (workplace / "probable/clusterings").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["bound.rule=biggest"], "one of largest, unbroken"),
        (["bound.grid=[1,10]"], "bound.grid=[1, 10]"),
        (["bound.grid=[10,5000]"], "1797 images"),
        (["bound.threshold=96"], "bound.threshold=96"),
        (["assignments=gone.safetensors"], "gone.safetensors"),
        (["clustering=kmeans"], "TEMI"),
        ([], "cedm embed"),
        (["bound.num_seeds=0"], "bound.num_seeds=0"),
        (["clustering.objective=pmi"], "clustering.objective=pmi"),
        (["clustering.beta=0.8"], "β = 0.6"),
        (["clustering.num_clusters=50"], "bound.grid"),
    ],
)
def test_mistakes(cedm: Cedm, workplace: Path, overrides: list[str], expected: str) -> None:
    result = cedm("bound", *overrides)
    assert (result.code, expected in result.err) == (2, True), result.err


def test_a_message_names_a_command_that_works(cedm: Cedm, workplace: Path) -> None:
    """Without the settings that only `bound` has."""
    result = cedm("bound", "bound.grid=[2,5]", "dataset.max_images=300", "clustering.hidden_dim=32", "run_dir=run")
    assert result.code == 2
    found = re.search(r"Make it with: \S*cedm (\w+) (.*)", result.err)
    assert found is not None
    assert found[1] == "embed"
    assert shlex.split(found[2]) == ["dataset.max_images=300", "clustering.hidden_dim=32"]
    assert cedm("embed", *shlex.split(found[2])).code == 0


def test_seeds_and_kinds_of_a_file(cedm: Cedm, workplace: Path) -> None:
    ids = torch.arange(60)
    keys = {"a.beta0.6.clusters10.seed0": 10, "a.beta0.6.clusters10.seed4": 5, "b.beta0.6.clusters20": 20}
    save_file({key: ids % used for key, used in keys.items()}, workplace / "ids.safetensors")
    refused = cedm("bound", "assignments=ids.safetensors")
    assert (refused.code, "ids.safetensors::b." in refused.err) == (2, True), refused.err
    result = cedm("bound", "assignments=ids.safetensors::a.", "run_dir=run")
    assert result.code == 0, result.err
    assert [(m["seed"], m["num_used"]) for m in summary("run")["measurements"]] == [(0, 10), (4, 5)]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.beta0.6.clusters0", "at least 2"),
        ("a.beta0.6.clusters1", "at least 2"),
        ("a.beta..clusters10", "expected a key"),
        ("a.beta.clusters10", "expected a key"),
        ("a.beta0.6.clusters3", "cluster id 3"),
        ("a.beta0.60.clusters4", "the same C"),
        ("beta0.6", "no key ends in"),
    ],
)
def test_keys_of_a_file_that_cannot_be_meant(cedm: Cedm, workplace: Path, key: str, expected: str) -> None:
    ids = torch.arange(4)
    others = {} if key == "beta0.6" else {"a.beta0.6.clusters4": ids.clone()}
    save_file({key: ids, **others}, workplace / "ids.safetensors")
    result = cedm("bound", "assignments=ids.safetensors")
    assert (result.code, expected in result.err) == (2, True), result.err


@pytest.mark.slow
def test_two_jobs_at_a_time_give_the_table_of_one(cedm: Cedm, workplace: Path) -> None:
    """Through Ray on this machine. A clustering that fails is named in its own words, and keeps the others."""
    assert cedm("embed").code == 0
    settings = [*SHORT, "bound.grid=[2,5]", "trainer.accelerator=cpu", "seed=3"]
    assert cedm("embed", "cache_dir=other").code == 0
    one = cedm("bound", *settings, "trainer.devices=1", "cache_dir=other", "run_dir=one")
    assert one.code == 0, one.err
    blocked = workplace / "two/clusterings/clusters2-beta0.6-seed3"
    blocked.mkdir(parents=True)
    (blocked / "settings.json").write_text("{")
    shutil.copy("one/settings.json", "two")
    failed = cedm("bound", *settings, "trainer.devices=2", "run_dir=two")
    assert (failed.code, "1 of 3 clusterings failed:\nclusters2-beta0.6-seed3: exit code" in failed.err) == (2, True)
    (blocked / "settings.json").unlink()
    two = cedm("bound", *settings, "trainer.devices=2", "run_dir=two")
    assert two.code == 0, two.err
    assert Path("two/bound.csv").read_text() == Path("one/bound.csv").read_text()
    assert summary("two")["measurements"] == summary("one")["measurements"]
