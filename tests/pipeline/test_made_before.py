"""A stage whose result another run has made meanwhile."""

import shutil
from pathlib import Path

from .conftest import Cedm, summary


def test_a_stopped_clustering_ends_where_another_has_made_the_same(cedm: Cedm, workplace: Path) -> None:
    """As after a study was stopped while it clustered: its folder holds this very run, without an end."""
    words = ["clustering=random", "clustering.num_clusters=5"]
    assert cedm("cluster", *words, "run_dir=by_hand").code == 0
    (workplace / "stopped").mkdir()
    shutil.copy("by_hand/settings.json", "stopped")
    result = cedm("cluster", *words, "run_dir=stopped")
    assert (result.code, "Nothing to do" in result.out) == (0, True), result.err
    assert summary("stopped")["pseudo_labels"] == summary("by_hand")["pseudo_labels"]

    assert cedm("cluster", "clustering=random", "clustering.num_clusters=6", "run_dir=other").code == 0
    Path("other/summary.json").unlink()
    result = cedm("cluster", *words, "run_dir=other")
    assert (result.code, "run_dir=other holds another run" in result.err) == (2, True)
