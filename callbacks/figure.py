"""A matplotlib figure that becomes a PNG file, whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from storage.files import atomic_path


@contextmanager
def png_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of this size in inches to draw on; it is written to `path` when the block ends well.

    No window system and no global state of pyplot are involved, so it can be used anywhere, in threads too.
    """
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
