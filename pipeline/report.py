"""`cedm report`: a run or a study → one HTML page that opens without network."""

from pathlib import Path

from omegaconf import DictConfig

from pipeline.command import command
from pipeline.studies.page import page_of, write_page


@command
def report(cfg: DictConfig) -> None:
    folder = Path(str(cfg.run))
    path = write_page(Path(str(cfg.file or folder / "report.html")), page_of(folder))
    print(f"report      {path}  ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    report()
