"""A chart as data, and its two pictures: zoomable in the report, and a PNG file for documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from datamodules.artifacts import atomic_path

# Okabe and Ito's colours, which colour-blind people can tell apart; the same condition has the same one everywhere.
COLOURS = {
    "temi": "#0072B2",
    "kmeans": "#E69F00",
    "labels": "#009E73",
    "random": "#CC79A7",
    "none": "#555555",
    "clip": "#56B4E9",
}
NAMES = {
    "temi": "TEMI",
    "kmeans": "k-means",
    "labels": "labels",
    "random": "random groups",
    "none": "no condition",
    "clip": "CLIP",
}
OTHER_COLOURS = ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7A6A00")

Style = Literal["line", "curve", "dots", "level", "bars"]


@dataclass(frozen=True)
class Series:
    """One line, cloud of dots, horizontal level or row of bars. Series of one name share a line of the legend.

    Attributes:
        name: as the legend shows it.
        x: numbers, or names for bars; ignored for a level.
        y: one value for each x; a level has a single one.
        error: half the height of the error bars; None: none.
        style: line, curve (without marks for its points), dots, level (dashed, across the whole chart) or bars.
        notes: what is shown when a point is touched.
        colour: hexadecimal.
        marks: a short text beside each point.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    error: Sequence[float | None] | None = None
    style: Style = "line"
    notes: Sequence[str] | None = None
    colour: str = OTHER_COLOURS[0]
    marks: Sequence[str] | None = None

    @property
    def errors(self) -> list[float] | None:
        """`error` with 0 where a single value has none; None where no point has one."""
        if self.error is None or not any(self.error):
            return None
        return [value or 0.0 for value in self.error]


@dataclass(frozen=True)
class Chart:
    """Axes and what is drawn between them.

    Attributes:
        name: of its files.
        title: above the chart.
        finding: what it shows, in a sentence or two, from the numbers.
        how: how the numbers were measured, what bars and shades mean.
        shaded: (low, high, text) of a range of x.
        x_log, y_log: logarithmic axes.
        from_zero: y starts at 0.
        ticks: where x is marked; empty: wherever it looks well.
        bar_names: the bars of all series from left to right.
    """

    name: str
    title: str
    x_name: str
    y_name: str
    series: list[Series]
    finding: str = ""
    how: str = ""
    x_log: bool = False
    y_log: bool = False
    from_zero: bool = True
    shaded: tuple[float, float, str] | None = None
    ticks: list[float] = field(default_factory=list)
    bar_names: list[str] = field(default_factory=list)


def colour_of(method: str, position: int = 0) -> str:
    """The colour of a condition; for any other name one by its position."""
    return COLOURS.get(method, OTHER_COLOURS[position % len(OTHER_COLOURS)])


def name_of(method: str) -> str:
    """A condition as people write it."""
    return NAMES.get(method, method)


def plotly_figure(chart: Chart) -> go.Figure:
    """The chart for a browser; colours of text and background are the page's business."""
    figure = go.Figure()
    names = [series.name for series in chart.series]
    for position, series in enumerate(chart.series):
        first = series.name not in names[:position]
        figure.add_trace(
            plotly_trace(series, chart).update(legendgroup=series.name, showlegend=first and len(set(names)) > 1)
        )
    if chart.shaded is not None:
        low, high, text = chart.shaded
        ends = {"x0": low, "x1": high}  # plotly wants shapes on a logarithmic axis in data units, notes in exponents
        figure.add_vrect(**ends, fillcolor="#0072B2", opacity=0.09, line_width=0, layer="below")
        figure.add_annotation(
            x=math.log10(math.sqrt(low * high)) if chart.x_log else (low + high) / 2,
            y=1, yref="paper", yanchor="top", text=text, showarrow=False, font={"size": 12, "color": "#0072B2"},
        )  # fmt: skip
    axis = {
        "showline": True,
        "linecolor": "#888888",
        "gridcolor": "rgba(128,128,128,.2)",
        "zeroline": False,
        "automargin": True,
    }
    below = 24 * -(-len(set(names)) // 3)  # the legend's lines
    figure.update_layout(
        template="none",
        margin={"l": 60, "r": 16, "t": 34, "b": 60 + below},
        height=420 + below,
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 13},
        barmode="overlay",
    )
    figure.update_xaxes(title_text=chart.x_name, type="log" if chart.x_log else None, **axis)
    if chart.bar_names:
        figure.update_xaxes(categoryorder="array", categoryarray=chart.bar_names)
    if chart.ticks:
        figure.update_xaxes(tickvals=chart.ticks, ticktext=[f"{tick:g}" for tick in chart.ticks])
    figure.update_yaxes(title_text=chart.y_name, rangemode="tozero" if chart.from_zero else None, **axis)
    if chart.y_log:
        figure.update_yaxes(type="log", rangemode=None, dtick="D2")  # marks at 1, 2 and 5 of each decade
    return figure


def plotly_trace(series: Series, chart: Chart) -> go.Scatter | go.Bar:
    common: dict[str, Any] = {"name": series.name}
    if series.notes is not None:
        common |= {"hovertext": list(series.notes), "hovertemplate": "%{hovertext}<extra></extra>"}
    if series.style == "level":
        ends = chart_ends(chart)
        return go.Scatter(
            x=ends,
            y=[series.y[0]] * 2,
            mode="lines",
            line={"color": series.colour, "dash": "dash", "width": 2},
            **common,
        )
    error = None if series.errors is None else {"type": "data", "array": series.errors, "thickness": 1.2, "width": 4}
    if series.style == "bars":
        return go.Bar(x=list(series.x), y=list(series.y), error_y=error, marker_color=series.colour, **common)
    return go.Scatter(
        x=list(series.x),
        y=list(series.y),
        error_y=error,
        mode={"dots": "markers", "curve": "lines"}.get(series.style, "lines+markers")
        + ("+text" if series.marks else ""),
        text=series.marks,
        textposition="top center",
        textfont={"size": 11, "color": series.colour},
        marker={"color": series.colour, "size": 8},
        line={"color": series.colour, "width": 1.5 if series.style == "curve" else 2},
        **common,
    )


def chart_ends(chart: Chart) -> list[float]:
    """Lowest and highest x of everything in the chart that has an x."""
    xs = [float(x) for series in chart.series if series.style != "level" for x in series.x if not isinstance(x, str)]
    if len(set(xs)) < 2:
        return [0.5 * xs[0], 2 * xs[0]] if xs else [1.0, 10.0]
    return [min(xs), max(xs)]


def draw_png(chart: Chart, path: Path) -> None:
    """The chart as a picture for documents."""
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for series in chart.series:
        if series.style == "level":
            axes.axhline(series.y[0], color=series.colour, linestyle="--", linewidth=1.5, label=series.name)
        elif series.style == "bars":
            places = [chart.bar_names.index(str(x)) for x in series.x]
            axes.bar(places, series.y, 0.7, yerr=series.errors, color=series.colour, label=series.name, capsize=3)
        else:
            axes.errorbar(
                [float(x) for x in series.x],
                series.y,
                yerr=series.errors,
                fmt={"dots": "o", "curve": "-"}.get(series.style, "o-"),
                markersize=4.5,
                linewidth=1.5,
                capsize=3,
                color=to_rgb(series.colour),
                label=series.name,
            )
        for x, y, mark in zip(series.x, series.y, series.marks or (), strict=series.marks is not None):
            axes.annotate(
                mark, (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=8, color=series.colour
            )
    if chart.shaded is not None:
        low, high, text = chart.shaded
        axes.axvspan(low, high, color="#0072B2", alpha=0.09, linewidth=0, label=text)
    if chart.x_log:
        axes.set_xscale("log")
    if chart.bar_names:
        many = len(chart.bar_names) > 5
        axes.set_xticks(
            range(len(chart.bar_names)), chart.bar_names, rotation=40 if many else 0, ha="right" if many else "center"
        )
    if chart.ticks:
        axes.set_xticks(chart.ticks, [f"{tick:g}" for tick in chart.ticks])
        axes.minorticks_off()
    if chart.y_log:
        axes.set_yscale("log", subs=(2, 5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    elif chart.from_zero:
        axes.set_ylim(bottom=0)
    axes.set(xlabel=chart.x_name, ylabel=chart.y_name, title=chart.title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.series) > 1 or chart.shaded is not None:
        axes.legend(frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
