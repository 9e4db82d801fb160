"""A page as data, and its two files: HTML that opens without network, and Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from plotly.offline import get_plotlyjs

from pipeline.pictures.chart import Chart, plotly_figure
from pipeline.pictures.html import write_html, write_text
from pipeline.pictures.table import Table


@dataclass(frozen=True)
class Page:
    """What the template shows, in this order.

    Attributes:
        facts: the numbers beside the answer, name → value.
        pictures: caption → image.
        curves: charts below the pictures.
        protocols: what was measured → how.
        command: that made it; `single_commands` are those of its jobs.
        notes: what is missing, and why.
    """

    title: str
    question: str
    answer: Sequence[str]
    facts: Mapping[str, str]
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    curves: Sequence[Chart] = ()
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = ""
    single_commands: Sequence[str] = ()
    notes: Sequence[str] = ()


def write_page(path: Path, page: Page) -> Path:
    """The page as one HTML file; where it lies."""
    charts = [chart for chart in (*page.charts, *page.curves) if chart.has_data]
    return write_html(
        path,
        "report.html.j2",
        page=page,
        protocols={name: as_yaml(protocol) for name, protocol in page.protocols.items()},
        figures={chart.name: plotly_figure(chart).to_plotly_json() for chart in charts},
        plotly=get_plotlyjs() if charts else "",
    )


def write_markdown(path: Path, page: Page) -> Path:
    """The page without pictures and protocols; the charts are PNG files beside it, by their names."""
    parts = [f"# {page.question}", *page.answer, *(f"{name}: {value}" for name, value in page.facts.items())]
    for chart in page.charts:
        said = "" if chart.finding in page.answer else chart.finding
        parts += [f"![{chart.title}]({chart.name}.png)", said, chart.how]
    tables = [chart.table for chart in page.charts if chart.table is not None]
    parts += [table.as_markdown() for table in (*tables, *page.tables)] + list(page.notes)
    return write_text(path, "\n\n".join(part for part in parts if part) + "\n")


def as_yaml(protocol: Mapping[str, Any]) -> str:
    """A protocol for readers, without what was not set."""

    def set_only(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: set_only(one) for key, one in value.items() if one is not None}
        return [set_only(one) for one in value] if isinstance(value, list | tuple) else value

    return yaml.safe_dump(set_only(protocol), sort_keys=False, allow_unicode=True, width=100)
