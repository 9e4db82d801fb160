"""The picture of `cedm bound`: the utilization ratio over C, and what it says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from callbacks.figure import png_figure
from lightning_modules.clustering.bound import COARSE_BETA, UPPER_BETA, Bound, Measurement, mean_ratios

COLOURS = {UPPER_BETA: "tab:blue", COARSE_BETA: "tab:orange"}


def draw_bound(path: Path, measurements: Sequence[Measurement], result: Bound, threshold: float, name: str) -> None:
    """Write a PNG file: every measurement as a dot, the mean over seeds as a line, the range worth trying shaded."""
    with png_figure(path, 8, 4.5) as figure:
        axes = figure.add_subplot()
        for beta in sorted({m.beta for m in measurements}):
            colour = COLOURS.get(beta, "tab:grey")
            dots = [(m.num_clusters, m.ratio) for m in measurements if m.beta == beta]
            axes.plot(*zip(*dots, strict=True), "o", color=colour, markersize=4, alpha=0.6)
            means = [(C, ratio) for C, (ratio, _) in mean_ratios(measurements, beta).items()]
            axes.plot(*zip(*means, strict=True), color=colour, label=f"β = {beta:g}")
        axes.axhline(threshold, color="tab:red", linewidth=1, linestyle="--", label=f"threshold {threshold:g}")
        if result.upper_bound is not None:
            low = result.coarse_end or min(m.num_clusters for m in measurements)
            axes.axvspan(low, result.upper_bound, alpha=0.1)
            beside: dict[str, Any] = {"textcoords": "offset points", "rotation": 90, "va": "bottom"}
            at_least = "≥ " if result.may_lie_higher(measurements) else ""
            axes.annotate(
                f"upper bound {at_least}{result.upper_bound}", (result.upper_bound, 0.3), xytext=(4, 0), **beside
            )
            if result.coarse_end is not None:
                axes.annotate(f"coarse end {low:g}", (low, 0.3), xytext=(-4, 0), ha="right", **beside)
        axes.set_xscale("log")
        ticks = marked(sorted({m.num_clusters for m in measurements}))
        axes.set_xticks(ticks, [str(C) for C in ticks])
        axes.minorticks_off()
        axes.set(xlabel="number of clusters C", ylabel="utilization ratio (clusters used / C)", ylim=(0, 1.04))
        axes.set_title(f"{name}: how many clusters are worth having")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower left")


def marked(grid: Sequence[int]) -> list[int]:
    """Those C of a sorted grid whose numbers find room side by side on a logarithmic axis."""
    least = (grid[-1] / grid[0]) ** (1 / 16)  # two neighbours are at least this many times apart
    ticks: list[int] = []
    for C in grid:
        if not ticks or least * ticks[-1] <= C:
            ticks.append(C)
    return ticks
