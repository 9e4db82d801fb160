"""One HTML page that opens without network: the question, the answer, its evidence, and how to get it again."""

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from datamodules.artifacts import UserError, atomic_path
from pipeline.command import program
from pipeline.run_folder import SUMMARY_FILE
from pipeline.studies.analysis import spread
from pipeline.studies.chart import Chart, Series, colour_of, plotly_figure
from pipeline.studies.curves import loss_chart
from pipeline.studies.findings import CHARTS
from pipeline.studies.gallery import galleries
from pipeline.studies.results import Result, Results
from pipeline.studies.tables import final_training, table_of_correlations, table_of_runs

TEMPLATES = Path(__file__).parent
NUMBER_FORMAT = "{:.4g}"


@dataclass(frozen=True)
class Table:
    """A table with a caption."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An embedded image with a caption."""

    caption: str
    image: Image.Image

    @property
    def source(self) -> str:
        """The picture itself as a data address, as PNG."""
        buffer = BytesIO()
        self.image.save(buffer, "png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Page:
    """What the template shows, in this order."""

    title: str
    question: str
    answer: Sequence[str]
    facts: Mapping[str, str]
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    gallery_title: str = ""
    pictures: Sequence[Picture] = ()
    curves: Sequence[Chart] = ()
    protocols: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    command: str = ""
    single_commands: Sequence[str] = ()
    notes: Sequence[str] = ()


def write_page(path: Path, page: Page) -> Path:
    """The page as one file; where it lies."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    charts = [*page.charts, *page.curves]
    figures = {chart.name: plotly_figure(chart).to_plotly_json() for chart in charts}
    html = environment.get_template("page.html.j2").render(
        page=page,
        figures=script_json(figures),
        plotly=Markup(get_plotlyjs()) if charts else "",  # the library's own text
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def script_json(data: Any) -> Markup:
    """JSON that may stand in a <script>: no text in it can end that element."""
    text = json.dumps(data, default=list)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # escaped above


def read_any_summary(folder: Path) -> dict[str, Any]:
    """The summary of whatever run lies in `folder`.

    Raises:
        UserError: there is no finished run.
    """
    try:
        return json.loads((folder / SUMMARY_FILE).read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"run={folder}: there is no {folder / SUMMARY_FILE}. Give the folder of a finished run or study, "
            "such as runs/digits/study-granularity/TIME."
        ) from error
    except ValueError as error:
        raise UserError(f"{folder / SUMMARY_FILE}: damaged ({error}). Make it again with the run's command.") from error


def page_of(folder: Path) -> Page:
    """The page for a study, or for any other run."""
    summary = read_any_summary(folder)
    return study_page(folder) if summary["command"] == "study" else run_page(folder, summary)


def study_page(folder: Path) -> Page:
    """Everything that a study found."""
    summary = read_any_summary(folder)
    results = Results.from_json(summary)
    charts = [CHARTS[name](results) for name in summary["plots"]]
    tables = [Table("All models, the best first.", *table_of_runs(results))]
    if "correlation" in summary["plots"]:
        tables.append(Table(f"What goes with {results.metric}.", *table_of_correlations(results)))
    shown = results.final or run_to_show(results.runs)
    pictures, notes = pictures_of(Path(shown.folder)) if shown is not None else ([], [])
    loss = loss_chart({run.name: (Path(run.folder), run.method) for run in results.trained})
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
        tables=tables,
        gallery_title=f"Clusters, real and generated: {shown.name}" if shown is not None else "",
        pictures=pictures,
        curves=[loss] if loss is not None else [],
        protocols={f"{results.metric}, {when}": spelled(how) for when, how in results.protocol.items()},
        command=typed(summary),
        single_commands=[job["command"] for job in summary["jobs"].values()],
        notes=[
            *notes,
            *(f"Missing: {name}." for name in results.missing),
            *results.left_out,
            *map(": ".join, summary["failed"].items()),
        ],
    )


def answer_of(results: Results, charts: Sequence[Chart]) -> list[str]:
    """The answer: what the first chart shows, and what came of the final training."""
    said = [*(chart.finding for chart in charts[:1]), final_training(results)]
    return [text for text in said if text]


def run_to_show(runs: Sequence[Result]) -> Result | None:
    """The best model on clusters of the images, or else the best there is."""
    measured = [run for run in runs if run.distances] or list(runs)
    own = [run for run in measured if run.is_clustering] or measured
    return min(own, key=lambda run: spread(run.distances).mean if run.distances else 0.0, default=None)


def pictures_of(train_folder: Path) -> tuple[list[Picture], list[str]]:
    """The gallery of a training run, or a note why there is none."""
    try:
        return [Picture(caption, image) for caption, image in galleries(train_folder)], []
    except UserError as error:
        return [], [f"No gallery: {error}"]


def run_page(folder: Path, summary: dict[str, Any]) -> Page:
    """A single run: its numbers, its pictures, its curves."""
    command = summary["command"]
    along = summary.get("distances") if command == "train" else None
    charts, answer, protocols = [], [], {}
    if along:
        charts.append(distance_chart(along, folder.name))
        kimg, distance = along["kimg_and_distance"][-1]
        answer = [
            f"After {kimg:g} kimg its {along['name']} is {distance:.3g} ({along['num_generated']:,} generated images "
            f"against {along['num_reference']:,} real ones)."
        ]
        hidden = ("name", "kimg_and_distance")
        protocols[along["name"]] = spelled({key: value for key, value in along.items() if key not in hidden})
    pictures, notes = pictures_of(folder) if command == "train" else (pictures_in(folder), [])
    loss = loss_chart({folder.name: (folder, "temi")})
    numbers = [
        [key.replace("_", " "), NUMBER_FORMAT.format(value) if isinstance(value, float) else f"{value:,}"]
        for key, value in summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return Page(
        title=f"{command}: {folder.name}",
        question=QUESTIONS.get(command, f"What did cedm {command} find?"),
        answer=answer,
        facts={"run folder": str(folder)},
        charts=charts,
        tables=[Table("The numbers of its summary.", ["what", "value"], numbers)] if numbers else [],
        gallery_title="Clusters, real and generated" if command == "train" else "Pictures",
        pictures=pictures,
        curves=[loss] if loss is not None else [],
        protocols=protocols,
        command=typed(summary),
        notes=notes,
    )


QUESTIONS = {
    "train": "What does this model generate, and how close is it to the data?",
    "cluster": "How do these clusters divide the images?",
    "bound": "How many clusters are worth having?",
    "evaluate": "How close are the generated images to the data?",
}


def distance_chart(along: Mapping[str, Any], name: str) -> Chart:
    """The distance along one training."""
    points = along["kimg_and_distance"]
    series = Series(name, [x for x, _ in points], [y for _, y in points], colour=colour_of("temi"))
    return Chart(
        name="distance",
        title="Distance against images seen",
        x_name="thousand training images seen",
        y_name=f"{along['name']} (lower is better)",
        series=[series],
        how="Every point is measured on the same sampling seeds.",
        y_log=True,
    )


def pictures_in(folder: Path) -> list[Picture]:
    """The PNG files that lie in the run's folder."""
    pictures = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            pictures.append(Picture(path.stem, image.convert("RGB")))
    return pictures


def typed(summary: Mapping[str, Any]) -> str:
    """The command that made a run."""
    return shlex.join([program(), summary["command"], *summary["arguments"]])


def spelled(protocol: Mapping[str, Any]) -> dict[str, str]:
    """A protocol as words: nested values spelled out, those that were not set left out."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key.replace('_', ' ')} {text(v)}" for key, v in value.items() if v is not None)
        if isinstance(value, list | tuple):
            return ", ".join(map(text, value))
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

    return {key.replace("_", " "): text(value) for key, value in protocol.items() if value is not None}
