"""The numbers of a study as files: CSV for programs, Markdown for people, a PNG of each chart for documents."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from statistics import mean

from pipeline.pictures.chart import Chart, draw_png
from pipeline.studies.analysis import spread
from pipeline.studies.jobs import FINAL
from pipeline.studies.results import SCORES, Result, Results
from pipeline.studies.sentences import correlation_table
from storage.files import atomic_path

Row = dict[str, str | int | float | None]


def write_tables(folder: Path, results: Results, charts: Sequence[Chart]) -> None:
    """`results.csv`, `results.md`, `distances.csv` with every single measurement, and a PNG file of each chart."""
    for chart in charts:
        draw_png(chart, folder / f"{chart.name}.png")
    write(folder / "results.csv", as_csv([row_of(run) for run in results.trained]))
    write(folder / "distances.csv", as_csv([row for run in results.trained for row in measurements_of(run)]))
    write(folder / "results.md", as_markdown(results, charts))


def row_of(run: Result) -> Row:
    """One line of the table of runs."""
    found = spread(run.distances) if run.distances else None
    return {
        "run": run.name,
        "method": run.method,
        "num_clusters": run.num_clusters,
        "backbone": run.backbone,
        "seed": run.seed,
        "kimg": run.kimg,
        "distance": found.mean if found else None,
        "std": found.std if found else None,
        "sets": len(run.distances),
        **{name: run.scores.get(name) for name in SCORES},
    }


def measurements_of(run: Result) -> list[Row]:
    """Every single distance of a run: those along the training, and the final model's on each set of seeds."""
    along: list[Row] = [
        {"run": run.name, "kimg": kimg, "measured": "along the training", "set": 0, "distance": distance}
        for kimg, distance in run.curve
    ]
    return along + [
        {"run": run.name, "kimg": run.kimg, "measured": "final model", "set": number, "distance": distance}
        for number, distance in enumerate(run.distances)
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """CSV text with a header; nothing without rows."""
    text = StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: shown(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def shown(value: str | int | float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def table_of_runs(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table that people read, the best first."""
    with_scores = any("nmi" in run.scores for run in results.trained)
    header = ["model", "C", "kimg", f"{results.metric}", *(["used", "NMI", "accuracy"] if with_scores else [])]
    lines = []
    for run in sorted(results.trained, key=lambda run: mean(run.distances) if run.distances else float("inf")):
        distance = str(spread(run.distances)) if run.distances else "missing"
        line = [run.name, shown(run.num_clusters), f"{run.kimg:g}", distance]
        if with_scores:
            scores = run.scores
            line += [
                f"{scores['num_used']:g}" if "num_used" in scores else "",
                *(f"{scores[key]:.1f} %" if key in scores else "" for key in ("nmi", "accuracy")),
            ]
        lines.append(line)
    return header, lines


def table_of_correlations(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and lines: what is correlated with the distance, and how sure that is."""
    lines = [
        [name, str(found.n), str(found.pearson), str(found.spearman), f"{found.p_value:.2g}"]
        for name, found in correlation_table(results).items()
    ]
    return ["score", "clusterings", "Pearson's r [95 %]", "Spearman's ρ [95 %]", "p of ρ"], lines


def as_markdown(results: Results, charts: Sequence[Chart]) -> str:
    """Question, findings with their pictures, tables."""
    parts = [f"# {results.question}", f"Data set: {results.dataset}.", final_training(results)]
    for chart in charts:
        parts += [chart.finding, f"![{chart.title}]({chart.name}.png)", chart.how]
    parts.append(markdown_table(*table_of_runs(results)))
    if any(chart.name == "correlation" for chart in charts):
        parts.append(markdown_table(*table_of_correlations(results)))
    if results.missing:
        parts.append(f"Missing: {', '.join(results.missing)}.")
    parts += results.left_out
    return "\n\n".join(part for part in parts if part) + "\n"


def final_training(results: Results) -> str:
    """What came of the model that was trained for longer; empty where there is none."""
    final = results.final
    if final is None:
        return ""
    distance = f": {results.metric} {spread(final.distances)}" if final.distances else ""
    short = final.name.removesuffix(FINAL)
    return f"The best, {short}, was trained again for {final.kimg:g} kimg{distance}. It lies in {final.folder}."


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
