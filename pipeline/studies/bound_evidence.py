"""What `cedm bound` found, for a page: its answer in words, the ratios as a chart and as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_modules.clustering.bound import UPPER_BETA, Bound, Measurement, find_bound, mean_ratios
from pipeline.commands.bound import how_sure
from pipeline.pictures.chart import OTHER_COLOURS, Chart, Series


def measurements_in(summary: Mapping[str, Any]) -> list[Measurement]:
    return [
        Measurement(m["num_clusters"], m["beta"], m["seed"], m["num_used"]) for m in summary.get("measurements", [])
    ]


def bound_in(summary: Mapping[str, Any]) -> Bound:
    """The bound once more, from the measurements: it knows what each seed says by itself."""
    return find_bound(measurements_in(summary), summary["threshold"], summary["rule"])


def bound_answer(summary: Mapping[str, Any]) -> list[str]:
    """The upper bound, what is worth training, and the coarse end; nothing that wasn't measured."""
    found, threshold = bound_in(summary), summary["threshold"]
    if found.upper_bound is None:
        said = [f"No C that was tried reaches the threshold: none uses {threshold:g} of its clusters or more."]
    else:
        worth = ", ".join(map(str, found.worth_training))
        said = [
            f"At most {found.upper_bound} clusters: it is the largest C of which TEMI uses a share of {threshold:g} or "
            f"more (β = {UPPER_BETA:g}). Worth training: C = {worth}."
        ]
        if found.may_lie_higher(measurements_in(summary)):
            said.append("No larger C was tried: the bound may lie higher.")
    if found.coarse_end is not None:
        said.append(f"The coarse end is {found.coarse_end:g}: as many clusters are used at β = 1, where C is large.")
        if found.upper_bound is not None and found.coarse_end > found.upper_bound:
            said.append("It lies above the upper bound, so the two give no range here.")
    return said


def bound_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The numbers beside the answer, and the rule that gave them."""
    found = bound_in(summary)
    return {
        "upper bound": "none" if found.upper_bound is None else str(found.upper_bound),
        "coarse end": "not measured" if found.coarse_end is None else f"{found.coarse_end:g}",
        "worth training": ", ".join(map(str, found.worth_training)) or "none",
        "how sure": how_sure(found),
        "threshold": f"{summary['threshold']:g}, rule {summary['rule']}",
    }


def bound_chart(summary: Mapping[str, Any]) -> Chart:
    """The utilization ratio against C, a line for each β, with the threshold and the range worth trying."""
    measurements, found = measurements_in(summary), bound_in(summary)
    several = len({m.seed for m in measurements}) > 1
    grid = sorted({m.num_clusters for m in measurements})
    series = []
    for beta, colour in zip(sorted({m.beta for m in measurements}), OTHER_COLOURS[1:], strict=False):
        means = mean_ratios(measurements, beta)
        ratios, errors = [ratio for ratio, _ in means.values()], [std for _, std in means.values()]
        notes = [f"C = {C}, β = {beta:g}: {ratio:.3f}" for C, (ratio, _) in means.items()]
        series.append(Series(f"β = {beta:g}", list(means), ratios, errors, "line", notes, colour))
    series.append(Series(f"threshold {summary['threshold']:g}", [], [summary["threshold"]], style="level"))
    shaded = None
    if found.upper_bound is not None:
        low = min(found.coarse_end or grid[0], found.upper_bound)
        ends = f"{low:g} to {found.upper_bound}" if low < found.upper_bound else f"{low:g}"
        shaded = (low, found.upper_bound, f"worth trying: {ends}")
    return Chart(
        name="bound",
        title="Utilization ratio against the number of clusters",
        x_name="number of clusters C",
        y_name="utilization ratio (clusters used / C)",
        series=series,
        how="Error bars: standard deviation over the seeds of TEMI." if several else "One seed, so no error bars.",
        x_log=True,
        shaded=shaded,
        ticks=[float(C) for C in grid],
    )


def bound_tables(summary: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(caption, header, lines) for each β: the mean ratio, and what each seed uses; none without measurements."""
    measurements = measurements_in(summary)
    return [table_of(measurements, beta, summary["threshold"]) for beta in sorted({m.beta for m in measurements})]


def table_of(
    measurements: Sequence[Measurement], beta: float, threshold: float
) -> tuple[str, list[str], list[list[str]]]:
    used = {(m.num_clusters, m.seed): m.num_used for m in measurements if m.beta == beta}
    seeds = sorted({seed for _, seed in used})
    lines = []
    for C, (ratio, std) in mean_ratios(measurements, beta).items():
        mark = " ✓" if beta == UPPER_BETA and ratio >= threshold else ""
        spread = f" ± {std:.3f}" if len(seeds) > 1 else ""
        lines.append([str(C), f"{ratio:.3f}{spread}{mark}", *(f"{used.get((C, seed), '')}" for seed in seeds)])
    reached = f"; ✓: {threshold:g} or more" if beta == UPPER_BETA else ""
    header = ["C", "utilization ratio", *(f"used, seed {seed}" for seed in seeds)]
    return f"The bound: clusters that are used at β = {beta:g}{reached}.", header, lines
