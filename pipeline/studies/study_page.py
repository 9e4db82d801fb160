"""The page and the files of a study: everything that it found."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.pictures.bound import BoundFindings
from pipeline.pictures.chart import Chart, draw_png
from pipeline.pictures.curves import loss_chart
from pipeline.pictures.table import Table, write_csv
from pipeline.studies.analysis import spread
from pipeline.studies.comparisons import how_sure
from pipeline.studies.findings import CHARTS
from pipeline.studies.jobs import FINAL
from pipeline.studies.page import Page
from pipeline.studies.results import CONTROLS, SCORES, Result, Results
from pipeline.studies.run_page import pictures_of, typed

SHOWN = {"num_used": "used", "nmi": "NMI (%)", "accuracy": "accuracy (%)"}  # scores in the table


def study_page(summary: Mapping[str, Any], cluster_names: str | None = None) -> Page:
    """Question, answer, charts, tables, pictures of the best model, protocols and commands of a study's summary.

    Args:
        cluster_names: file of what that model's clusters are to be called; None: as its training had them.
    """
    results = Results.from_json(summary)
    charts = [CHARTS[name](results) for name in summary["plots"]]
    shown = results.final or run_to_show(results.runs)
    pictures, notes = (
        pictures_of(Path(shown.folder), None, shown.name, cluster_names) if shown is not None else ({}, [])
    )
    bound = BoundFindings.from_summary(results.bound).tables if results.bound else []
    return Page(
        title=f"{results.name} on {results.dataset}",
        question=results.question,
        answer=answer_of(results, charts),
        facts={
            "data set": results.dataset,
            "models": str(len(results.trained)),
            "images seen": ", ".join(f"{kimg:g} kimg" for kimg in sorted({run.kimg for run in results.trained})),
            "distance": results.metric or "none",
        },
        charts=charts,
        tables=[table for table in (table_of_runs(results), *bound) if table.rows],
        pictures=pictures,
        curves=loss_chart({run.name: (Path(run.folder), run.method) for run in results.trained}),
        protocols={f"{results.metric}, {when}": how for when, how in results.protocol.items()},
        command=typed(summary),
        single_commands=[shlex.join(["cedm", *shlex.split(job["command"])[1:]]) for job in summary["jobs"].values()],
        notes=[
            *notes,
            *(f"Missing: {name}." for name in results.missing),
            *results.left_out,
            *map(": ".join, summary.get("failed", {}).items()),
        ],
    )


def answer_of(results: Results, charts: Sequence[Chart]) -> list[str]:
    """What the first chart shows, which clusters pay, how sure that is, and what came of the longer training."""
    answer = [charts[0].finding] if charts else []
    answer += [chart.finding for chart in charts[1:] if chart.name == "description_length" and chart.series]
    answer += filter(None, [how_sure(results)])
    if (final := results.final) is not None:
        distance = f": {results.metric} {spread(final.distances)}" if final.distances else ""
        answer.append(
            f"The best, {final.name.removesuffix(FINAL)}, was trained again for {final.kimg:g} kimg{distance}. "
            f"It lies in {final.folder}."
        )
    return answer


def run_to_show(runs: Sequence[Result]) -> Result | None:
    """The best model on clusters of the images, or else the best there is."""
    measured = [run for run in runs if run.distances] or list(runs)
    own = [run for run in measured if run.method not in CONTROLS] or measured
    return min(own, key=lambda run: mean(run.distances or [0.0]), default=None)


def table_of_runs(results: Results) -> Table:
    """All models, the best first."""
    runs = sorted(results.trained, key=lambda run: mean(run.distances or [float("inf")]))
    shown = {key: name for key, name in SHOWN.items() if any(key in run.scores for run in runs)}
    rows = []
    for run in runs:
        distance = str(spread(run.distances)) if run.distances else "missing"
        scores = [f"{run.scores[key]:.4g}" if key in run.scores else "" for key in shown]
        rows.append([run.name, str(run.num_clusters or ""), f"{run.kimg:g}", distance, *scores])
    return Table("All models, the best first.", ["model", "C", "kimg", results.metric, *shown.values()], rows)


def write_tables(folder: Path, results: Results, charts: Sequence[Chart]) -> None:
    """`results.csv`, `distances.csv` with every single measurement, and a PNG file of each chart."""
    for chart in charts:
        draw_png(chart, folder / f"{chart.name}.png")
    write_csv(folder / "results.csv", [row_of(run) for run in results.trained])
    write_csv(folder / "distances.csv", [row for run in results.trained for row in measurements_of(run)])


def row_of(run: Result) -> dict[str, Any]:
    """One line of the table of runs."""
    found = spread(run.distances) if run.distances else None
    names = ("method", "num_clusters", "backbone", "seed", "kimg")
    distance = {"distance": found and found.mean, "std": found and found.std, "sets": len(run.distances)}
    return {
        "run": run.name,
        **{name: getattr(run, name) for name in names},
        **distance,
        **{name: run.scores.get(name) for name in SCORES},
        "price": run.length and run.length.price,
        "gain": run.length and run.length.gains[0].held_out.value,
    }


def measurements_of(run: Result) -> list[dict[str, Any]]:
    """Every single distance of a run: those along the training, and the final model's on each set of seeds."""
    along = [(kimg, "along the training", 0, distance) for kimg, distance in run.curve]
    final = [(run.kimg, "final model", number, distance) for number, distance in enumerate(run.distances)]
    names = ("kimg", "measured", "set", "distance")
    return [{"run": run.name, **dict(zip(names, one, strict=True))} for one in (*along, *final)]
