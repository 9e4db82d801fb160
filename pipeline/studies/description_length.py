"""How many clusters, by description length: the chart, its table, and the answer in words."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from scipy import stats

from metrics.denoising_errors import Estimate
from pipeline.pictures.chart import Chart, Series, colours_of, name_of
from pipeline.pictures.table import Table
from pipeline.studies.analysis import LEVEL
from pipeline.studies.comparisons import enumerated
from pipeline.studies.gains import DescriptionLength
from pipeline.studies.results import CONTROLS, Model, Results

NOT_MEASURED = "Not measured: it takes images held out (dataset.holdout=0.1), and a run without condition."


def description_length(results: Results) -> Chart:
    """L = H − gain against C: the nats that telling the clusters costs more than it saves the denoiser."""
    every = [(model, [run.length for run in model.runs if run.length is not None]) for model in results.models]
    models = [(model, lengths) for model, lengths in every if lengths]
    series, colours = [], colours_of({model.variant: model.method for model, _ in models})
    for variant, colour in colours.items():
        members = [(model.num_clusters, lengths) for model, lengths in models if model.variant == variant]
        points = {C: shortest(lengths) for C, lengths in sorted((C, one) for C, one in members if C is not None)}
        if points:
            values, errors = [one.value for one in points.values()], [one.half_width for one in points.values()]
            series.append(Series(name_of(variant), list(points), values, errors, colour=colour))
        for level in [shortest(lengths).value for C, lengths in members if C is None]:
            series.append(Series(f"{name_of(variant)} ({level:+.2f})", [], [level], style="level", colour=colour))
    if models:
        series.append(Series("no clusters (0)", [], [0.0], style="level", colour="#000000"))
    return Chart(
        "description_length",
        "How many clusters pay, by description length",
        "number of clusters C",
        "L (nats for each image, lower is better)",
        series,
        finding=finding_of(models) if models else NOT_MEASURED,
        how=how_of(results, models[0][1][0]) if models else "",
        table=table_of(models) if models else None,
        x_log=True,
    )


Measured = Sequence[tuple[Model, list[DescriptionLength]]]


def shortest(lengths: Sequence[DescriptionLength], number: int = 0) -> Estimate:
    """The mean of several trainings; its error is that over images, which are the same for all, and over trainings."""
    found = [one.length(number) for one in lengths]
    of_images = mean(one.error for one in found)
    if len(found) == 1:
        return Estimate(found[0].value, of_images)
    values, tail = [one.value for one in found], (1 - LEVEL) / 2
    few = float(stats.t.isf(tail, len(found) - 1) / stats.norm.isf(tail))  # so that 95 % is 95 % of so few
    return Estimate(mean(values), math.hypot(of_images, few * stdev(values) / math.sqrt(len(values))))


def finding_of(models: Measured) -> str:
    """Which clustering is the shortest by either range of noise levels, and whether it pays."""
    own = [(model, lengths) for model, lengths in models if model.method not in CONTROLS]
    if not own:
        return "No clustering was measured."
    said = []
    for number, gain in enumerate(own[0][1][0].gains):
        best, lengths = min(own, key=lambda one: shortest(one[1], number).value)
        length = shortest(lengths, number)
        told = f"{best}, L = {length.value:+.2f} ± {length.half_width:.2f} nats"
        pays = f"the shortest is {told}" if length.value < 0 else f"no clustering pays; the least costly is {told}"
        said.append(f"above σ = {gain.lowest:g} {pays}")
    left = [str(model) for model, lengths in models if any(one.gains[0].is_of_training_images for one in lengths)]
    warned = f" More is gained on training images than on others by {enumerated(left)}." if left else ""
    return f"By description length, {'; '.join(said)}.{warned}"


def how_of(results: Results, one: DescriptionLength) -> str:
    """What was measured, and its cost beside that of a distance."""
    passes = 2 * one.num_images * one.num_levels
    said = (
        "gain: ∫ (e without condition − e) σ⁻² d ln σ up to σ = 80, e the squared error on images held out, of both "
        "models on the same images and noise; H: the clusters' entropy. ±: 95 % over images, and in chart and finding "
        "over trainings too, where there are several. Cost: "
        f"{one.num_images:,} images × {one.num_levels} levels × 2 models = {passes:,} passes"
    )
    made = results.protocol.get("final model", {}).get("generated", {})
    if isinstance(made.get("steps"), int) and isinstance(made.get("num_images"), int):
        said += f"; a distance on {made['num_images']:,} images takes {made['num_images'] * (2 * made['steps'] - 1):,}"
    return f"{said}."


def table_of(models: Measured) -> Table:
    """A line for each training."""
    rows = []
    for model, lengths in models:
        for one in lengths:
            above, everything = one.gains
            below = everything.held_out.value - above.held_out.value
            share = f"{above.held_out.value / one.price:.0%}" if one.price else ""
            more = " (more)" if above.is_of_training_images else ""
            first = [str(model), f"{one.price:.2f}", in_nats(above.held_out), share, in_nats(one.length(0))]
            rows.append([*first, f"{below:+.2f}", in_nats(one.length(1)), in_nats(above.training) + more])
    high, low = (f"{gain.lowest:g}" for gain in models[0][1][0].gains)
    header = [
        *("model", "price H", f"gain (σ > {high})", "gain/H", f"L (σ > {high})", f"gain below {high}"),
        *(f"L (σ > {low})", f"gain on training images (σ > {high})"),
    ]
    caption = (
        "In nats for each image, relative to no clusters, ± half a 95 % interval over images. At small σ a slight "
        "difference of two networks weighs much. “More”: than on images held out, at 95 %."
    )
    return Table(caption, header, rows)


def in_nats(found: Estimate) -> str:
    return f"{found.value:+.2f} ± {found.half_width:.2f}"
