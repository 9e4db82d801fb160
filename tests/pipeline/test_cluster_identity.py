"""What tells one clustering from another: in the cache, and above its pictures."""

from pathlib import Path

import pytest

from datamodules.images.sources import open_source
from pipeline.running.clustering import Clustering
from pipeline.running.condition import Condition
from pipeline.settings.compose import compose


def composed(*words: str) -> Clustering:
    settings = compose("cluster", ["dataset.max_images=10", *words])
    source = open_source(settings.dataset, settings.cache_dir)
    return Clustering(Condition.of(settings), source, Path("run"), map_images=0, page_images=0)


@pytest.mark.parametrize(("setting", "differ"), [("clustering.precision", True), ("trainer.precision", False)])
def test_the_precision_of_temi_and_not_that_of_the_diffusion_model_makes_other_clusters(setting: str, differ: bool):
    clusterings = [composed(f"{setting}={precision}") for precision in ("32-true", "bf16-mixed")]
    paths = {clustering.condition.pseudo_labels_path(clustering.source) for clustering in clusterings}
    assert (len(paths) == 2) == differ


@pytest.mark.parametrize(
    ("words", "title"),
    [
        (["clustering.beta=0.7"], "digits, TEMI with β = 0.7, C = 40"),
        (["clustering.objective=pmi"], "digits, PMI, C = 40"),
        (["clustering=kmeans", "clustering.num_clusters=7"], "digits, k-means, C = 7"),
        (["clustering=labels"], "digits, given labels"),
    ],
)
def test_titles_name_beta_only_where_there_is_one(words: list[str], title: str):
    assert composed(*words).title == title
