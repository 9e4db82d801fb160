"""A curve of what was watched, as a picture on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from callbacks.figure import png_figure


def draw_curves(
    path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], x_name: str, y_name: str, title: str
) -> None:
    """Write a PNG file with a line per curve, each a sequence of (x, y); the last value stands beside its end."""
    with png_figure(path, 7, 4) as figure:
        axes = figure.add_subplot()
        for name, points in curves.items():
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, marker="o", markersize=4, linewidth=1.5, label=name)
            axes.annotate(f"{ys[-1]:.4g}", (xs[-1], ys[-1]), xytext=(6, 0), textcoords="offset points", va="center")
        axes.set(xlabel=x_name, ylabel=y_name, title=title)
        axes.set_ylim(0, 1.05 * max(y for points in curves.values() for _, y in points))
        axes.margins(x=0.08)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axes.legend(frameon=False)
