"""The findings of a study are computed: verdicts, tables and what the answer names follow from the numbers."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from metrics.denoising_errors import Estimate
from pipeline.pictures.chart import Chart, plotly_figure
from pipeline.pictures.curves import smoothed
from pipeline.studies.analysis import welch_test
from pipeline.studies.comparisons import how_sure
from pipeline.studies.findings import CHARTS, correlation_table
from pipeline.studies.gains import DescriptionLength, Gain
from pipeline.studies.page import write_markdown
from pipeline.studies.results import Confidence, Result, Results, distances_in
from pipeline.studies.study_page import answer_of, measurements_of, study_page, write_tables

BETTER, WORSE, SAME, UNTESTED = "better", "worse", "not significantly different", "not tested"


def result(group: str, num_clusters: int | None = None, distances: list[float] | None = None, **more: Any) -> Result:
    name = group if num_clusters is None else f"{group}-{num_clusters}"
    method = more.pop("method", group)
    values = {"backbone": "pixels", "seed": 0, "kimg": 40.0, "curve": [], **more}
    return Result(name, group, method, num_clusters, distances=distances or [], **values)


def results(*runs: Result, **more: Any) -> Results:
    return Results("test", "Does it help?", "digits", "fd_pixels", list(runs), **more)


def verdicts(chart: Chart) -> dict[tuple[str, str], str]:
    """(model, rival) → verdict, of a chart's table."""
    return {(row[0], row[1]): row[2] for row in chart.table.rows} if chart.table else {}


def bound(upper: int, coarse: int, *grid: int) -> dict[str, Any]:
    """The summary of a bound: all clusters used up to `upper`, and so many at β = 1."""
    used = [(C, 0.6, 0, C if upper >= C else 0) for C in grid] + [(max(grid), 1.0, 0, coarse)]
    names = ("num_clusters", "beta", "seed", "num_used")
    measurements = [dict(zip(names, one, strict=True)) for one in used]
    return {"measurements": measurements, "threshold": 0.96, "rule": "largest", "used_when": "assigned"}


CLUSTERS = (
    result("temi", 5, [3.0, 3.1, 2.9]),
    result("temi", 10, [2.0, 2.1, 1.9]),
    result("temi", 80, [2.6, 2.7, 2.5]),
)
NONE = result("none", None, [6.0, 6.2, 5.9])
BEST = "TEMI with C = 10"


def test_the_best_clustering_against_controls_and_its_c_against_the_bound() -> None:
    labels, random = result("labels", 10, [2.1, 2.0, 1.95]), result("random", 10, [5.0, 5.1, 5.2])
    chart = CHARTS["granularity"](results(NONE, labels, random, *CLUSTERS, bound=bound(40, 8, 5, 10, 40, 80)))
    expected = {"no condition": BETTER, "labels": SAME, "random groups with C = 10": BETTER}
    assert verdicts(chart) == {(BEST, rival): judged for rival, judged in expected.items()}
    assert chart.table is not None
    assert chart.table.rows[0][3:] == ["-4.03", "0.18", "<0.0001", "2.00 ± 0.10", "6.03 ± 0.15"]
    assert all(part in chart.finding for part in (f"{BEST}: fd_pixels 2.00 ± 0.10", "inside", "8 to 40"))
    assert chart.shaded == (8.0, 40.0, "bound: 8 to 40")
    worse = CHARTS["granularity"](results(result("none", None, [1.0, 1.1, 0.9]), *CLUSTERS))
    assert verdicts(worse) == {(BEST, "no condition"): WORSE}


@pytest.mark.parametrize(
    ("at_40", "judged"), [(None, None), ([2.1, 2.2, 1.9], SAME), ([2.6, 2.7, 2.5], BETTER)], ids=str
)
def test_a_best_c_outside_the_bound_is_compared_with_those_inside(at_40: list[float] | None, judged: str) -> None:
    inside = [result("temi", 40, at_40)] if at_40 else []
    chart = CHARTS["granularity"](results(*CLUSTERS, *inside, bound=bound(40, 20, 5, 10, 40, 80)))
    assert "below" in chart.finding
    assert verdicts(chart).get((BEST, "TEMI with C = 40")) == judged


@pytest.mark.parametrize(
    ("found", "shaded"),
    [
        (bound(40, 8, 5, 10, 40), (8.0, 40.0, "bound: 8 to at least 40")),  # nothing was tried above
        (bound(5, 20, 5, 10, 40), (5.0, 20.0, "bound: 5 to 20")),  # the coarse end lies above the upper one
        (bound(0, 20, 5, 10), None),  # no C reaches the threshold
    ],
)
def test_the_ends_of_the_bound(found: dict[str, Any], shaded: tuple[float, float, str] | None) -> None:
    assert CHARTS["granularity"](results(*CLUSTERS, bound=found)).shaded == shaded


def test_runs_of_one_c_that_differ_in_a_setting_are_not_pooled() -> None:
    plain, dropped = result("temi", 10, [1.0, 1.1, 0.9]), result("temi", 10, [9.0, 9.1, 8.9])
    chart = CHARTS["granularity"](results(NONE, replace(plain, values=["0.0"]), replace(dropped, values=["0.1"])))
    assert verdicts(chart) == {("temi-0.0 with C = 10", "no condition"): BETTER}
    assert [series.name for series in chart.series][1:] == ["temi-0.0", "temi-0.1"]


def test_one_set_of_seeds_decides_nothing() -> None:
    one = results(result("none", None, [6.0]), result("temi", 10, [2.0]))
    for name in ("granularity", "bars"):
        assert verdicts(CHARTS[name](one)) == {(BEST, "no condition"): UNTESTED}
    assert "no error bars" in CHARTS["granularity"](one).how


def test_how_many_times_fewer_images() -> None:
    plain = result("none", None, curve=[(10.0, 10.0), (20.0, 8.0), (40.0, 4.0)])
    fast = result("temi", 10, curve=[(10.0, 4.0), (40.0, 2.0)])
    slow = result("temi", 80, curve=[(10.0, 10.0), (40.0, 5.0)])
    equal = replace(plain, name="labels", group="labels", method="labels")
    chart = CHARTS["efficiency"](results(plain, fast, slow, equal))
    assert chart.table is not None
    assert chart.table.rows == [
        ["none", "4", "40", ""],
        ["temi-10", "4", "at most 10", "at least 4"],
        ["temi-80", "4", "never", "at most 1"],
        ["labels", "4", "40", "1"],
    ]
    assert "TEMI at least 4 (temi-10)" in chart.finding
    assert CHARTS["efficiency"](results(fast)).table is None


def test_each_training_without_condition_is_compared_with_those_of_its_seed() -> None:
    runs = [
        replace(result(group, curve=[(10.0, 9.0), (20.0 + 10 * seed, 4.0)]), seed=seed, name=f"{group}-seed{seed}")
        for seed in (0, 1)
        for group in ("none", "temi")
    ]
    chart = CHARTS["efficiency"](results(*runs))
    assert chart.table is not None
    assert [row[0::2] for row in chart.table.rows] == [[run.name, f"{20 + 10 * run.seed}"] for run in runs]


def trained(group: str, num_clusters: int | None, means: list[float]) -> list[Result]:
    """A training for each mean, of three sets that differ by 0.01."""
    sets = [[m - 0.01, m, m + 0.01] for m in means]
    return [replace(result(group, num_clusters, values), seed=seed) for seed, values in enumerate(sets)]


def test_the_answer_says_how_sure_it_is() -> None:
    """Deviations are pooled; what would be missed is what the test behind the verdict says."""
    one = how_sure(results(NONE, *CLUSTERS))
    assert "not known how much trainings differ" in one
    assert "one training differ by 0.12;" in one  # √((6 · 0.01 + 0.14 / 3) / 8)
    several = how_sure(results(*trained("none", None, [3.0, 2.0]), *trained("temi", 10, [1.9, 2.4])))
    assert "differ by 0.56 (standard deviation, 24.0% of the distance)" in several  # √((0.5 + 0.125) / 2)
    assert "one training differ by 0.01;" in several
    test = welch_test([1.9, 2.4], [3.0, 2.0])
    assert test is not None
    assert f"differences under {test.missed_below:.2g} would be missed" in several
    assert several in answer_of(results(*trained("none", None, [3.0, 2.0]), *trained("temi", 10, [1.9, 2.4])), [])
    assert how_sure(results(NONE)) == how_sure(results()) == ""


def test_sets_of_one_training_are_not_trainings() -> None:
    """Two trainings of each, whose sets agree: 6 values a side look certain, 2 means a side tell nothing."""
    chart = CHARTS["granularity"](results(*trained("none", None, [3.0, 2.0]), *trained("temi", 10, [1.9, 2.4])))
    assert verdicts(chart) == {(BEST, "no condition"): SAME}
    assert chart.table is not None
    assert chart.table.rows[0][-1] == "2.50 ± 0.71"
    assert "Welch" in chart.table.caption
    uneven = CHARTS["granularity"](results(NONE, *trained("temi", 10, [1.0, 1.1])))
    assert verdicts(uneven) == {(BEST, "no condition"): UNTESTED}


def test_sets_from_the_same_seeds_are_compared_one_by_one() -> None:
    """Every set is a tenth lower, and the sets differ by more than that among themselves."""
    plain, ours = result("none", None, [2.0, 3.0, 4.0]), result("temi", 10, [1.9, 2.91, 3.89])
    assert verdicts(CHARTS["granularity"](results(plain, ours))) == {(BEST, "no condition"): BETTER}


def test_the_best_of_many_is_judged_as_one_of_many() -> None:
    """A difference that is certain of a single clustering (p = 0.01) is not of the best of eight."""
    plain = result("none", None, [3.0, 3.0, 3.0])
    lucky = result("temi", 10, [2.80, 2.84, 2.79])
    orders = [(0, 1, -1), (1, -1, 0), (-1, 0, 1), (0.5, 0, -0.5), (-0.5, 0.5, 0), (0, -1, 1), (1, 0, -1)]
    others = [
        result("temi", C, [3 + 0.1 * x for x in order]) for C, order in zip(range(20, 90, 10), orders, strict=True)
    ]
    assert verdicts(CHARTS["granularity"](results(plain, lucky))) == {(BEST, "no condition"): BETTER}
    assert verdicts(CHARTS["granularity"](results(plain, lucky, *others))) == {(BEST, "no condition"): SAME}


def test_controls_are_known_by_what_they_do_and_not_by_their_name() -> None:
    runs = [
        result("base", None, [6.0, 6.2, 5.9], method="none"),
        result("dice", 10, [6.1, 6.2, 5.8], method="random"),
        result("truth", 10, [1.0, 1.1, 0.9], method="labels"),
    ]
    chart = CHARTS["granularity"](results(*runs, *CLUSTERS))
    assert verdicts(chart) == {(BEST, "base"): BETTER, (BEST, "dice with C = 10"): BETTER, (BEST, "truth"): WORSE}
    assert [series.style for series in chart.series] == ["level", "line", "level", "line"]


def test_temi_is_compared_with_other_conditions_of_as_many_clusters() -> None:
    kmeans = [
        result("kmeans", 5, [4.0, 4.11, 3.9]),
        result("kmeans", 10, [2.0, 2.05, 1.97]),
        result("kmeans", 80, [1.6, 1.71, 1.5]),
        result("kmeans", 99, [1.0, 1.0, 1.0]),
    ]
    expected = {
        (f"TEMI with C = {C}", f"k-means with C = {C}"): judged for C, judged in ((5, BETTER), (10, SAME), (80, WORSE))
    }
    assert verdicts(CHARTS["granularity"](results(*CLUSTERS, *kmeans))) == expected
    random = result("random", 80, [6.0, 6.2, 5.9])
    runs = [NONE, result("clip", 10, [1.0, 1.12, 0.9]), kmeans[1], random, CLUSTERS[1]]
    rivals = {"no condition": BETTER, "CLIP with C = 10": WORSE, "k-means with C = 10": SAME}
    expected = {(BEST, rival): judged for rival, judged in rivals.items()}
    assert verdicts(CHARTS["conditions"](results(*runs))) == expected


def test_correlations_leave_the_controls_out() -> None:
    """A perfect relation over the clusterings, and controls that would spoil it."""
    scores = [{"nmi": 10.0 * C, "accuracy": 50.0, "ari": float(C % 3)} for C in range(1, 7)]
    runs = [result("temi", C + 1, [float(10 - C)], scores=score) for C, score in enumerate(scores)]
    with_control = results(*runs, result("random", 9, [100.0], scores={"nmi": 0.0}))
    table = correlation_table(with_control)
    assert (table["nmi"].n, table["nmi"].pearson.value) == (6, pytest.approx(-1))
    assert "accuracy" not in table  # the same for all: nothing goes with it
    chart = CHARTS["correlation"](with_control)
    shown, _, rest = chart.finding.partition("not shown")
    assert ("NMI" in shown, "ARI" in rest) == (True, True)
    assert chart.table is not None
    assert [row[0] for row in chart.table.rows] == ["C", "NMI", "ARI"]
    assert CHARTS["correlation_ari"](results(*runs)).series[0].marks == ["1", "2", "3", "4", "5", "6"]


def test_a_score_is_judged_as_one_of_the_scores_that_were_tried() -> None:
    """Six scores in perfect order over five clusterings: 2 of 120 orders are as good, which is not enough six times."""
    keys = ("nmi", "accuracy", "ari", "ami", "utilization_ratio")

    def found(count: int, keys: Sequence[str]) -> tuple[float, bool]:
        runs = [result("temi", C, [10.0 - C], scores=dict.fromkeys(keys, float(C))) for C in range(1, count + 1)]
        one = correlation_table(results(*runs))["nmi"]
        return one.p_value, one.is_shown

    assert found(5, keys) == (pytest.approx(6 * 2 / 120), False)
    assert found(5, keys[:1]) == (pytest.approx(2 * 2 / 120), True)
    assert found(6, keys) == (pytest.approx(6 * 2 / 720), True)


def test_the_utilization_ratio_of_the_digits_is_not_shown_to_predict_the_distance() -> None:
    """The 14 clusterings of docs/results.md: its interval leaves out 0, and yet 13 % of all orders are as good."""
    distances = {"temi": [411, 378, 292, 308, 277, 259, 252], "kmeans": [411, 373, 329, 322, 258, 258, 253]}
    used = {"temi": [1, 1, 1, 1, 1, 0.95, 0.869], "kmeans": [1] * 7}
    runs = [
        result(method, C, [distances[method][place] / 1000], scores={"utilization_ratio": used[method][place]})
        for method in used
        for place, C in enumerate((2, 5, 10, 20, 40, 80, 160))
    ]
    ratio = correlation_table(results(*runs))["utilization_ratio"]
    assert (ratio.spearman.value, ratio.spearman.low > 0) == (pytest.approx(0.47, abs=0.005), True)
    assert (ratio.p_value, ratio.is_shown) == (pytest.approx(0.12, abs=0.015), False)


def test_confidence_is_compared_with_as_many_images_without_choice() -> None:
    sure = Confidence(0.81, 0.93, 0.5, [(0.1 * step, 0.09 * step) for step in range(1, 11)], [1.5, 1.6, 1.4])
    table = CHARTS["confidence"](results(result("temi", 40, [2.0, 2.1, 1.9], confidence=sure))).table
    assert table is not None
    assert table.rows == [["temi-40", "50 %", "81 %", "93 %", "2.00 ± 0.10", "1.50 ± 0.10", BETTER]]


def length(price: float, gained: float, on_training: float | None = None, below: float = -9.0) -> DescriptionLength:
    """That of a condition with an error of 0.1 nats on either side; `below` is gained at the lowest noise levels."""
    training = Estimate(gained if on_training is None else on_training, 0.1)
    above = Gain(0.02, Estimate(gained, 0.1), training)
    return DescriptionLength(price, (above, Gain(0.002, Estimate(gained + below, 0.3), training)), 100, 28)


def test_how_many_clusters_by_description_length() -> None:
    measured = (length(1.6, 1.5), length(2.3, 2.6), length(4.3, 3.5, on_training=3.9))
    temi = [replace(one, length=found) for one, found in zip(CLUSTERS, measured, strict=True)]
    labels = result("labels", None, [2.5], length=length(2.3, 2.9))
    random = result("random", 10, [6.0], length=length(2.3, -0.5))
    chart = CHARTS["description_length"](results(NONE, labels, random, *temi))
    assert "above σ = 0.02 the shortest is TEMI with C = 10, L = -0.30 ± 0.20 nats" in chart.finding
    assert "above σ = 0.002 no clustering pays; the least costly is TEMI with C = 10, L = +8.70 ± 0.59" in chart.finding
    assert "on training images than on others by TEMI with C = 80." in chart.finding  # 0.4 nats, of 0.28 by chance
    assert chart.table is not None
    rows = {row[0]: row[1:] for row in chart.table.rows}
    assert rows["TEMI with C = 80"][:4] == ["4.30", "+3.50 ± 0.20", "81%", "+0.80 ± 0.20"]
    assert rows["random groups with C = 10"][3:5] == ["+2.80 ± 0.20", "-9.00"]
    line = next(series for series in chart.series if series.name == "TEMI")
    assert (line.x, line.y) == ([5, 10, 80], pytest.approx([0.1, -0.3, 0.8]))
    assert not chart.from_zero
    several = [replace(temi[1], seed=seed, length=length(2.3, gained)) for seed, gained in enumerate((2.6, 2.2, 2.7))]
    t = 4.303 * stdev([2.6, 2.2, 2.7]) / 3**0.5  # two degrees of freedom
    told = CHARTS["description_length"](results(NONE, *several)).finding
    assert f"the shortest is TEMI with C = 10, L = -0.20 ± {math.hypot(0.196, t):.2f} nats" in told
    poor = [replace(one, length=length(3.0, 1.0)) for one in CLUSTERS]
    assert "above σ = 0.02 no clustering pays" in CHARTS["description_length"](results(NONE, *poor)).finding


def test_every_chart_says_so_where_nothing_was_measured() -> None:
    for name, chart_of in CHARTS.items():
        chart = chart_of(results())
        assert chart.finding, name
        plotly_figure(chart).to_json()


def test_results_survive_json() -> None:
    sure = Confidence(0.8, 0.9, 0.5, [[0.5, 0.8]], [1.0])
    more = {"confidence": sure, "length": length(2.3, 2.0)}
    before = results(result("temi", 10, [2.0, 3.0], curve=[[1.0, 9.0]], **more), bound=bound(5, 3, 5, 10))
    assert Results.from_json(json.loads(json.dumps(asdict(before)))) == before
    rows = measurements_of(before.runs[0])
    assert [(row["kimg"], row["distance"]) for row in rows] == [(1.0, 9.0), (40.0, 2.0), (40.0, 3.0)]


def test_the_final_model_stands_in_every_table(workplace: Path) -> None:
    short = result("temi", 10, [2.0, 3.0])
    final = replace(short, name="temi-10-final", kimg=400.0, distances=[1.0, 1.2], folder="there")
    found = results(short, final=final, left_out=["labels: left out, there are none."], missing=["temi-80"])
    write_tables(Path(), found, [CHARTS["bars"](found)])
    rows = list(csv.DictReader(Path("results.csv").read_text().splitlines()))
    assert [(row["run"], row["distance"], row["std"]) for row in rows][1] == ("temi-10-final", "1.1", "0.141421")
    assert Path("distances.csv").read_text().count("temi-10-final") == 2
    page = study_page({**asdict(found), "command": "study", "arguments": [], "plots": ["bars"], "jobs": {}})
    text = write_markdown(Path("results.md"), page).read_text()
    assert "| temi-10-final | 10 | 400 | 1.10 ± 0.14 |" in text
    assert {"labels: left out, there are none.", "Missing: temi-80."} <= set(page.notes)
    assert "400 kimg: fd_pixels 1.10 ± 0.14" in page.answer[1]


def test_a_smoothed_curve_keeps_its_end_and_fits_a_page() -> None:
    curve = [(float(step), float(step % 2)) for step in range(5000)]  # 0, 1, 0, 1, …
    assert len(smoothed(curve)) == 100
    assert smoothed(curve)[-1] == (4999.0, 0.5)
    assert smoothed([(1.0, 7.0), (2.0, 5.0)]) == [(1.0, 7.0), (2.0, 5.0)]


def test_the_protocol_of_a_study_is_what_all_its_models_share() -> None:
    generated = [{"path": "a", "sha256": "x", "steps": 18, "seeds": f"{n}00 to {n}99"} for n in range(2)]
    score = {"sets": [1.0, 2.0], "protocol": {"extractor": {"name": "pixels"}, "generated": generated}}
    name, values, protocol = distances_in({"scores": {"precision": {}, "fd_pixels": score}})
    assert (name, values) == ("fd_pixels", [1.0, 2.0])
    assert protocol["generated"] == {"steps": 18, "seeds": ["000 to 099", "100 to 199"]}
