"""What a report page shows of each kind of run, and what it says where there is nothing to show."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.clustering.bound import Measurement
from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.evaluation.evaluation_summary import table_of_scores
from pipeline.pictures.bound import BoundFindings
from pipeline.pictures.chart import Chart, Series, draw_axes, draw_png, draw_series, plotly_figure
from pipeline.pictures.curves import read_curve, smoothed
from pipeline.pictures.gallery import members_to_show
from pipeline.studies.comparison import joined, short_names
from pipeline.studies.comparison import protocols_of as compared_protocols
from pipeline.studies.page import Page
from pipeline.studies.run_page import protocols_of, table_of_numbers

from .conftest import Cedm
from .test_study import TINY, without_scripts

MODEL = ["network.model_channels=8", "training.duration_kimg=0.5", "clustering=random", "clustering.num_clusters=3"]


def chart(**more: Any) -> Chart:
    return Chart(**{"name": "c", "title": "", "x_name": "x", "y_name": "y", "series": [], **more})


def test_marks_of_logarithmic_axes() -> None:
    """Plain numbers: a browser's own marks say 5 for 0.5, and those of matplotlib are powers of ten."""
    wide = chart(series=[Series("a", [1, 200], [0.3, 12000.0])], y_log=True, x_log=True)
    layout = plotly_figure(wide).layout
    assert {(axis.type, axis.tickformat) for axis in (layout.xaxis, layout.yaxis)} == {("log", ",.6~r")}
    narrow = chart(series=[Series("a", [1, 2], [44.0, 57.0])], y_log=True)
    for drawn, expected in ((wide, {"0.5", "1", "10,000"}), (narrow, {"46", "50", "54"})):
        axes = Figure().subplots()
        draw_axes(axes, drawn)
        draw_series(axes, drawn.series[0])
        assert expected <= {label.get_text() for label in axes.get_yticklabels()}


def test_each_bar_has_its_name_on_a_line_of_its_own(tmp_path: Path) -> None:
    names = [f"temi-{C}" for C in range(18)]
    bars = chart(
        series=[Series("TEMI", names, [1.0] * 18, style="bars"), Series("none", ["none"], [0.5], style="bars")]
    )
    figure = plotly_figure(bars)
    assert (list(figure.data[0].y), figure.data[0].orientation, figure.layout.yaxis.dtick) == (names, "h", 1)
    assert figure.layout.height > 18 * 20
    assert bars.bar_names[0] == "none"
    draw_png(bars, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").exists()


def test_levels_alone_are_no_data(tmp_path: Path) -> None:
    levels = chart(series=[Series("none", [], [3.0], style="level")])
    assert not levels.has_data
    draw_png(levels, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()


def findings(*used: tuple[int, float, int, int]) -> BoundFindings:
    return BoundFindings([Measurement(*one) for one in used], threshold=0.96)


def test_the_facts_and_tables_of_a_bound(tmp_path: Path) -> None:
    """C, β, seed and clusters used of each clustering."""
    found = findings((10, 0.6, 0, 10), (100, 0.6, 0, 97), (200, 0.6, 0, 100), (200, 1.0, 0, 30))
    assert (found.facts["upper bound"], found.facts["coarse end"]) == ("100", "30")
    assert findings((10, 0.6, 0, 10)).facts["upper bound"].startswith("at least 10")
    assert findings((10, 0.6, 0, 5)).facts["upper bound"].startswith("none")
    upper, coarse = found.tables
    assert upper.header == ["C", "utilization ratio", "used, seed 0"]
    assert upper.rows[1:] == [["100", "0.970 ✓", "97"], ["200", "0.500", "100"]]
    assert coarse.rows == [["200", "0.150", "30"]]
    two = findings((10, 0.6, 0, 10), (10, 0.6, 1, 9)).tables[0]
    assert two.rows == [["10", "0.950 ± 0.071 (✓)", "10", "9"]]  # half an empty cluster on average
    assert two.as_text().splitlines()[-1].split() == ["10", "0.950", "±", "0.071", "(✓)", "10", "9"]
    chart = found.chart("digits")
    assert chart.shaded == (30, 100, "worth trying: 30 to 100")
    draw_png(chart, tmp_path / "bound.png")
    assert len(plotly_figure(chart).data) == 2  # a line for each β


def score(**settings: Any) -> dict[str, Any]:
    sets = [{"num_images": 50, "seeds": "0 to 49"}, {"num_images": 50, "seeds": "50 to 99"}]
    protocol = {"extractor": {"name": "pixels"}, "generated": sets, **settings}
    return {"sets": [4.0, 2.0], "best": 2.0, "mean": 3.0, "protocol": protocol, "beside": ""}


def test_every_set_and_every_protocol_of_an_evaluation() -> None:
    scores = {"fd_pixels": score(), "precision": score(k=3), "recall": score(k=3), "copies": score() | {"best": None}}
    table = table_of_scores(scores)
    assert table.header == ["score", "set 1", "set 2", "best", "mean", "measured"]
    assert table.rows[0] == ["fd_pixels ↓", "4", "2", "2", "3", "on pixels"]
    assert table.rows[3] == ["copies", "4", "2", "", "3", "on pixels"]
    sure = table_of_scores(scores | {"fd_pixels": score() | {"intervals": [[3.5, 4.5], [1.7, 2.3]]}})
    assert sure.header[-2:] == ["95 %", "measured"]
    assert [row[-2] for row in sure.rows] == ["± 0.4", "", "", ""]
    shared, *own = protocols_of(scores).items()
    assert shared[0] == "fd_pixels, precision, recall, copies"
    assert shared[1]["generated"] == {"num_images": 50, "seeds": ["0 to 49", "50 to 99"]}
    assert own == [("precision", {"k": 3}), ("recall", {"k": 3})]
    assert list(protocols_of({"fid": score()})) == ["fid"]


def test_numbers_have_names() -> None:
    (table,) = table_of_numbers({"nmi": 54.321, "nimg": 20480, "fd_pixels": 3.0, "x": "text", "flag": True})
    assert table.rows == [["NMI (%)", "54.32"], ["training images seen", "20,480"], ["fd_pixels", "3"]]


def test_confident_images_are_shown_where_confidence_tells_images_apart() -> None:
    class Store:
        def gather(self, indices: torch.Tensor) -> torch.Tensor:
            return indices.to(torch.uint8).reshape(-1, 1, 1, 1)

    def shown(confidence: torch.Tensor) -> list[int]:
        labels = PseudoLabels(torch.zeros(40, dtype=torch.long), 1, confidence, [str(n) for n in range(40)])
        return members_to_show(labels, 0, Store()).flatten().tolist()  # type: ignore[arg-type]

    assert shown(torch.linspace(0, 1, 40)) == [39, 38, 37, 36, 35, 34]
    assert shown(torch.ones(40)) != [0, 1, 2, 3, 4, 5]  # the first ones are no random ones


@pytest.mark.parametrize("text", ["{}", "[1]", '{"command": "study", "arguments": []}', "{"])
def test_a_summary_that_is_none(cedm: Cedm, workplace: Path, text: str) -> None:
    (workplace / "run").mkdir()
    (workplace / "run/summary.json").write_text(text)
    result = cedm("report", "run=run")
    assert (result.code, "summary.json" in result.err) == (2, True), result.err


def test_pages_of_a_clustering_a_training_and_an_evaluation(cedm: Cedm, workplace: Path) -> None:
    few = [word for word in TINY if not word.startswith(("clustering", "network.model"))]
    assert cedm("cluster", *MODEL, "trainer.accelerator=cpu", "run_dir=groups").code == 0
    assert cedm("train", *MODEL, *few, "evaluation.log_every_kimg=0.1", "run_dir=model").code == 0
    measured = cedm("evaluate", "generated=model", "metrics=[fd]", "num=50", "sets=2", *few, "run_dir=measured")
    assert measured.code == 0, measured.err
    for folder in ("groups", "model", "measured"):
        result = cedm("report", f"run={folder}")
        assert result.code == 0, result.err
    groups, model, measured_page = (
        without_scripts(Path(folder, "report.html").read_text()) for folder in ("groups", "model", "measured")
    )
    assert "EDM loss" not in groups
    assert 'alt="Images of the largest clusters."' in groups
    assert all(words in model for words in ("Real: randomly chosen images", "Training loss", "fd_pixels is"))
    assert model.count("data:image/png;base64,") == 2  # real and generated
    curve = smoothed(read_curve(Path("model"), "train/loss"))
    loss = next(line for line in model.split("<tr>") if "training loss at the end" in line)
    assert f"{curve[-1][1]:.4g}" in loss
    summary = json.loads(Path("measured/summary.json").read_text())
    assert all(f"{value:,.3f}" in measured_page for value in summary["scores"]["fd_pixels"]["sets"])
    assert all(seeds in measured_page for seeds in ("0 to 49", "50 to 99"))

    faster = [*MODEL, *few, "evaluation.log_every_kimg=0.1", "training.lr=0.01", "run_dir=faster"]
    Path("names.csv").write_text("cluster,name\n0,round ones\n2,<i>\n")
    assert cedm("train", *faster, "cluster_names=names.csv").code == 0
    assert Denoiser.from_pretrained("faster").cluster_names == {0: "round ones", 2: "<i>"}
    assert cedm("report", "run=[model,faster]").code == 0
    compared = without_scripts(Path("model/comparison.html").read_text())
    rows = dict(re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", compared))
    assert rows["training.lr"] == "<td>0.002</td><td>0.01</td>"
    assert "training.batch_size" not in rows  # the same in both
    losses = [smoothed(read_curve(Path(run), "train/loss"))[-1][1] for run in ("model", "faster")]
    assert rows["training loss at the end"] == "".join(f"<td>{loss:.4g}</td>" for loss in losses)
    distances = [json.loads(Path(run, "summary.json").read_text())["fd_pixels"] for run in ("model", "faster")]
    assert rows["fd_pixels"] == "".join(f"<td>{distance:.4g}</td>" for distance in distances)
    assert compared.count("data:image/png;base64,") == 4
    (figures,) = re.findall(r"const figures = (.*);\n", Path("model/comparison.html").read_text())
    loss = next(figure for name, figure in json.loads(figures).items() if name.startswith("loss"))
    assert [trace["name"] for trace in loss["data"]] == ["model", "faster"]
    assert "not measured alike" not in compared
    generated = cedm("generate", "ckpt=faster", "num=8", "steps=2", "run_dir=made", "cluster_names=names.csv")
    assert generated.code == 0, generated.err

    for file in workplace.glob("cache/pseudo-labels/*"):
        file.unlink()
    assert cedm("report", "run=model", "file=elsewhere.html").code == 0
    page = without_scripts(Path("elsewhere.html").read_text())
    assert ("No gallery" in page, "pseudo-labels" in page, "Real: " in page) == (True, True, False)
    assert "elsewhere.html" not in page  # the command is that of the run, not of the report


@pytest.mark.parametrize("runs", ["[]", "[a,a]", "[a,./a]", "[a,[b]]", "{a:b}", "true"])
def test_what_cannot_be_compared(cedm: Cedm, workplace: Path, runs: str) -> None:
    result = cedm("report", f"run={runs}")
    assert (result.code, "expected" in result.err) == (2, True), result.err


def test_runs_go_by_the_ends_of_their_paths(tmp_path: Path) -> None:
    folders = [tmp_path / "a/1", tmp_path / "b/1", tmp_path / "b/2"]
    assert short_names(folders) == ["a/1", "b/1", "b/2"]
    assert short_names(folders[1:]) == ["1", "2"]


def test_what_was_measured_in_other_ways_is_told() -> None:
    pages = {
        name: Page("", "", [], {}, protocols={"fid": {"num": num}, "kid": {"num": 5}})
        for name, num in (("a", 10), ("b", 20))
    }
    protocols, (note,) = compared_protocols(pages)
    assert list(protocols) == ["fid, a", "fid, b", "kid"]
    assert note.startswith("fid was not measured alike")


def test_charts_of_the_same_axes_become_one() -> None:
    one = chart(series=[Series("", [1], [2.0])])
    several = chart(series=[Series("p", [1], [2.0]), Series("q", [1], [3.0])])
    other = chart(series=[Series("", [1], [2.0])], y_name="z")
    first, second = joined({"a": [one, other], "b": [several]})
    assert [series.name for series in first.series] == ["a", "b: p", "b: q"]
    assert [series.name for series in second.series] == ["a"]
    assert first.name != second.name
