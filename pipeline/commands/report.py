"""`cedm report`: a run or a study → one HTML page that opens without network; several runs → one that compares them."""

from pathlib import Path
from typing import Any

from pipeline.running.finished_run import read_any_summary
from pipeline.running.run_folder import SUMMARY_FILE
from pipeline.settings.schemas import ReportSettings
from pipeline.settings.words import key_of, word
from pipeline.studies.comparison import comparison_page, short_names
from pipeline.studies.page import Page, write_page
from pipeline.studies.run_page import run_page
from pipeline.studies.study_page import study_page
from storage.errors import UserError


def report(settings: ReportSettings) -> None:
    """Write the page of a run, of a study or of several runs, into the first one's folder or into `file=`."""
    folders = settings.folders
    names = settings.cluster_names
    summaries = [named(read_any_summary(folder), names) for folder in folders]
    pages = [page_of(folder, summary, names) for folder, summary in zip(folders, summaries, strict=True)]
    page, name = pages[0], "report.html"
    if len(folders) > 1:
        runs = dict(zip(short_names(folders), zip(folders, pages, summaries, strict=True), strict=True))
        page, name = comparison_page(runs), "comparison.html"
    path = write_page(Path(settings.file or folders[0] / name), page)
    print(f"report      {path}  ({path.stat().st_size / 1e6:.1f} MB)")


def named(summary: dict[str, Any], cluster_names: str | None) -> dict[str, Any]:
    """The summary as if the run had been given these names of its clusters."""
    if cluster_names is None:
        return summary
    others = [text for text in summary["arguments"] if key_of(text) != "cluster_names"]
    return {**summary, "arguments": [*others, word("cluster_names", cluster_names)]}


def page_of(folder: Path, summary: dict[str, Any], cluster_names: str | None) -> Page:
    """The page of a run, or of a study."""
    try:
        return study_page(summary, cluster_names) if summary["command"] == "study" else run_page(folder, summary)
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # whatever a made-up summary ends in
        problem = f"{error} is missing" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        file = folder / SUMMARY_FILE
        raise UserError(f"{file}: not a summary as cedm writes it ({problem}). Make it again.") from error
