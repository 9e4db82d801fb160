"""Training curves, read from TensorBoard's files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from pipeline.pictures.chart import Chart, Series, colour_of, name_of

MOST_POINTS = 400  # of a curve: a page is no archive
LOSS = "train/loss"
SINGLE_LINES = 7  # as many have names and colours of their own; more are told apart by their condition alone
SHARE = 0.02  # each point of the smoothed loss averages this share of all points before it


@dataclass(frozen=True)
class Loss:
    """What a loss is called and what it is drawn over: the steps that its LightningModule logs."""

    name: str
    over: str
    unit: str


DIFFUSION = Loss("EDM loss", "thousand training images seen", "kimg")
CLUSTERING = Loss("TEMI loss", "optimizer steps", "steps")


def read_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Tag → (step, value) of every scalar that a run has written, over all its starts; empty where there is none."""
    if not any(folder.glob("**/events.out.tfevents.*")):
        return {}
    curves: dict[str, dict[int, float]] = {}
    for events in sorted({path.parent for path in folder.glob("**/events.out.tfevents.*")}):
        accumulator = EventAccumulator(str(events), size_guidance={SCALARS: 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            curves.setdefault(tag, {}).update({point.step: point.value for point in accumulator.Scalars(tag)})
    return {tag: [(float(step), value) for step, value in sorted(points.items())] for tag, points in curves.items()}


def smoothed(curve: list[tuple[float, float]], share: float = SHARE) -> list[tuple[float, float]]:
    """Each value averaged with those before it, over `share` of the curve, and thinned to what a page can show."""
    window = max(1, round(share * len(curve)))
    means = [
        (curve[end][0], sum(value for _, value in curve[max(0, end + 1 - window) : end + 1]) / min(window, end + 1))
        for end in range(len(curve))
    ]
    step = max(1, -(-len(means) // MOST_POINTS))
    return means[::-1][::step][::-1]  # the last one always stays


def loss_chart(runs: Mapping[str, tuple[Path, str]], loss: Loss = DIFFUSION) -> Chart | None:
    """The smoothed training loss of the runs, name → (folder, method); None where none has left two points."""
    curves = {name: smoothed(read_curves(folder).get(LOSS, [])) for name, (folder, _) in runs.items()}
    named = sum(len(curve) > 1 for curve in curves.values()) <= SINGLE_LINES
    apart = len({method for _, method in runs.values()}) == len(runs)
    series = []
    for position, (name, (_, method)) in enumerate(runs.items()):
        if len(curves[name]) < 2:  # no line
            continue
        xs, ys = [x for x, _ in curves[name]], [y for _, y in curves[name]]
        colour = colour_of(method if apart or not named else "", position)
        notes = [f"{name}: {y:.3g} after {x:g} {loss.unit}" for x, y in curves[name]]
        series.append(Series(name if named else name_of(method), xs, ys, None, "curve", notes, colour))
    if not series:
        return None
    return Chart(
        name="loss",
        title="Training loss",
        x_name=loss.over,
        y_name=loss.name,
        series=series,
        how=f"Of the batches, each point averaged over the last {100 * SHARE:g} % of the curve.",
        from_zero=False,
    )
