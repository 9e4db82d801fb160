"""The sentences of a study are computed: what doesn't hold in the numbers isn't said."""

from dataclasses import replace
from typing import Any

from pipeline.studies.chart import plotly_figure
from pipeline.studies.curves import smoothed
from pipeline.studies.distances import distances_in
from pipeline.studies.findings import CHARTS, correlation_table
from pipeline.studies.results import Confidence, Result, Results
from pipeline.studies.tables import as_csv, as_markdown, measurements_of, row_of


def result(group: str, num_clusters: int | None = None, distances: list[float] | None = None, **more: Any) -> Result:
    name = group if num_clusters is None else f"{group}-{num_clusters}"
    method = more.pop("method", group)
    values = {"backbone": "pixels", "seed": 0, "kimg": 40.0, "curve": [], **more}
    return Result(name, group, method, num_clusters, distances=distances or [], **values)


def results(*runs: Result, **more: Any) -> Results:
    return Results("test", "Does it help?", "digits", "fd_pixels", list(runs), **more)


BOUND = {
    "upper_bound": 40,
    "coarse_end": 8.0,
    "threshold": 0.96,
    "measurements": [{"num_clusters": C} for C in (5, 10, 40)],
}
CLUSTERS = (
    result("temi", 5, [3.0, 3.1, 2.9]),
    result("temi", 10, [2.0, 2.1, 1.9]),
    result("temi", 80, [2.6, 2.7, 2.5]),
)


def test_clusters_that_help_inside_the_bound() -> None:
    plain, labels = result("none", None, [6.0, 6.2, 5.9]), result("labels", 10, [2.1, 2.0, 1.95])
    chart = CHARTS["granularity"](results(plain, labels, *CLUSTERS, bound=BOUND))
    assert "The best clustering is TEMI with C = 10: fd_pixels 2.00 ± 0.10." in chart.finding
    assert "better than no condition (6.03 ± 0.15)" in chart.finding
    assert "not told apart from labels" in chart.finding
    assert "lies inside the range that the bound gives, 8 to 40" in chart.finding
    assert chart.shaded == (8.0, 40.0, "bound: 8 to 40")
    assert {series.name.split(" (")[0] for series in chart.series} == {"no condition", "labels", "TEMI"}


def test_clusters_that_do_not_help_outside_the_bound() -> None:
    chart = CHARTS["granularity"](
        results(result("none", None, [1.0, 1.1, 0.9]), *CLUSTERS, bound=BOUND | {"coarse_end": 20.0})
    )
    assert "worse than no condition" in chart.finding
    assert (
        "lies below the range that the bound gives, 20 to 40, and no C that was tried lies inside it." in chart.finding
    )
    inside = result("temi", 40, [2.1, 2.2, 1.9])
    chart = CHARTS["granularity"](results(*CLUSTERS, inside, bound=BOUND | {"coarse_end": 20.0}))
    assert "20 to 40; inside it, C = 40 is not told apart from it." in chart.finding
    worse = result("temi", 40, [2.6, 2.7, 2.5])
    chart = CHARTS["granularity"](results(*CLUSTERS, worse, bound=BOUND | {"coarse_end": 20.0}))
    assert "20 to 40, and is better than all C inside it." in chart.finding


def test_controls_with_the_same_verdict_share_a_sentence() -> None:
    controls = [result("none", None, [6.0, 6.2, 5.9]), result("random", 10, [5.0, 5.1, 5.2])]
    finding = CHARTS["granularity"](results(*controls, *CLUSTERS)).finding
    expected = "It is better than no condition (6.03 ± 0.15) and random groups with C = 10 (5.10 ± 0.10)."
    assert finding.endswith(expected), finding


def test_runs_of_one_c_that_differ_in_a_setting_are_not_pooled() -> None:
    plain, dropped = result("temi", 10, [1.0, 1.1, 0.9]), result("temi", 10, [9.0, 9.1, 8.9])
    runs = [replace(plain, name="temi-10-0.0"), replace(dropped, name="temi-10-0.1")]
    chart = CHARTS["granularity"](results(result("none", None, [6.0, 6.2, 5.9]), *runs))
    assert "The best clustering is temi-0.0 with C = 10: fd_pixels 1.00 ± 0.10." in chart.finding
    assert [series.name for series in chart.series][1:] == ["temi-0.0", "temi-0.1"]


def test_one_set_of_seeds_decides_nothing() -> None:
    chart = CHARTS["granularity"](results(result("none", None, [6.0]), result("temi", 10, [2.0])))
    assert "not told apart from no condition" in chart.finding
    assert "no error bars" in chart.how


def test_how_many_times_fewer_images() -> None:
    plain = result("none", None, curve=[(10.0, 10.0), (20.0, 8.0), (40.0, 4.0)])
    fast = result("temi", 10, curve=[(10.0, 4.0), (40.0, 2.0)])
    slow = result("temi", 80, curve=[(10.0, 10.0), (40.0, 5.0)])
    found = CHARTS["efficiency"](results(plain, fast, slow)).finding
    assert "fd_pixels is 4 after 40 kimg" in found
    assert "With TEMI (temi-10) that takes at most 10 kimg, at least 4.0 times fewer." in found
    assert "1 of 2 models on clusters need at least 3 times fewer images" in found  # one does not get there
    assert "With TEMI, no model gets there." in CHARTS["efficiency"](results(plain, slow)).finding


def test_correlations_leave_the_controls_out() -> None:
    """A perfect relation over the clusterings, and controls that would spoil it."""
    scores = [{"nmi": 10.0 * C, "accuracy": 50.0, "ari": float(C % 3)} for C in range(1, 7)]
    runs = [result("temi", C + 1, [float(10 - C)], scores=score) for C, score in enumerate(scores)]
    table = correlation_table(results(*runs, result("random", 9, [100.0], scores={"nmi": 0.0})))
    assert table["nmi"].n == 6
    assert round(table["nmi"].pearson.value, 6) == -1
    assert "accuracy" not in table  # the same for all: nothing goes with it
    finding = CHARTS["correlation"](results(*runs)).finding
    assert CHARTS["correlation_ari"](results(*runs)).series[0].marks == ["1", "2", "3", "4", "5", "6"]
    assert CHARTS["correlation_accuracy"](results(*runs)).finding.startswith("Not to be told of accuracy")
    assert "by rank correlation, C (ρ = -1.00 [-1.00, -1.00]) and NMI (ρ = -1.00 [-1.00, -1.00]) go with" in finding
    assert "Not shown to: ARI" in finding
    assert "accuracy" not in finding  # the same for all: nothing goes with it


def test_confidence_is_compared_with_as_many_images_without_choice() -> None:
    deciles = [(0.1 * step, 0.09 * step) for step in range(1, 11)]
    sure = Confidence(0.81, 0.93, 0.5, deciles, distances_kept=[1.5, 1.6, 1.4])
    finding = CHARTS["confidence"](results(result("temi", 40, [2.0, 2.1, 1.9], confidence=sure))).finding
    assert "81 % of the generated images fall into the cluster that was asked for" in finding
    assert "93 % of the most confident 50 %" in finding
    assert "most confident is 1.50 ± 0.10, of as many without choice 2.00 ± 0.10: better." in finding


def test_every_chart_says_so_where_nothing_was_measured() -> None:
    for name, chart_of in CHARTS.items():
        chart = chart_of(results())
        assert chart.finding, name
        plotly_figure(chart).to_json()


def test_results_survive_json_and_tables_hold_every_measurement() -> None:
    sure = Confidence(0.8, 0.9, 0.5, [(0.5, 0.8)], [1.0])
    before = results(result("temi", 10, [2.0, 3.0], curve=[(1.0, 9.0)], confidence=sure), bound=BOUND)
    assert Results.from_json(before.as_json()) == before
    rows = measurements_of(before.runs[0])
    assert [(row["kimg"], row["distance"]) for row in rows] == [(1.0, 9.0), (40.0, 2.0), (40.0, 3.0)]
    assert as_csv([row_of(before.runs[0])]).splitlines()[1].startswith("temi-10,temi,10,pixels,0,40,2.5,0.707107,2")
    assert "| temi-10 | 10 | 40 | 2.50 ± 0.71 |" in as_markdown(before, [])


def test_a_smoothed_curve_keeps_its_end_and_fits_a_page() -> None:
    curve = [(float(step), float(step % 2)) for step in range(5000)]  # 0, 1, 0, 1, …
    shown = smoothed(curve)
    assert len(shown) <= 400
    assert shown[-1] == (4999.0, 0.5)
    assert smoothed([]) == []
    assert smoothed([(1.0, 7.0)]) == [(1.0, 7.0)]


def test_the_protocol_of_a_study_is_what_all_its_models_share() -> None:
    generated = [{"path": "a", "sha256": "x", "steps": 18, "seeds": f"{n}00 to {n}99"} for n in range(2)]
    score = {"sets": [1.0, 2.0], "protocol": {"extractor": {"name": "pixels"}, "generated": generated}}
    name, values, protocol = distances_in({"scores": {"precision": {}, "fd_pixels": score}})
    assert (name, values) == ("fd_pixels", [1.0, 2.0])
    assert protocol["generated"] == {"steps": 18, "seeds": ["000 to 099", "100 to 199"]}
