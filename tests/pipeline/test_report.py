"""What a report page shows of each kind of run, and what it says where there is nothing to show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from pipeline.pictures.chart import Chart, Series, draw_png, log_ticks, plotly_figure
from pipeline.pictures.gallery import members_to_show
from pipeline.studies.bound_evidence import bound_answer, bound_tables
from pipeline.studies.run_page import protocols_of, table_of_numbers, table_of_scores

from .conftest import Cedm
from .test_study import TINY, without_scripts

MODEL = ["network.model_channels=8", "training.duration_kimg=0.5", "clustering=random", "clustering.num_clusters=3"]


def chart(**more: Any) -> Chart:
    return Chart(**{"name": "c", "title": "", "x_name": "x", "y_name": "y", "series": [], **more})


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.3, 3.0, [0.5, 1.0, 2.0]),
        (2.0, 70.0, [2.0, 5.0, 10.0, 20.0, 50.0]),
        (0.5, 2e4, [1.0, 10.0, 100.0, 1000.0, 10000.0]),
        (44.0, 57.0, [45.0, 50.0, 55.0]),
        (7.0, 7.0, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]),
    ],
)
def test_marks_of_a_logarithmic_axis(low: float, high: float, expected: list[float]) -> None:
    assert set(expected) <= set(log_ticks(low, high))
    assert len(log_ticks(low, high)) <= 12


def test_a_logarithmic_axis_says_its_numbers_in_full() -> None:
    """plotly's own marks say 5 for 0.5."""
    figure = plotly_figure(chart(series=[Series("a", [1, 2], [0.3, 12000.0])], y_log=True))
    assert {"1", "10,000"} <= set(figure.layout.yaxis.ticktext)


def test_bars_lie_with_a_name_on_each_line() -> None:
    names = [f"temi-{C}" for C in range(18)]
    figure = plotly_figure(chart(series=[Series("TEMI", names, [1.0] * 18, style="bars")], bar_names=names))
    assert (list(figure.data[0].y), figure.data[0].orientation, figure.layout.yaxis.dtick) == (names, "h", 1)
    assert figure.layout.height > 18 * 20


def test_levels_alone_are_no_data(tmp_path: Path) -> None:
    levels = chart(series=[Series("none", [], [3.0], style="level")])
    assert not levels.has_data
    draw_png(levels, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()


def bound_summary(*used: tuple[int, float, int, int]) -> dict[str, Any]:
    names = ("num_clusters", "beta", "seed", "num_used")
    measurements = [dict(zip(names, one, strict=True)) for one in used]
    return {"measurements": measurements, "threshold": 0.96, "rule": "largest"}


def test_the_answer_of_a_bound() -> None:
    found = bound_summary((10, 0.6, 0, 10), (100, 0.6, 0, 97), (200, 0.6, 0, 100), (200, 1.0, 0, 30))
    answer = " ".join(bound_answer(found))
    assert "At most 100 clusters" in answer
    assert "coarse end is 30" in answer
    assert "may lie higher" not in answer
    assert "may lie higher" in " ".join(bound_answer(bound_summary((10, 0.6, 0, 10))))
    assert "No C that was tried" in " ".join(bound_answer(bound_summary((10, 0.6, 0, 5))))
    (caption, header, lines), (_, _, coarse) = bound_tables(found)
    assert "β = 0.6" in caption
    assert header == ["C", "utilization ratio", "used, seed 0"]
    assert lines[1:] == [["100", "0.970 ✓", "97"], ["200", "0.500", "100"]]
    assert coarse == [["200", "0.150", "30"]]


def score(**settings: Any) -> dict[str, Any]:
    sets = [{"num_images": 50, "seeds": "0 to 49"}, {"num_images": 50, "seeds": "50 to 99"}]
    protocol = {"extractor": {"name": "pixels"}, "generated": sets, **settings}
    return {"sets": [4.0, 2.0], "best": 2.0, "mean": 3.0, "protocol": protocol}


def test_every_set_and_every_protocol_of_an_evaluation() -> None:
    scores = {"fd_pixels": score(), "precision": score(k=3), "recall": score(k=3), "copies": score() | {"best": None}}
    table = table_of_scores(scores)
    assert table.header == ["score", "set 1", "set 2", "best", "mean"]
    assert table.rows[0] == ["fd_pixels ↓", "4", "2", "2", "3"]
    assert table.rows[3] == ["copies", "4", "2", "", "3"]
    shared, own = protocols_of(scores).items()
    assert shared[1]["generated"] == "images 50; seeds 0 to 49, 50 to 99"
    assert own == ("precision, recall", {"k": "3"})
    assert list(protocols_of({"fid": score()})) == ["fid"]


def test_numbers_have_names_and_units() -> None:
    (table,) = table_of_numbers({"kl_from_uniform": 0.25, "nmi": 54.321, "nimg": 20480, "fd_pixels": 3.0, "x": "text"})
    names = {row[0]: row[1] for row in table.rows}
    assert names == {
        "KL divergence from clusters of one size": "0.25 nats",
        "NMI": "54.3 %",
        "training images seen": "20,480",
        "fd_pixels": "3",
    }


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
    assert cedm("train", *MODEL, *few, "run_dir=model").code == 0
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
    assert "Real: randomly chosen images" in model
    summary = json.loads(Path("measured/summary.json").read_text())
    assert all(f"{value:,.3f}" in measured_page for value in summary["scores"]["fd_pixels"]["sets"])
    assert "0 to 49, 50 to 99" in measured_page

    for file in workplace.glob("cache/pseudo-labels/*"):
        file.unlink()
    assert cedm("report", "run=model", "file=elsewhere.html").code == 0
    page = without_scripts(Path("elsewhere.html").read_text())
    assert "cedm cluster network.model_channels=8" in page  # the run's own settings, not those of the report
    assert "elsewhere.html" not in page
