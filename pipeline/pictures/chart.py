"""A chart as data, and its two drawings: one to zoom into on a page, and a PNG file for documents."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from pipeline.pictures.table import Table
from storage.files import atomic_path

if TYPE_CHECKING:
    import plotly.graph_objects as go

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
MODES = {"line": ("lines+markers", "o-"), "curve": ("lines", "-"), "dots": ("markers", "o")}  # plotly's, matplotlib's


@dataclass(frozen=True)
class Series:
    """One line, cloud of dots, horizontal level or set of bars.

    Attributes:
        name: as the legend shows it.
        x: numbers, or names for bars; ignored for a level.
        y: one value for each x; a level has a single one.
        error: half the height of the error bars; None: none.
        style: line, curve (without marks for its points), dots, level (dashed, across the whole chart) or bars, which
            lie from the lowest value at the top to the highest; `x_name` and `y_name` change places then.
        colour: hexadecimal.
        marks: a short text beside each point.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    error: Sequence[float | None] | None = None
    style: Literal["line", "curve", "dots", "level", "bars"] = "line"
    colour: str = PALETTE[0]
    marks: Sequence[str] | None = None

    @property
    def errors(self) -> list[float] | None:
        """`error` with 0 where a single value has none; None where no point has one."""
        return [value or 0.0 for value in self.error] if self.error is not None and any(self.error) else None


@dataclass(frozen=True)
class Chart:
    """Axes and what is drawn between them.

    Attributes:
        name: of its files.
        title: above the chart.
        finding: what it shows, in a sentence or two, from the numbers.
        how: how the numbers were measured, what bars and shades mean.
        table: the numbers behind the finding.
        x_log, y_log: logarithmic axes.
        shaded: (low, high, text) of a range of x.
    """

    name: str
    title: str
    x_name: str
    y_name: str
    series: Sequence[Series]
    finding: str = ""
    how: str = ""
    table: Table | None = None
    x_log: bool = False
    y_log: bool = False
    shaded: tuple[float, float, str] | None = None

    @property
    def has_data(self) -> bool:
        """Whether there is more to draw than axes: levels alone have no place on x."""
        return any(series.y for series in self.series if series.style != "level")

    @property
    def bar_names(self) -> list[str]:
        """The bars of all series from top to bottom."""
        bars = [bar for series in self.series if series.style == "bars" for bar in zip(series.y, series.x, strict=True)]
        return [str(name) for _, name in sorted(bars)]

    @property
    def from_zero(self) -> bool:
        """Whether y starts at 0: not for dots and curves, whose differences would not be seen, nor below 0."""
        if any(value < 0 for series in self.series for value in series.y):
            return False
        return not self.y_log and any(series.style not in ("curve", "dots") for series in self.series)

    @property
    def legend_lines(self) -> int:
        return len(self.series) + (self.shaded is not None)


def colour_of(method: str, position: int = 0) -> str:
    """The colour of a condition; for any other name one by its position."""
    return CONDITIONS[method][1] if method in CONDITIONS else PALETTE[position % len(PALETTE)]


def colours_of(methods: Mapping[str, str]) -> dict[str, str]:
    """Name → colour, from name → method: that of its condition where no other has the same, else by position."""
    count = Counter(methods.values())
    return {
        name: colour_of(method if count[method] == 1 else "", position)
        for position, (name, method) in enumerate(methods.items())
    }


def name_of(method: str) -> str:
    """A condition as people write it."""
    return CONDITIONS[method][0] if method in CONDITIONS else method


def plotly_figure(chart: Chart) -> "go.Figure":
    """The chart for a browser."""
    import plotly.graph_objects as go  # pages alone need it, so a training runs where it is not installed

    figure, bars = go.Figure(), chart.bar_names
    for series in chart.series:
        add_to_plotly(figure, series)
    if chart.shaded is not None:
        low, high, text = chart.shaded  # its text stands in the legend, where it can't cover lines and points
        shade = {"fillcolor": BLUE, "opacity": 0.12, "line_width": 0, "layer": "below"}
        figure.add_vrect(x0=low, x1=high, name=text, showlegend=True, **shade)
    below = 24 * -(-chart.legend_lines // 3)
    figure.update_layout(
        template="plotly_white",
        margin={"l": 60, "r": 16, "t": 34, "b": 60 + below},
        height=(140 + 26 * len(bars) if bars else 420) + below,
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        showlegend=chart.legend_lines > 1,
        hoverlabel={"namelength": -1},
        barmode="overlay",
    )
    logarithmic = {"type": "log", "tickformat": ",.6~r"}  # without a format, the mark of 0.5 says 5
    of_x: dict[str, Any] = {"title_text": chart.x_name, **(logarithmic if chart.x_log else {})}
    of_y: dict[str, Any] = {"title_text": chart.y_name, **(logarithmic if chart.y_log else {})}
    of_y["rangemode"] = "tozero" if chart.from_zero else "normal"
    if bars:  # each name on a line of its own, so that a phone shows all
        of_x, of_y = of_y, {**of_x, "dtick": 1, "categoryorder": "total descending"}
    figure.update_xaxes(hoverformat=".4~g", **of_x)
    figure.update_yaxes(hoverformat=".4~g", **of_y)
    return figure


def add_to_plotly(figure: "go.Figure", series: Series) -> None:
    common: dict[str, Any] = {"name": series.name, "showlegend": True}
    error = None if series.errors is None else {"type": "data", "array": series.errors}
    if series.style == "level":
        figure.add_hline(series.y[0], line={"color": series.colour, "dash": "dash"}, **common)
    elif series.style == "bars":
        lengths = {"x": list(series.y), "y": list(series.x), "error_x": error, "orientation": "h"}
        figure.add_bar(**lengths, marker_color=series.colour, **common)
    else:
        mode, _ = MODES[series.style]
        figure.add_scatter(
            x=list(series.x),
            y=list(series.y),
            error_y=error,
            mode=f"{mode}+text" if series.marks else mode,
            text=series.marks,
            textposition="top center",
            marker={"color": series.colour, "size": 8},
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
        draw_axes(axes, chart)
        for series in chart.series:
            draw_series(axes, series)
        if chart.from_zero and not chart.bar_names:
            axes.set_ylim(bottom=0)
        if chart.legend_lines > 1:
            figure.legend(loc="outside lower center", ncols=3, frameon=False)


def draw_series(axes: Axes, series: Series) -> None:
    common: dict[str, Any] = {"color": series.colour, "label": series.name}
    if series.style == "level":
        axes.axhline(series.y[0], linestyle="--", **common)
    elif series.style == "bars":
        axes.barh(list(map(str, series.x)), series.y, 0.7, xerr=series.errors, capsize=3, **common)
    else:
        _, marks = MODES[series.style]
        xs = [float(x) for x in series.x]
        axes.errorbar(xs, series.y, yerr=series.errors, fmt=marks, markersize=4.5, capsize=3, **common)
    for x, y, mark in zip(series.x, series.y, series.marks or (), strict=series.marks is not None):
        axes.annotate(mark, (x, y), (0, 5), textcoords="offset points", ha="center", color=series.colour)


def draw_axes(axes: Axes, chart: Chart) -> None:
    """Everything around the series: the shaded range, marks and names."""
    if chart.shaded is not None:
        low, high, text = chart.shaded
        axes.axvspan(low, high, color=BLUE, alpha=0.12, linewidth=0, label=text)
    for axis, name, log in ((axes.xaxis, chart.x_name, chart.x_log), (axes.yaxis, chart.y_name, chart.y_log)):
        axis.set_label_text(name)
        if log:
            axes.set(**{f"{axis.axis_name}scale": "log"})
            axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:,.6g}")
    if chart.bar_names:
        axes.yaxis.update_units(chart.bar_names)  # fixes their order
        axes.invert_yaxis()
        axes.set(xlabel=chart.y_name, ylabel=chart.x_name)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
