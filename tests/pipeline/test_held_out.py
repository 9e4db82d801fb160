"""Images held out: clusters by what clustered the others, losses along the training, distances beside the others."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.image_datamodule import ImageDataModule
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import ImageSource, open_source
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.clustering.assignment import ClusteringHead
from metrics.denoising_errors import DenoisingErrors
from metrics.frechet import FeatureStatistics, frechet_distance
from pipeline.running.condition import Condition
from pipeline.running.held_out import held_out_clusters, held_out_loss
from pipeline.settings.compose import CONFIGS, compose
from storage.errors import UserError

from .conftest import TINY_EDM, TINY_TEMI, Cedm, summary

HOLDOUT = ["dataset.holdout=0.1", "dataset.max_images=400"]
FEW = [*HOLDOUT, "clustering=kmeans", "clustering.num_clusters=5"]
SOURCE = open_source(DatasetSettings(holdout=0.1, max_images=400))


def clusters_of(*words: str) -> tuple[torch.Tensor, PseudoLabels]:
    condition = Condition.of(compose("train", [*HOLDOUT, *words]))
    labels = condition.pseudo_labels(SOURCE)
    assert labels is not None
    return held_out_clusters(condition, SOURCE, labels), labels


def test_clusters_of_images_held_out(cedm: Cedm, workplace: Path) -> None:
    held_out = SOURCE.held_out
    assert held_out is not None
    assert cedm("embed", *HOLDOUT).code == 0
    embeddings = Condition.of(compose("train", HOLDOUT)).embeddings(held_out)
    for words in (FEW[2:], ["clustering=labels"], ["clustering=random", "clustering.num_clusters=5"], TINY_TEMI):
        assert cedm("cluster", *HOLDOUT, *words, "overwrite=true", "run_dir=last").code == 0
    found, labels = clusters_of(*TINY_TEMI)
    head = ClusteringHead.from_pretrained("last/head.safetensors")
    assert found.tolist() == head.assign(embeddings.values)[0].tolist()
    assert labels.ids == SOURCE.ids

    found, labels = clusters_of(*FEW[2:])  # digits of one cluster are mostly of one kind, here as there
    classes, known = held_out.labels, SOURCE.labels
    assert classes is not None
    assert known is not None
    majority = torch.stack([known[labels.cluster_ids == cluster].mode().values for cluster in range(5)])
    assert (majority[found] == classes).float().mean() > 0.3
    assert torch.equal(clusters_of("clustering=labels")[0], classes)
    found, _ = clusters_of("clustering=random", "clustering.num_clusters=5")
    assert torch.bincount(found).aminmax()[1] - torch.bincount(found).min() <= 1

    # assignments of all images, by id, artifact or place; and of the training images alone
    assert cedm("assign", *HOLDOUT, "head=last", "map_images=0", "run_dir=all").code == 0
    everything = PseudoLabels.load("all/pseudo_labels.safetensors")
    assert len(everything) == 400
    torch.save(everything.cluster_ids, "ids_clusters5.pt")
    for file in ("all/pseudo_labels.csv", "all/pseudo_labels.safetensors", "ids_clusters5.pt"):
        found, labels = clusters_of(f"assignments={file}")
        assert found.tolist() == everything.select(held_out.ids).cluster_ids.tolist()
        assert labels.cluster_ids.tolist() == everything.select(SOURCE.ids).cluster_ids.tolist()
    with pytest.raises(UserError, match="no pseudo-label"):
        clusters_of("assignments=last/pseudo_labels.safetensors")


def test_a_run_with_images_held_out(cedm: Cedm, workplace: Path) -> None:
    for command in (["embed"], ["cluster", "map_images=0"], ["train", *TINY_EDM, "run_dir=run"]):
        result = cedm(*command, *FEW)
        assert result.code == 0, result.err
    trained = summary("run")
    found, held_out = trained["held_out"], SOURCE.held_out
    assert held_out is not None
    assert found["num_images"] == found["num_training_images"] == len(held_out)
    errors = DenoisingErrors.load("run/held_out.safetensors")
    assert errors.held_out_places.tolist() == held_out.places.tolist()
    assert set(errors.held_out_places.tolist()).isdisjoint(SOURCE.places.tolist())
    assert set(errors.training_places.tolist()) <= set(SOURCE.places.tolist())
    events = EventAccumulator(str(workplace / "run")).Reload()
    kimg, loss, on_training, gap, _ = found["kimg_and_losses"][-1]
    assert (kimg, gap) == (1.024, pytest.approx(loss - on_training))
    assert events.Scalars("held_out/loss")[-1].value == pytest.approx(loss, rel=1e-5)
    levels = [tag for tag in events.Tags()["scalars"] if tag.startswith("held_out_by_noise_level/")]
    assert len(levels) == len(found["sigma_and_losses"]) == len(errors.sigmas)
    assert cedm("report", "run=run").code == 0
    assert "Loss on images held out" in Path("run/report.html").read_text()

    words = ["evaluate", "generated=run", "num=60", "sampler.steps=3", "metrics=[fd,prdc]", "run_dir=measured"]
    result = cedm(*words, *HOLDOUT)
    assert result.code == 0, result.err
    scores = summary("measured")["scores"]
    assert [name for name in scores if name.startswith("fd")] == [
        "fd_pixels", "fd_pixels_held_out", "fd_pixels_training_sample"
    ]  # fmt: skip
    assert "precision_held_out" not in scores
    assert scores["fd_pixels_held_out"]["protocol"]["reference"]["fingerprint"] == held_out.fingerprint
    assert scores["fd_pixels_training_sample"]["protocol"]["reference"]["num_images"] == len(held_out)
    assert scores["fd_pixels"]["protocol"]["reference"]["fingerprint"] == SOURCE.fingerprint
    assert not any("trained on other images" in note for note in summary("measured")["notes"])
    other = cedm(*words[:-1], "dataset.holdout=0.2", "dataset.max_images=400", "run_dir=other")
    assert "trained on other images" in other.out, other.err
    changed = cedm(*words, "dataset.holdout=0.2", "dataset.max_images=400")
    assert (changed.code, "dataset.holdout: 0.1 → 0.2" in changed.err) == (2, True), changed.err


def test_distances_to_images_held_out_are_those_of_their_own_statistics(cedm: Cedm, workplace: Path) -> None:
    """Of real images as the generated ones: the training sample is at a distance of 0 to itself."""
    held_out = SOURCE.held_out
    assert held_out is not None
    sample = SOURCE.part(torch.arange(len(held_out)) * len(SOURCE) // len(held_out))
    np.save("sample.npy", np.stack([np.asarray(sample.image(row)) for row in range(len(sample))]))
    words = ["generated=sample.npy", "metrics=[fd]", "memorisation=false", "run_dir=run"]
    assert cedm("evaluate", *words, *HOLDOUT).code == 0
    found = summary("run")
    assert found["fd_pixels_training_sample"] == pytest.approx(0, abs=1e-6)

    def statistics(source: ImageSource) -> FeatureStatistics:
        pixels = np.stack([np.asarray(source.image(row)) for row in range(len(source))])
        features = FeatureStatistics(64)
        features.update(torch.from_numpy(pixels.reshape(len(pixels), 64) / 127.5 - 1).float())
        return features

    expected = frechet_distance(statistics(sample).compute(), statistics(held_out).compute())
    assert found["fd_pixels_held_out"] == pytest.approx(expected, rel=1e-5)


def test_no_loss_where_the_clusters_of_images_held_out_are_not_known(workplace: Path) -> None:
    rows = [["id", "cluster"], *((name, row % 3) for row, name in enumerate(SOURCE.ids))]
    for held_out, told in (([], "not known"), ([(name, 3) for name in SOURCE.held_out.ids], "takes two")):
        with Path("some.csv").open("w", newline="") as file:
            csv.writer(file).writerows([*rows, *held_out])
        condition = Condition.of(compose("train", [*HOLDOUT, "assignments=some.csv"]))
        data = ImageDataModule(SOURCE, condition.pseudo_labels(SOURCE), 8, 1, batch_size=64)
        said: list[str] = []
        assert held_out_loss(condition, data, 1, 64, workplace / "errors.safetensors", said.append) is None
        assert told in said[-1]


def test_every_data_set_can_hold_images_out() -> None:
    for file in (CONFIGS / "dataset").glob("*.yaml"):
        path = ["dataset.path=images"] if file.stem not in ("digits", "emoji", "embeddings") else []
        path += ["embeddings=FILE"] * (file.stem == "embeddings")
        assert compose("embed", [f"dataset={file.stem}", *path, "dataset.holdout=0.25"]).dataset.holdout == 0.25
