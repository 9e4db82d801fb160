"""Curves along a training: the loss from TensorBoard's files, and whatever a callback has kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from pipeline.pictures.chart import Chart, Series, colour_of, colours_of
from pipeline.pictures.table import Table

POINTS = 100  # of a curve: a page is no archive
MOST_MARKS = 4  # curves with values beside them, which more would hide

Curve = Sequence[tuple[float, float]]


def read_curve(folder: Path, tag: str) -> list[tuple[float, float]]:
    """(thousand images seen, value) of a scalar that a run has written, over all its starts; or none."""
    points: dict[float, float] = {}
    for events in sorted({path.parent for path in folder.glob("**/events.out.tfevents.*")}):
        accumulator = EventAccumulator(str(events), size_guidance={SCALARS: 0})
        accumulator.Reload()
        if tag in accumulator.Tags()["scalars"]:
            points |= {point.step / 1000: point.value for point in accumulator.Scalars(tag)}
    return sorted(points.items())


def smoothed(curve: Curve) -> list[tuple[float, float]]:
    """The curve in as many parts of equal length, each as its last step and the mean of its values."""
    parts = np.array_split(np.reshape(curve, (-1, 2)), min(POINTS, len(curve)) or 1)
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in parts if len(part)]


def loss_chart(runs: Mapping[str, tuple[Path, str]], name: str = "EDM loss") -> list[Chart]:
    """The smoothed training loss of the runs, name → (folder, method); nothing where none has left two points.

    Where there are few runs, the value with which a curve ends stands beside it.
    """
    curves = {run: smoothed(read_curve(folder, "train/loss")) for run, (folder, _) in runs.items()}
    marks = end_mark if len(curves) <= MOST_MARKS else lambda _: None
    colours = colours_of({run: method for run, (_, method) in runs.items()})
    series = [
        Series(
            run, [x for x, _ in curve], [y for _, y in curve], style="curve", colour=colours[run], marks=marks(curve)
        )
        for run, curve in curves.items()
        if len(curve) > 1
    ]
    how = f"Of the batches, each point averaged over a part of the curve; it has at most {POINTS}."
    return [Chart("loss", "Training loss", "thousand training images seen", name, series, how=how)] if series else []


def end_mark(curve: Curve) -> list[str]:
    """A mark for each point: the last one's value, and nothing for the others."""
    return [*[""] * (len(curve) - 1), f"{curve[-1][1]:.4g}"]


def history_chart(name: str, points: Curve, title: str, x_name: str, y_name: str) -> Chart:
    """What was measured along one training; the last value stands beside its point."""
    xs, ys = zip(*points, strict=True)
    line = Series("", xs, ys, colour=colour_of("temi"), marks=end_mark(points))
    return Chart(name, title, x_name, y_name, [line])


def held_out_chart(found: Mapping[str, Any]) -> Chart:
    """The loss on images held out beside that on training images, and both by noise level; `found` is a summary's."""
    points, levels = found["kimg_and_losses"], found["sigma_and_losses"]
    kimg, held_out, training, gaps, errors = zip(*points, strict=True)
    gap, error = (100 * part / training[-1] for part in (gaps[-1], errors[-1]))
    said = f"At the end it is {gap:+.1f} ± {error:.1f} % over that on training images (± standard error)"
    return Chart(
        "held_out",
        "Loss on images held out",
        "thousand training images seen",
        "EDM loss",
        [
            Series("images held out", kimg, held_out, colour=colour_of("temi")),
            Series("training images", kimg, training, colour=colour_of("none")),
        ],
        finding=said + (": this suggests memorisation." if found["suggests_memorisation"] else "."),
        how=f"Of the averaged weights on {found['num_images']:,} images held out and {found['num_training_images']:,} "
        "training images, always the same ones with the same noise, without augmentation.",
        table=Table(
            "By noise level, at the end.",
            ["σ", "held out", "training images"],
            [[f"{value:.4g}" for value in level] for level in levels],
        ),
    )
