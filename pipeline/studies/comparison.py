"""The page that compares several runs: where their settings differ; numbers, curves and pictures side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.pictures.chart import PALETTE, Chart
from pipeline.pictures.table import Table
from pipeline.running.run_folder import flattened, read_settings
from pipeline.studies.analysis import spread
from pipeline.studies.page import Page

Run = tuple[Path, Page, Mapping[str, Any]]  # folder, page of its own, summary
ABSENT = "–"


def comparison_page(runs: Mapping[str, Run]) -> Page:
    """All runs on one page, by their short names."""
    pages = {name: page for name, (_, page, _) in runs.items()}
    protocols, notes = protocols_of(pages)
    known = {name: flattened(read_settings(folder) or {}) for name, (folder, _, _) in runs.items()}
    settings = beside_one_another("Settings in which they differ.", "setting", known)
    settings = replace(settings, rows=[row for row in settings.rows if len({*row[1:]}) > 1])
    columns = {name: numbers(page, summary) for name, (_, page, summary) in runs.items()}
    return Page(
        title=", ".join(runs),
        question="How do these runs differ?",
        answer=[f"{name}: {line}" for name, page in pages.items() for line in page.answer],
        facts={name: str(folder) for name, (folder, _, _) in runs.items()},
        charts=list(joined({name: page.charts for name, page in pages.items()})),
        tables=[
            table
            for table in (settings, beside_one_another("The numbers of their summaries.", "what", columns))
            if table.rows
        ],
        pictures={
            f"{name}: {caption}": page.pictures[caption]
            for caption in dict.fromkeys(caption for page in pages.values() for caption in page.pictures)
            for name, page in pages.items()
            if caption in page.pictures
        },
        curves=list(joined({name: page.curves for name, page in pages.items()})),
        protocols=protocols,
        command="\n".join(page.command for page in pages.values()),
        notes=[*notes, *(f"{name}: {note}" for name, page in pages.items() for note in page.notes)],
    )


def short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of their paths, as many folders of them as it takes to tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError(f"{folders}: a folder twice")


def joined(charts: Mapping[str, Sequence[Chart]]) -> Iterator[Chart]:
    """Charts of the same axes as one, in which each line has its own colour."""
    everyone = [(run, chart) for run, own in charts.items() for chart in own]
    kinds = dict.fromkeys((chart.name, chart.x_name, chart.y_name) for _, chart in everyone)
    for position, key in enumerate(kinds):
        alike = [(run, chart) for run, chart in everyone if (chart.name, chart.x_name, chart.y_name) == key]
        own = [(run, chart, one) for run, chart in alike for one in chart.series]
        names = [f"{run}: {one.name}" if len(chart.series) > 1 and one.name else run for run, chart, one in own]
        series = [
            replace(one, name=name, colour=PALETTE[number % len(PALETTE)])
            for number, (name, (_, _, one)) in enumerate(zip(names, own, strict=True))
        ]
        # Two kinds may have one name, such as distances by different metrics.
        yield replace(alike[0][1], name=f"{key[0]}-{position}", series=series, finding="", table=None, shaded=None)


def beside_one_another(caption: str, what: str, columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """What is known of the runs, name → key → value, as a table with a column for each."""
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = [[key, *(str(column.get(key, ABSENT)) for column in columns.values())] for key in keys]
    return Table(caption, [what, *columns], rows)


def numbers(page: Page, summary: Mapping[str, Any]) -> dict[str, str]:
    """What a run's own page says in two columns, and its scores, each over all sets."""
    told = {str(row[0]): str(row[1]) for table in page.tables if len(table.header) == 2 for row in table.rows}
    scores = summary.get("scores")
    measured = scores if isinstance(scores, dict) and summary["command"] == "evaluate" else {}
    return told | {name: str(spread(score["sets"])) for name, score in measured.items()}


def protocols_of(pages: Mapping[str, Page]) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """How everything was measured, once where all runs did it alike; and a warning about what was not."""
    protocols, notes = dict[str, Mapping[str, Any]](), []
    for what in dict.fromkeys(what for page in pages.values() for what in page.protocols):
        own = {name: page.protocols[what] for name, page in pages.items() if what in page.protocols}
        if len({repr(protocol) for protocol in own.values()}) == 1:
            protocols[what] = next(iter(own.values()))
        else:
            protocols |= {f"{what}, {name}": protocol for name, protocol in own.items()}
            notes.append(f"{what} was not measured alike in these runs: see below how.")
    return protocols, notes
