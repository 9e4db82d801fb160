"""What tells one clustering from another: in the cache, and above its pictures."""

import hydra
import pytest
from omegaconf import DictConfig
from pipeline.settings.command import CONFIGS
from pipeline.settings.inputs import pseudo_labels_file, source_of

from datamodules.images.sources import ImageSource
from pipeline.commands.cluster import title_of


def composed(*overrides: str) -> tuple[DictConfig, ImageSource]:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        cfg = hydra.compose("cluster", overrides=["dataset.max_images=10", *overrides])
    return cfg, source_of(cfg)


@pytest.mark.parametrize(("setting", "differ"), [("clustering.precision", True), ("trainer.precision", False)])
def test_temi_in_bfloat16_is_another_clustering(setting: str, differ: bool) -> None:
    """The precision of the diffusion model's training is not TEMI's."""
    paths = {pseudo_labels_file(*composed(f"{setting}={precision}")) for precision in ("32-true", "bf16-mixed")}
    assert (len(paths) == 2) == differ


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        (["clustering.beta=0.7"], "digits, TEMI with β = 0.7, C = 40"),
        (["clustering.objective=pmi"], "digits, PMI, C = 40"),
        (["clustering=kmeans", "clustering.num_clusters=7"], "digits, k-means, C = 7"),
        (["clustering=labels"], "digits, given labels"),
    ],
)
def test_titles_name_beta_only_where_there_is_one(overrides: list[str], title: str) -> None:
    assert title_of(*composed(*overrides)) == title
