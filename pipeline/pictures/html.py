"""Pages from the templates beside this file: an HTML page is one file that opens without network."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from storage.control_characters import shown
from storage.files import atomic_path


def write_html(path: Path, template: str, **content: Any) -> Path:
    """A page, whole or not at all; where it lies."""
    return write_text(path, rendered(template, **content))


def rendered(template: str, **content: Any) -> str:
    """The text of a template. Whatever `content` holds is shown and never obeyed."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"data_url": data_url, "cell": lambda text: " ".join(text.split()).replace("|", "\\|")}
    return environment.get_template(template).render(**content)


def write_text(path: Path, text: str) -> Path:
    """A text file, whole or not at all; where it lies."""
    with atomic_path(path) as temporary:
        temporary.write_text(shown(text), encoding="utf-8")
    return path


def data_url(image: Image.Image, **options: Any) -> str:
    """The picture itself as an address: PNG, or with options such as `format="jpeg"` another."""
    buffer = BytesIO()
    image.save(buffer, **{"format": "png", "optimize": True, **options})
    kind = Image.MIME[options.get("format", "png").upper()]
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
