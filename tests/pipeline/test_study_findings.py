"""The sentences of a study are computed: what doesn't hold in the numbers isn't said."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.pictures.chart import plotly_figure
from pipeline.pictures.curves import smoothed
from pipeline.studies.distances import distances_in
from pipeline.studies.findings import CHARTS
from pipeline.studies.results import Confidence, Result, Results
from pipeline.studies.sentences import correlation_table
from pipeline.studies.tables import as_csv, as_markdown, measurements_of, row_of, write_tables


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
    "measurements": [{"num_clusters": C} for C in (5, 10, 40, 80)],
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
    runs = [replace(plain, values=["0.0"]), replace(dropped, values=["0.1"])]
    chart = CHARTS["granularity"](results(result("none", None, [6.0, 6.2, 5.9]), *runs))
    assert "The best clustering is temi-0.0 with C = 10: fd_pixels 1.00 ± 0.10." in chart.finding
    assert [series.name for series in chart.series][1:] == ["temi-0.0", "temi-0.1"]


def test_one_set_of_seeds_decides_nothing() -> None:
    chart = CHARTS["granularity"](results(result("none", None, [6.0]), result("temi", 10, [2.0])))
    assert "It is not tested against no condition (6), as a side has a single value." in chart.finding
    assert "no error bars" in chart.how
    alike = CHARTS["bars"](results(result("none", None, [6.0]), result("temi", 10, [2.0]))).finding
    assert alike == "The best is temi-10 with fd_pixels 2. Not tested against it: none."


def test_how_many_times_fewer_images() -> None:
    plain = result("none", None, curve=[(10.0, 10.0), (20.0, 8.0), (40.0, 4.0)])
    fast = result("temi", 10, curve=[(10.0, 4.0), (40.0, 2.0)])
    slow = result("temi", 80, curve=[(10.0, 10.0), (40.0, 5.0)])
    found = CHARTS["efficiency"](results(plain, fast, slow)).finding
    assert "Without condition, the lowest fd_pixels is 4, reached after 40 kimg." in found
    assert "With TEMI (temi-10, the first of 2) that takes at most 10 kimg, at least 4.0 times fewer." in found
    assert "At least 3 times fewer images: 1 of 2 models on clusters." in found  # one does not get there
    alone = CHARTS["efficiency"](results(plain, slow)).finding
    assert "With TEMI, no model gets there. At least 3 times fewer images: no, for the model on clusters." in alone


def test_two_equal_curves_need_as_many_images() -> None:
    """Also where they rise again after their best."""
    curve = [(10.0, 10.0), (20.0, 4.0), (40.0, 5.0)]
    found = CHARTS["efficiency"](results(result("none", None, curve=curve), result("temi", 10, curve=curve))).finding
    assert found == (
        "Without condition, the lowest fd_pixels is 4, reached after 20 kimg. "
        "With TEMI (temi-10) that takes 20 kimg, as many. "
        "At least 3 times fewer images: no, for the model on clusters."
    )


def test_a_lower_limit_counts_for_neither_side() -> None:
    plain = result("none", None, curve=[(10.0, 10.0), (20.0, 4.0)])
    twice, late = result("temi", 10, curve=[(10.0, 3.0)]), result("temi", 80, curve=[(10.0, 9.0), (20.0, 5.0)])
    found = CHARTS["efficiency"](results(plain, twice)).finding
    assert "at least 2.0 times fewer" in found
    assert "images: undecided, for the model" in found
    found = CHARTS["efficiency"](results(plain, twice, late)).finding
    assert "images: none of 2 models on clusters, undecided for 1." in found


def test_several_trainings_without_condition_are_told_apart() -> None:
    runs = [
        replace(result(group, curve=[(10.0, 9.0), (20.0 + 10 * seed, 4.0)]), seed=seed, name=f"{group}-seed{seed}")
        for seed in (0, 1)
        for group in ("none", "temi")
    ]
    found = CHARTS["efficiency"](results(*runs)).finding
    assert "Without condition (none-seed0), the lowest fd_pixels is 4, reached after 20 kimg." in found
    assert "Without condition (none-seed1), the lowest fd_pixels is 4, reached after 30 kimg." in found
    assert "With TEMI (temi-seed1) that takes 30 kimg, as many." in found


def test_sets_of_one_training_are_not_trainings() -> None:
    """Two trainings of each, whose sets agree: 6 values a side look certain, 2 means a side tell nothing."""

    def trained(group: str, num_clusters: int | None, means: list[float]) -> list[Result]:
        sets = [[m - 0.01, m, m + 0.01] for m in means]
        return [replace(result(group, num_clusters, values), seed=seed) for seed, values in enumerate(sets)]

    chart = CHARTS["granularity"](results(*trained("none", None, [3.0, 2.0]), *trained("temi", 10, [1.9, 2.4])))
    assert "It is not told apart from no condition (2.50 ± 0.71)." in chart.finding
    assert "standard deviation over 2 trainings, each the mean of 3 sets" in chart.how
    assert "Welch's t-test between the means of the trainings" in chart.how
    uneven = CHARTS["granularity"](results(result("none", None, [6.0, 6.1, 6.2]), *trained("temi", 10, [1.0, 1.1])))
    assert "not tested against no condition" in uneven.finding


def test_sets_from_the_same_seeds_are_compared_one_by_one() -> None:
    """Every set is a tenth lower, and the sets differ by more than that among themselves."""
    plain, ours = result("none", None, [2.0, 3.0, 4.0]), result("temi", 10, [1.9, 2.91, 3.89])
    assert "better than no condition" in CHARTS["granularity"](results(plain, ours)).finding


def test_the_best_of_many_is_judged_as_one_of_many() -> None:
    """A difference that is certain of a single clustering (p = 0.01) is not of the best of eight."""
    plain = result("none", None, [3.0, 3.0, 3.0])
    lucky = result("temi", 10, [2.80, 2.84, 2.79])
    orders = [(0, 1, -1), (1, -1, 0), (-1, 0, 1), (0.5, 0, -0.5), (-0.5, 0.5, 0), (0, -1, 1), (1, 0, -1)]
    others = [
        result("temi", C, [3 + 0.1 * x for x in order]) for C, order in zip(range(20, 90, 10), orders, strict=True)
    ]
    assert "better than no condition" in CHARTS["granularity"](results(plain, lucky)).finding
    chart = CHARTS["granularity"](results(plain, lucky, *others))
    assert "The best clustering is TEMI with C = 10" in chart.finding
    assert "not told apart from no condition" in chart.finding
    assert chart.how.endswith("at 5 %, with Holm's correction over the 8 clusterings tried.")
    assert CHARTS["conditions"](results(plain, lucky)).how.endswith("sampled from the same seeds, at 5 %.")


def test_controls_are_known_by_what_they_do_and_not_by_their_name() -> None:
    runs = [
        result("base", None, [6.0, 6.2, 5.9], method="none"),
        result("dice", 10, [6.1, 6.2, 5.8], method="random"),
        result("truth", 10, [1.0, 1.1, 0.9], method="labels"),
    ]
    chart = CHARTS["granularity"](results(*runs, *CLUSTERS))
    assert "better than base (6.03 ± 0.15) and dice with C = 10 (6.03 ± 0.21)." in chart.finding
    assert "worse than truth (1.00 ± 0.10)." in chart.finding
    assert [series.style for series in chart.series] == ["level", "line", "level", "line"]


def test_temi_is_compared_with_kmeans_at_equal_c() -> None:
    kmeans = [
        result("kmeans", 5, [4.0, 4.11, 3.9]),
        result("kmeans", 10, [2.0, 2.05, 1.97]),
        result("kmeans", 80, [1.6, 1.71, 1.5]),
        result("kmeans", 99, [1.0, 1.0, 1.0]),
    ]
    finding = CHARTS["granularity"](results(*CLUSTERS, *kmeans)).finding
    expected = (
        "With as many clusters, TEMI is better than k-means at C = 5, worse than k-means at C = 80 and "
        "not told apart from k-means at C = 10."
    )
    assert expected in finding


def test_conditioning_compares_temi_with_each_other_condition() -> None:
    runs = [
        result("none", None, [6.0, 6.2, 5.9]),
        result("clip", 10, [1.0, 1.12, 0.9]),
        result("kmeans", 10, [2.02, 2.05, 1.97]),
        result("random", 80, [6.0, 6.2, 5.9]),  # not as many groups as TEMI has clusters
    ]
    finding = CHARTS["conditions"](results(*runs, CLUSTERS[1])).finding
    assert finding == (
        "TEMI with C = 10: fd_pixels 2.00 ± 0.10. "
        "It is better than no condition (6.03 ± 0.15). "
        "It is worse than CLIP with C = 10 (1.01 ± 0.11). "
        "It is not told apart from k-means with C = 10 (2.013 ± 0.040)."
    )


def test_the_ends_of_the_bound() -> None:
    """Nothing was tried above its upper end, and a coarse end above the upper one."""
    last = BOUND | {"measurements": [{"num_clusters": C} for C in (5, 10, 40)]}
    chart = CHARTS["granularity"](results(*CLUSTERS, bound=last))
    assert "inside the range that the bound gives, 8 to at least 40." in chart.finding
    assert chart.shaded == (8.0, 40.0, "bound: 8 to at least 40")
    upside_down = CHARTS["granularity"](results(*CLUSTERS, bound=BOUND | {"upper_bound": 5, "coarse_end": 20.0}))
    assert "inside the range that the bound gives, 5 to 20." in upside_down.finding
    assert upside_down.shaded == (5.0, 20.0, "bound: 5 to 20")


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
    both = "C (ρ = -1.00 [-1.00, -1.00]) and NMI (ρ = -1.00 [-1.00, -1.00])"
    assert f"by rank correlation: the higher {both}, the lower fd_pixels." in finding
    assert "nothing could be shown" not in finding
    assert "With four clusterings nothing could be shown" in CHARTS["correlation"](results(*runs[:4])).finding
    assert "Not shown to go with it: ARI" in finding
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
    written_before = before.as_json()
    del written_before["left_out"], written_before["runs"][0]["values"]
    assert Results.from_json(written_before) == before
    rows = measurements_of(before.runs[0])
    assert [(row["kimg"], row["distance"]) for row in rows] == [(1.0, 9.0), (40.0, 2.0), (40.0, 3.0)]
    assert as_csv([row_of(before.runs[0])]).splitlines()[1].startswith("temi-10,temi,10,pixels,0,40,2.5,0.707107,2")
    assert "| temi-10 | 10 | 40 | 2.50 ± 0.71 |" in as_markdown(before, [])


def test_what_the_name_of_an_older_result_holds() -> None:
    """A value that begins with C's digits is not C."""
    old = asdict(result("temi", 10)) | {"name": "temi-1024-10-seed0"}
    del old["values"]
    assert Result.from_json(old).values == ["1024"]
    assert Result.from_json(old).variant == "temi-1024"


def test_the_final_model_stands_in_every_table(workplace: Path) -> None:
    short = result("temi", 10, [2.0, 3.0])
    final = replace(short, name="temi-10-final", kimg=400.0, distances=[1.0, 1.2], folder="there")
    found = results(short, final=final, left_out=["labels: left out, there are none."])
    text = as_markdown(found, [])
    assert "The best, temi-10, was trained again for 400 kimg: fd_pixels 1.10 ± 0.14. It lies in there." in text
    assert "| temi-10-final | 10 | 400 | 1.10 ± 0.14 |" in text
    assert "labels: left out, there are none." in text
    write_tables(Path(), found, [])
    assert "temi-10-final,temi,10,pixels,0,400,1.1," in Path("results.csv").read_text()
    assert Path("distances.csv").read_text().count("temi-10-final") == 2


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
