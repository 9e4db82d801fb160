"""Curves along a training: the loss from TensorBoard's files, and whatever a callback has kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from pipeline.pictures.chart import Chart, Series, colour_of, colours_of

MOST_POINTS = 400  # of a curve: a page is no archive
SHARE = 0.02  # each point of the smoothed loss averages this share of all points before it

Curve = Sequence[tuple[float, float]]


def read_curve(folder: Path, tag: str) -> list[tuple[float, float]]:
    """(step, value) of a scalar that a run has written, over all its starts; empty where there is none."""
    points: dict[int, float] = {}
    for events in sorted({path.parent for path in folder.glob("**/events.out.tfevents.*")}):
        accumulator = EventAccumulator(str(events), size_guidance={SCALARS: 0})
        accumulator.Reload()
        if tag in accumulator.Tags()["scalars"]:
            points |= {point.step: point.value for point in accumulator.Scalars(tag)}
    return [(float(step), value) for step, value in sorted(points.items())]


def smoothed(curve: Curve, share: float = SHARE) -> list[tuple[float, float]]:
    """Each value averaged with those before it, over `share` of the curve, and thinned to what a page can show."""
    if not curve:
        return []
    window, count = max(1, round(share * len(curve))), np.arange(1, len(curve) + 1)
    sums = np.cumsum([value for _, value in curve])
    means = (sums - np.where(count > window, np.roll(sums, window), 0)) / np.minimum(count, window)
    step = -(-len(curve) // MOST_POINTS)
    return [(x, float(mean)) for (x, _), mean in zip(curve, means, strict=True)][::-1][::step][::-1]  # with the last


def loss_chart(runs: Mapping[str, tuple[Path, str]], name: str = "EDM loss", unit: str = "kimg") -> list[Chart]:
    """The smoothed training loss of the runs, name → (folder, method); nothing where none has left two points."""
    curves = {run: smoothed(read_curve(folder, "train/loss")) for run, (folder, _) in runs.items()}
    colours = colours_of({run: method for run, (_, method) in runs.items()})
    series = [
        Series(run, *zip(*curve, strict=True), style="curve", colour=colours[run])
        for run, curve in curves.items()
        if len(curve) > 1
    ]
    x_name = "thousand training images seen" if unit == "kimg" else unit
    how = f"Of the batches, each point averaged over the last {100 * SHARE:g} % of the curve."
    return [Chart("loss", "Training loss", x_name, name, series, how=how)] if series else []


def history_chart(name: str, points: Curve, title: str, x_name: str, y_name: str) -> Chart:
    """What was measured along one training; the last value stands beside its point."""
    xs, ys = zip(*points, strict=True)
    marks = [*[""] * (len(ys) - 1), f"{ys[-1]:.4g}"]
    return Chart(name, title, x_name, y_name, [Series("", xs, ys, colour=colour_of("temi"), marks=marks)])
