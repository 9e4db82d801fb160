"""`cedm study` and `cedm report`, as typed: the plan, going on, failures, the page."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Cedm

TINY = [
    "clustering.max_epochs=2",
    "clustering.warmup_epochs=1",
    "clustering.num_heads=2",
    "network.model_channels=8",
    "network.num_blocks=1",
    "training.batch_size=64",
    "evaluation.num_images=64",
    "evaluation.grid_every_kimg=1",
    "sampler.steps=2",
    "trainer.accelerator=cpu",
]
SMALL = [*TINY, "study.clusters=[3]", "study.duration_kimg=0.5", "study.num_images=64", "study.sampling_sets=2"]


def own_study(folder: Path, runs: str, settings: str = "question: Is it so?\n") -> str:
    """A study of the user's own, in a folder of theirs; the argument that makes it known."""
    (folder / "own/study").mkdir(parents=True)
    (folder / "own/study/mine.yaml").write_text(f"{settings}runs:\n{runs}")
    return f"--config-dir={folder / 'own'}"


def without_scripts(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, flags=re.S)


def commands(printed: str) -> list[list[str]]:
    return [shlex.split(line) for line in printed.splitlines() if line and not line.startswith("#")]


def test_the_jobs_know_the_yaml_files_that_the_user_brought(cedm: Cedm, workplace: Path) -> None:
    own = own_study(workplace, "  none: [conditioning=none]\n")
    (workplace / "own/network").mkdir()
    (workplace / "own/network/mine.yaml").write_text("defaults: [ddpmpp_small, _self_]\nmodel_channels: 8\n")
    result = cedm("study", own, "study=mine", "network=mine", "study.print=true")
    assert result.code == 0, result.err
    train = commands(result.out)[0]
    assert train[1:3] == ["train", own]
    composed = cedm("train", *train[2:], "--cfg", "job")
    assert (composed.code, "model_channels: 8" in composed.out) == (0, True), composed.err


LATER = "# Later: at most 4 trainings of 12 kimg, as the bound tells, then one of 120 kimg."


@pytest.mark.parametrize(
    ("name", "told"),
    [("auto", LATER), ("conditioning", ""), ("confidence", "keep=0.5"), ("efficiency", "every_kimg=10")],
)
def test_every_study_prints_its_commands(cedm: Cedm, workplace: Path, name: str, told: str) -> None:
    words = [] if name == "auto" else ["study.clusters=[5]"]
    result = cedm("study", f"study={name}", "study.print=true", *words, *TINY)
    assert (result.code, told in result.out) == (0, True), result.err
    printed = commands(result.out)
    assert {words[1] for words in printed} <= {"embed", "cluster", "train", "bound", "evaluate", "generate"}
    assert all(any(word.startswith("run_dir=") for word in words) for words in printed)
    assert not (workplace / "runs").exists()


def test_runs_that_cannot_be_had_are_left_out(cedm: Cedm, workplace: Path) -> None:
    """Backbones of the study's own choosing without their weights, and labels of a folder that has none."""
    gone = "[backbone=dino_vitb16, backbone.path=nowhere]"
    own = own_study(workplace, f"  pixels: [backbone=pixels]\n  gone: {gone}\n")
    result = cedm("study", own, "study=mine", "study.print=true", *TINY)
    assert result.code == 0, result.err
    assert "# gone: left out, " in result.out
    assert [words[1] for words in commands(result.out)] == ["embed", "cluster", "train", "evaluate"]
    (workplace / "images").mkdir()
    Image.new("L", (8, 8)).save(workplace / "images/one.png")
    (workplace / "own/study/mine.yaml").write_text("question: Is it so?\nruns:\n  labels: [clustering=labels]\n")
    result = cedm("study", own, "study=mine", "dataset=folder", f"dataset.path={workplace / 'images'}")
    assert (result.code, "No run is left" in result.err, "no labels" in result.err) == (2, True, True), result.err


def test_a_job_is_known_by_what_its_files_hold_and_not_by_its_name(cedm: Cedm, workplace: Path) -> None:
    own = own_study(workplace, "  own: [assignments=ids.npy]\n")
    planned = []
    for ids in (np.arange(1797) % 3, np.arange(1797) % 4):
        np.save("ids.npy", ids)
        result = cedm("study", own, "study=mine", "study.print=true", *TINY)
        assert result.code == 0, result.err
        planned.append(result.out)
    assert planned[0] != planned[1]
    run_dir = next(word for word in commands(planned[1])[0] if word.startswith("run_dir="))
    folder = Path(run_dir.removeprefix("run_dir=").strip('"'))
    folder.mkdir(parents=True)  # as if it were trained; with another seed beside it, the job's own name tells its seed
    both = cedm("study", own, "study=mine", "study.print=true", "study.seeds=[0,1]", *TINY)
    trained = [words for words in commands(both.out) if words[1] == "train"]
    assert [str(folder) in " ".join(words) for words in trained] == [True, False]


def test_each_clustering_and_each_embedding_is_made_once(cedm: Cedm) -> None:
    result = cedm("study", "study=granularity", "study.print=true", "study.clusters=[5]", "study.seeds=[0,1]", *TINY)
    other = cedm("study", "study=correlation", "study.print=true", "study.clusters=[5]", "study.seeds=[0,1]", *TINY)
    trained = {line for line in other.out.splitlines() if " train " in line}
    assert len(trained) == 12  # none, labels, two random ones, k-means and TEMI, of two seeds
    assert trained <= set(result.out.splitlines())  # studies share what is the same
    names = [words[1] for words in commands(result.out)]
    assert names.count("embed") == 2  # with neighbours for TEMI, and without
    assert names.count("train") == 2 * (1 + 1 + 2 + 1 + 1)
    clusterings = 1 + 2 * (2 + 1 + 1)  # the labels are the same for every seed
    assert names.count("cluster") == clusterings + 1  # of the bound at β = 1; it needs those of TEMI too
    trained = [words for words in commands(result.out) if words[1] == "train"]
    assert all("training.duration_kimg=120" in words for words in trained)
    assert all("evaluation.num_images=64" in words for words in trained)  # what the user types reaches every job


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["clustering=temi"], "clustering: the study sets it"),
        (["training.duration_kimg=3"], "Set study.duration_kimg instead"),
        (["seed=3"], "study.seeds"),
        (["study=granularty"], "granularity"),
        (["study.plots=[pie]"], "not pie"),
        (["study.measure=[beauty]"], "beauty"),
        (["study.metrics=[fd,foo]"], "no metric 'foo'"),
        (["study.metrics=[prdc]"], "Set study.metrics=[fd,prdc]"),
        (["study=auto", "study.metrics=[prdc]"], "Set study.metrics=[fd,prdc]"),
        (["study.metrics=[fd,kid]", "study.num_images=64"], "kid.subset_size"),
        (["evaluation.backbone=null"], "evaluation.backbone=pixels"),
        (["study=auto", "evaluation.backbone=null"], "evaluation.backbone=pixels"),
        (["+study.runs.mine=['training.lr={lrs}']"], "study.lrs"),
        (["+study.runs.mine=['training.learning_rate=1']"], "study.runs.mine"),
        (["study.clusters=[5000]"], "clustering.num_clusters=5000"),
        (["study.duration_kimg=0"], "study.duration_kimg=0"),
        (["trainer.devices=two"], "trainer.devices=two"),
    ],
)
def test_mistakes(cedm: Cedm, workplace: Path, words: list[str], expected: str) -> None:
    few = [] if "study=auto" in words else ["study.clusters=[5]"]  # jobs, each of which is composed before the next
    result = cedm("study", "trainer.accelerator=cpu", *few, *words)
    assert (result.code, expected in result.err) == (2, True), result.err
    assert not (workplace / "runs").exists()


@pytest.mark.slow
def test_a_study_from_start_to_page(cedm: Cedm, workplace: Path) -> None:
    """Two workers, tables, plots and a page that stands alone; the same command again does nothing twice.

    Labels for 5 images are no labels for 1,797: that training fails and is named, and the others go on.
    """
    (workplace / "few.csv").write_text("id,cluster\n" + "".join(f"train/{row:05d},{row % 2}\n" for row in range(5)))
    measured = "measure: [distance, bound, confidence]\nplots: [granularity, confidence, description_length]\n"
    own = f"question: Does clustering help?\n{measured}"
    runs = "  none: [conditioning=none]\n  temi: ['clustering.num_clusters={clusters}']\n"
    runs += "  theirs: [assignments=few.csv]\n"
    words = [own_study(workplace, runs, own), "study=mine", *SMALL, "dataset.holdout=0.1"]
    words += ["trainer.devices=2", "run_dir=out"]
    result = cedm("study", *words)
    assert result.code == 2
    assert "train-theirs" in result.err
    assert "of 1613 images" in result.err  # in the job's own words: a tenth of 1,797 is held out
    assert "evaluate-theirs: not run, because train-theirs failed" in result.err
    assert "By description length" in result.out
    assert "cost " in result.out
    summary = json.loads((workplace / "out/summary.json").read_text())
    assert ([run["name"] for run in summary["runs"]], summary["missing"]) == (["none", "temi-3"], ["theirs"])
    assert all(len(run["distances"]) == 2 for run in summary["runs"])
    assert summary["metric"] == "fd_pixels"
    assert summary["bound"]["measurements"]
    assert len(summary["runs"][1]["confidence"]["distances_kept"]) == 2
    assert (workplace / "out/results.csv").read_text().count("\n") == 3
    without, length = (run["length"] for run in summary["runs"])
    assert without is None
    assert 0 < length["price"] <= np.log(3)
    assert [gain["lowest"] for gain in length["gains"]] == [0.02, 0.002]
    assert (workplace / "out/granularity.png").stat().st_size > 10_000

    page = (workplace / "out/report.html").read_text()
    assert "Does clustering help?" in page
    assert "Missing: theirs" in page
    assert summary["answer"][0].replace("'", "&#39;") in page
    outside = without_scripts(page)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", outside)  # opens without network
    assert outside.count("data:image/png;base64,") == 2  # real and generated
    for clusters, shown in ((2, 2), (9, 0)):  # of names for clusters that there are, and that there are not
        Path("names.csv").write_text(f"cluster,name\n{clusters},round\n")
        assert cedm("report", "run=out", "cluster_names=names.csv", "file=named.html").code == 0
        assert without_scripts(Path("named.html").read_text()).count("data:image/png;base64,") == shown

    log = next(workplace.glob("runs/digits/study-jobs/train-none-*/log.txt")).read_text()
    assert f"$ cedm train {words[0]} " in log

    files = {path: path.stat().st_mtime_ns for path in workplace.glob("runs/digits/study-jobs/*/summary.json")}
    assert cedm("study", *words).code == 2
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.slow
def test_auto_finds_c_and_trains_the_best(cedm: Cedm, workplace: Path) -> None:
    words = ["study=auto", *TINY, "study.duration_kimg=0.5", "study.final_kimg=1", "study.num_images=64"]
    result = cedm("study", *words, "run_dir=out", "bound.grid=[3,6]")
    assert result.code == 0, result.err
    summary = json.loads((workplace / "out/summary.json").read_text())
    assert summary["final"]["kimg"] == 1.024
    assert summary["final"]["name"].removesuffix("-final") in [run["name"] for run in summary["runs"]]
    assert len(summary["final"]["distances"]) == 3
    final, short = summary["final"]["name"], summary["final"]["name"].removesuffix("-final")
    page = (workplace / "out/report.html").read_text()
    assert f"The best, {short}, was trained again for 1.024 kimg" in page
    assert f"<td>{final}</td>" in page
    assert summary["left_out"] == []
    assert {f"final model of {final}", "final model"} < set(summary["protocol"])
    promised = [line for line in result.out.splitlines() if line.startswith("later")]
    assert promised[0].startswith("later       at most 4 trainings of 0.5 kimg")
    assert promised[1] == "later       the best once more, for 1 kimg; counted below"
