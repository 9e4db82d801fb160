"""Makes pages of the site out of README.md and CONTRIBUTING.md, whose links begin at the root of the repository."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CITATION.cff": "CITATION.cff"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(str(config.config_file_path)).parent
    for name, page in PAGES.items():
        text = (root / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, its_page in PAGES.items():
            text = text.replace(f"]({other})", f"]({its_page})")
        files.append(File.generated(config, page, content=text))
    return files
