"""The folders of the cache."""

from pathlib import Path

from storage.files import remove_abandoned

FOLDERS = ("surveys", "embeddings", "neighbours", "maps", "pseudo-labels", "statistics", "features")


def remove_abandoned_entries(cache_dir: str | Path) -> None:
    """Removes what killed writers left in the cache's own folders; `cache_dir` may hold anything else of a user's."""
    for name in FOLDERS:
        remove_abandoned(Path(cache_dir) / name)
