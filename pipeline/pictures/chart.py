"""A chart as data, and its two drawings: one to zoom into on a page, and a PNG file for documents."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from pipeline.pictures.table import Table
from storage.files import atomic_path

# Okabe and Ito's colours, which colour-blind readers can tell apart (yellow darkened for white paper)
PALETTE = ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7A6A00")
BLUE, GREY = "#0072B2", "#555555"
CONDITIONS = {  # method → (as people write it, its colour in every chart)
    "temi": ("TEMI", BLUE),
    "kmeans": ("k-means", "#E69F00"),
    "labels": ("labels", "#009E73"),
    "random": ("random groups", "#CC79A7"),
    "none": ("no condition", GREY),
    "clip": ("CLIP", "#56B4E9"),
}

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
        colour: hexadecimal.
        marks: a short text beside each point.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    error: Sequence[float | None] | None = None
    style: Style = "line"
    colour: str = PALETTE[0]
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
        table: the numbers behind the finding.
        shaded: (low, high, text) of a range of x.
        x_log, y_log: logarithmic axes; that of x is marked at the points.
        from_zero: y starts at 0.
        bar_names: the bars of all series from top to bottom; `x_name` and `y_name` change places then.
    """

    name: str
    title: str
    x_name: str
    y_name: str
    series: list[Series]
    finding: str = ""
    how: str = ""
    table: Table | None = None
    x_log: bool = False
    y_log: bool = False
    from_zero: bool = True
    shaded: tuple[float, float, str] | None = None
    bar_names: list[str] = field(default_factory=list)

    @property
    def has_data(self) -> bool:
        """Whether there is more to draw than axes: levels alone have no place on x."""
        return any(series.y for series in self.series if series.style != "level")

    @property
    def x_ticks(self) -> list[float]:
        """The marks of a logarithmic x axis: those of the points whose numbers find room side by side."""
        xs = sorted({float(x) for series in self.series if series.style != "level" for x in series.x})
        ticks: list[float] = []
        for x in xs:
            if not ticks or x >= ticks[-1] * (xs[-1] / xs[0]) ** (1 / 16):
                ticks.append(x)
        return ticks

    @property
    def y_ticks(self) -> list[float]:
        """The marks of a logarithmic y axis."""
        ys = [y for series in self.series for y in series.y if y > 0]
        return log_ticks(min(ys), max(ys)) if ys else []

    @property
    def legend_lines(self) -> int:
        return len({series.name for series in self.series}) + (self.shaded is not None)


def colour_of(method: str, position: int = 0) -> str:
    """The colour of a condition; for any other name one by its position."""
    return CONDITIONS[method][1] if method in CONDITIONS else PALETTE[position % len(PALETTE)]


def name_of(method: str) -> str:
    """A condition as people write it."""
    return CONDITIONS[method][0] if method in CONDITIONS else method


def log_ticks(low: float, high: float) -> list[float]:
    """Where a logarithmic axis is marked: powers of ten, or 1, 2, 5 of each, or finer, until there are four marks."""
    if low == high:
        low, high = low / 10, high * 10
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for digits in ((1,), (1, 2, 5)):
        ticks = [float(f"{digit * decade:.6g}") for decade in decades for digit in digits]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 4:
            return inside
    return [float(f"{tick:.6g}") for tick in MaxNLocator(6).tick_values(low, high) if tick > 0]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """`0.5`, `40`, `10,000`."""
    return [f"{tick:,.10g}" for tick in ticks]


def shaded_ends(chart: Chart) -> tuple[float, float, str]:
    """The shaded range, wide enough to be seen where it is a single number."""
    assert chart.shaded is not None
    low, high, text = chart.shaded
    return (low, high, text) if low < high else (low / 1.02, high * 1.02, text)


def plotly_figure(chart: Chart) -> go.Figure:
    """The chart for a browser."""
    figure, entries = go.Figure(), chart.legend_lines
    names = [series.name for series in chart.series]
    for position, series in enumerate(chart.series):
        add_to_plotly(figure, series, in_legend=entries > 1 and series.name not in names[:position])
    if chart.shaded is not None:
        low, high, text = shaded_ends(chart)  # its text stands in the legend, where it can't cover lines and points
        shade = {"fillcolor": BLUE, "opacity": 0.12, "line_width": 0, "layer": "below"}
        figure.add_vrect(x0=low, x1=high, name=text, showlegend=True, **shade)
    below = 24 * -(-entries // 3)  # the legend's lines
    figure.update_layout(
        template="none",
        margin={"l": 60, "r": 16, "t": 34, "b": 60 + below},
        height=(140 + 26 * len(chart.bar_names) if chart.bar_names else 420) + below,
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        showlegend=entries > 1,
        hovermode="closest",
        hoverlabel={"namelength": -1},
        font={"family": "system-ui, sans-serif", "size": 13},
        barmode="overlay",
    )
    axis: dict[str, Any] = {"showline": True, "linecolor": "#888888", "gridcolor": "rgba(128,128,128,.2)"}
    axis |= {"zeroline": False, "automargin": True, "hoverformat": ".4~g"}
    if chart.bar_names:  # each name on a line of its own, so that a phone shows all
        figure.update_xaxes(title_text=chart.y_name, rangemode="tozero", **axis)
        names_from_the_top = {"categoryorder": "array", "categoryarray": chart.bar_names, "autorange": "reversed"}
        figure.update_yaxes(title_text=chart.x_name, dtick=1, **names_from_the_top, **axis)
        return figure
    figure.update_xaxes(title_text=chart.x_name, **axis)
    figure.update_yaxes(title_text=chart.y_name, rangemode="tozero" if chart.from_zero else None, **axis)
    if chart.x_log:
        figure.update_xaxes(type="log", tickvals=chart.x_ticks, ticktext=tick_texts(chart.x_ticks))
    if chart.y_log:  # plotly's own marks say 5 for 0.5
        ticks = {"tickvals": chart.y_ticks, "ticktext": tick_texts(chart.y_ticks)}
        figure.update_yaxes(type="log", rangemode=None, **ticks)
    return figure


def add_to_plotly(figure: go.Figure, series: Series, in_legend: bool) -> None:
    common: dict[str, Any] = {"name": series.name, "showlegend": in_legend, "legendgroup": series.name}
    if series.style == "level":
        figure.add_hline(series.y[0], line={"color": series.colour, "dash": "dash", "width": 2}, **common)
        return
    error = None if series.errors is None else {"type": "data", "array": series.errors, "thickness": 1.2, "width": 4}
    if series.style == "bars":
        lengths = {"x": list(series.y), "y": list(series.x), "error_x": error, "orientation": "h"}
        figure.add_bar(**lengths, marker_color=series.colour, **common)
        return
    mode = {"dots": "markers", "curve": "lines"}.get(series.style, "lines+markers")
    figure.add_scatter(
        x=list(series.x),
        y=list(series.y),
        error_y=error,
        mode=f"{mode}+text" if series.marks else mode,
        text=series.marks,
        textposition="top center",
        textfont={"size": 11, "color": series.colour},
        marker={"color": series.colour, "size": 8},
        line={"color": series.colour, "width": 1.5 if series.style == "curve" else 2},
        **common,
    )


@contextmanager
def png_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of this size in inches to draw on; it is written to `path` when the block ends well.

    No window system and no global state of pyplot are involved, so it can be used anywhere, in threads too.
    """
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_png(chart: Chart, path: Path) -> None:
    """The chart as a picture for documents."""
    with png_figure(path, 7.5, max(4.5, 1.2 + 0.26 * len(chart.bar_names))) as figure:
        axes = figure.add_subplot()
        axes.set_title(chart.title)
        if chart.has_data:
            for series in chart.series:
                draw_series(axes, series, chart)
            draw_axes(axes, chart)
        else:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no data", ha="center", va="center", color="#888888", transform=axes.transAxes)


def draw_series(axes: Axes, series: Series, chart: Chart) -> None:
    if series.style == "level":
        axes.axhline(series.y[0], color=series.colour, linestyle="--", linewidth=1.5, label=series.name)
    elif series.style == "bars":
        places = [chart.bar_names.index(str(x)) for x in series.x]
        axes.barh(places, series.y, 0.7, xerr=series.errors, color=series.colour, label=series.name, capsize=3)
    else:
        axes.errorbar(
            [float(x) for x in series.x],
            series.y,
            yerr=series.errors,
            fmt={"dots": "o", "curve": "-"}.get(series.style, "o-"),
            markersize=4.5,
            linewidth=1.5,
            capsize=3,
            color=series.colour,
            label=series.name,
        )
    for x, y, mark in zip(series.x, series.y, series.marks or (), strict=series.marks is not None):
        beside: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(mark, (x, y), color=series.colour, **beside)


def draw_axes(axes: Axes, chart: Chart) -> None:
    """Everything around the series: the shaded range, marks, names and the legend."""
    if chart.shaded is not None:
        low, high, text = shaded_ends(chart)
        axes.axvspan(low, high, color=BLUE, alpha=0.12, linewidth=0, label=text)
    if chart.x_log:
        axes.set_xscale("log")
        axes.set_xticks(chart.x_ticks, tick_texts(chart.x_ticks))
        axes.xaxis.set_minor_locator(NullLocator())
    if chart.bar_names:
        axes.set_yticks(range(len(chart.bar_names)), chart.bar_names)
        axes.invert_yaxis()
    elif chart.y_log:
        axes.set_yscale("log")
        axes.set_yticks(chart.y_ticks, tick_texts(chart.y_ticks))
        axes.yaxis.set_minor_locator(NullLocator())
    elif chart.from_zero:
        axes.set_ylim(bottom=0)
    names = (chart.y_name, chart.x_name) if chart.bar_names else (chart.x_name, chart.y_name)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.legend_lines > 1:
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if chart.legend_lines > 8 else {}
        axes.legend(frameon=False, fontsize=9, **beside)
