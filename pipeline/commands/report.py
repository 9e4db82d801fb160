"""`cedm report`: a run or a study → one HTML page that opens without network."""

from pathlib import Path

from omegaconf import DictConfig

from pipeline.settings.command import command
from pipeline.studies.page import read_any_summary, study_page, write_page
from pipeline.studies.run_page import run_page


@command
def report(cfg: DictConfig) -> None:
    folder = Path(str(cfg.run))
    summary = read_any_summary(folder)
    page = study_page(folder) if summary["command"] == "study" else run_page(folder, summary)
    path = write_page(Path(str(cfg.file or folder / "report.html")), page)
    print(f"report      {path}  ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    report()
