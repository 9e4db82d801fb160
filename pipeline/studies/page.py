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

from pipeline.pictures.chart import Chart, plotly_figure
from pipeline.pictures.curves import loss_chart
from pipeline.pictures.gallery import gallery_of
from pipeline.running.run_folder import SUMMARY_FILE
from pipeline.studies.analysis import spread
from pipeline.studies.bound_evidence import bound_tables
from pipeline.studies.findings import CHARTS
from pipeline.studies.results import Result, Results
from pipeline.studies.tables import final_training, table_of_correlations, table_of_runs
from storage.errors import UserError
from storage.files import atomic_path

TEMPLATES = Path(__file__).parent
READ = {  # what a page reads of a summary; of other commands' whatever there is
    "study": (
        "name",
        "question",
        "dataset",
        "metric",
        "runs",
        "final",
        "bound",
        "protocol",
        "missing",
        "plots",
        "jobs",
    ),
    "evaluate": ("scores", "notes"),
    "bound": ("measurements", "threshold", "rule", "used_when"),
}
WORDS = {  # how a protocol's names read on a page
    "extractor_is": "which is",
    "generated_images_used": "generated images used",
    "real_images_used": "real images used",
    "nimg": "training images seen",
    "num_generated": "generated images",
    "num_images": "images",
    "num_reference": "real images",
    "num_subsets": "subsets",
    "of_training_images": "of real unseen images",
    "sha256": "SHA-256",
}


@dataclass(frozen=True)
class Table:
    """A table with a caption."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An embedded image with a caption; a wide one has the page's width for itself."""

    caption: str
    image: Image.Image
    wide: bool = False

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
    charts = [chart for chart in (*page.charts, *page.curves) if chart.has_data]
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
    file = folder / SUMMARY_FILE
    try:
        summary = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"run={folder}: there is no {file}. Give the folder of a finished run or study, "
            "such as runs/digits/study-granularity/TIME."
        ) from error
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}). Make it again with the run's command.") from error
    known = summary if isinstance(summary, dict) else {}
    needed = ("command", "arguments", *READ.get(str(known.get("command")), ()))
    missing = [name for name in needed if name not in known]
    if missing:
        raise UserError(f"{file}: not a summary as cedm writes it ({missing[0]!r} is missing). Make it again.")
    return known


def study_page(folder: Path) -> Page:
    """Everything that a study found."""
    summary = read_any_summary(folder)
    results = Results.from_json(summary)
    charts = [CHARTS[name](results) for name in summary["plots"]]
    tables = [Table("All models, the best first.", *table_of_runs(results))]
    if "correlation" in summary["plots"]:
        tables.append(Table(f"What goes with {results.metric}.", *table_of_correlations(results)))
    shown = results.final or run_to_show(results.runs)
    gallery, pictures, notes = pictures_of(Path(shown.folder)) if shown is not None else ("", [], [])
    tables += [Table(*table) for table in bound_tables(results.bound or {})]
    tables = [table for table in tables if table.rows]
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
        gallery_title=f"{gallery}: {shown.name}" if shown is not None else "",
        pictures=pictures,
        curves=[loss] if loss is not None else [],
        protocols={f"{results.metric}, {when}": spelled(how) for when, how in results.protocol.items()},
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
    """The answer: what the first chart shows, and what came of the final training."""
    said = [*(chart.finding for chart in charts[:1]), final_training(results)]
    return [text for text in said if text]


def run_to_show(runs: Sequence[Result]) -> Result | None:
    """The best model on clusters of the images, or else the best there is."""
    measured = [run for run in runs if run.distances] or list(runs)
    own = [run for run in measured if run.is_clustering] or measured
    return min(own, key=lambda run: spread(run.distances).mean if run.distances else 0.0, default=None)


def pictures_of(train_folder: Path) -> tuple[str, list[Picture], list[str]]:
    """Title and pictures of a training run's gallery, or a note why there is none."""
    try:
        gallery = gallery_of(train_folder)
    except UserError as error:
        return "", [], [f"No gallery: {error}"]
    return gallery.title, [Picture(caption, image) for caption, image in gallery.pictures], []


def typed(summary: Mapping[str, Any]) -> str:
    """The command that made a run, as it can be typed on any machine."""
    return shlex.join(["cedm", summary["command"], *summary["arguments"]])


def spelled(protocol: Mapping[str, Any]) -> dict[str, str]:
    """A protocol as words: nested values spelled out, those that were not set left out."""

    def named(key: str) -> str:
        return WORDS.get(key, key.replace("_", " "))

    def text(value: Any, between: str = "; ") -> str:
        if isinstance(value, Mapping):
            parts = [(named(key), text(v, ", "), isinstance(v, Mapping)) for key, v in value.items() if v is not None]
            return between.join(f"{name} ({inner})" if nested else f"{name} {inner}" for name, inner, nested in parts)
        if isinstance(value, list | tuple):
            return ", ".join(map(text, value))
        if isinstance(value, float):
            return f"{value:.6g}"
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

    return {named(key): text(value) for key, value in protocol.items() if value is not None}
