"""`cedm report`: a run or a study → one HTML page that opens without network."""

from pathlib import Path

from pipeline.running.finished_run import read_any_summary
from pipeline.running.run_folder import SUMMARY_FILE
from pipeline.settings.schemas import ReportSettings
from pipeline.studies.page import write_page
from pipeline.studies.run_page import run_page
from pipeline.studies.study_page import study_page
from storage.errors import UserError


def report(settings: ReportSettings) -> None:
    """Write the page of a run, or of a study, into its folder or into `file=`."""
    folder = Path(settings.run)
    summary = read_any_summary(folder)
    try:
        page = study_page(summary) if summary["command"] == "study" else run_page(folder, summary)
    except KeyError as error:
        file = folder / SUMMARY_FILE
        raise UserError(f"{file}: not a summary as cedm writes it ({error} is missing). Make it again.") from error
    path = write_page(Path(settings.file or folder / "report.html"), page)
    print(f"report      {path}  ({path.stat().st_size / 1e6:.1f} MB)")
