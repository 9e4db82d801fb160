"""Utilization and clustering scores against scikit-learn, brute force and the published table."""

import csv
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from metrics.clustering import ClusteringScores
from metrics.utilization import ClusterUtilization


def scores_of(cluster_ids: Tensor, labels: Tensor, num_classes: int, num_clusters: int) -> dict[str, float | int]:
    metric = ClusteringScores(num_classes, num_clusters)
    for ids, classes in zip(cluster_ids.split(17), labels.split(17), strict=True):
        metric.update(ids, classes)
    return metric.compute()


def accuracy_by_trying_all_matches(cluster_ids: Tensor, labels: Tensor, num_classes: int, num_clusters: int) -> float:
    """Best one-to-one match by most agreeing images, then the majority class of the clusters left over."""
    table = np.zeros((num_classes, num_clusters))
    np.add.at(table, (labels.numpy(), cluster_ids.numpy()), 1)
    matches = permutations(range(max(num_clusters, num_classes)), num_classes)
    padded = np.pad(table, ((0, 0), (0, max(0, num_classes - num_clusters))))
    agreeing = []
    for clusters in matches:
        rest = [c for c in range(num_clusters) if c not in clusters]
        agreeing.append((sum(padded[k, c] for k, c in enumerate(clusters)), sum(table[:, c].max() for c in rest)))
    return 100 * sum(max(agreeing)) / len(labels)


@pytest.mark.parametrize("num_clusters", [2, 4, 7])
def test_scores_equal_scikit_learn_and_brute_force(num_clusters: int) -> None:
    generator = torch.Generator().manual_seed(num_clusters)
    labels = torch.randint(4, (300,), generator=generator)
    noise = torch.randint(num_clusters, (300,), generator=generator)
    cluster_ids = torch.where(torch.rand(300, generator=generator) < 0.5, labels % num_clusters, noise)
    scores = scores_of(cluster_ids, labels, 4, num_clusters)
    assert scores["accuracy"] == pytest.approx(accuracy_by_trying_all_matches(cluster_ids, labels, 4, num_clusters))
    assert scores["nmi"] == pytest.approx(100 * normalized_mutual_info_score(labels, cluster_ids))
    assert scores["ami"] == pytest.approx(100 * adjusted_mutual_info_score(labels, cluster_ids))
    assert scores["ari"] == pytest.approx(100 * adjusted_rand_score(labels, cluster_ids))


def test_accuracy_matches_one_to_one_before_majorities() -> None:
    """Two clusters of class 0: the larger is matched to it, the other must take class 1 although it has none of it."""
    cluster_ids = torch.tensor([0] * 6 + [1] * 4)
    labels = torch.zeros(10, dtype=torch.int64)
    assert scores_of(cluster_ids, labels, num_classes=2, num_clusters=2)["accuracy"] == pytest.approx(60)
    assert scores_of(cluster_ids, labels, num_classes=2, num_clusters=3)["accuracy"] == pytest.approx(100)


PUBLISHED = {"accuracy": "ACC", "nmi": "NMI", "ami": "anmi", "ari": "ARI", "num_used": "uniq", "kl_from_uniform": "KL"}


def test_published_table_is_reproduced(real_data: Path) -> None:
    assignments = load_file(real_data / "cifar10-published-assignments.safetensors")
    labels = assignments.pop("labels.cifar10")
    with (real_data / "cifar10-published-results.csv").open() as file:
        published = {row[""]: row for row in csv.DictReader(file)}  # keys like clusters_10/beta-0.6/
    for name, cluster_ids in assignments.items():
        setting, _, num_clusters = name.rpartition(".clusters")
        beta = setting.partition(".beta")[2]
        scores = scores_of(cluster_ids, labels, 10, int(num_clusters))
        expected = {
            ours: float(published[f"clusters_{num_clusters}/beta-{beta}/"][its]) for ours, its in PUBLISHED.items()
        }
        assert scores == pytest.approx(expected, abs=1e-3), name
    assert len(assignments) == 16


def test_utilization_of_known_counts() -> None:
    metric = ClusterUtilization(num_clusters=5)
    metric.update(torch.tensor([0, 0, 3]))
    metric.update(torch.tensor([0, 4]))
    result = metric.compute()
    assert result["counts"].tolist() == [3, 0, 0, 1, 1]
    assert (result["num_used"], result["utilization_ratio"]) == (3, 0.6)
    assert result["entropy"] == pytest.approx(-(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2)))
    assert result["kl_from_uniform"] == pytest.approx(sum(math.log(1 / 3 / f) / 3 for f in (0.6, 0.2, 0.2)))


def test_a_cluster_can_be_probable_without_being_assigned() -> None:
    """Cluster 1 is everyone's second choice: never assigned, yet more probable than the average."""
    probabilities = torch.tensor([[0.5, 0.45, 0.05, 0.0], [0.05, 0.45, 0.5, 0.0]])
    assigned, probable = ClusterUtilization(4), ClusterUtilization(4, used_when="probable")
    for metric in (assigned, probable):
        metric.update(probabilities.argmax(1), probabilities)
    assert assigned.compute()["num_used"] == 2
    assert probable.compute()["num_used"] == 3
    with pytest.raises(ValueError, match="needs the probabilities"):
        probable.update(torch.tensor([0]))


@pytest.mark.parametrize(
    ("ids", "message"), [([0, 5], r"0…4, but run from 0 to 5"), ([-1], "from -1 to -1"), ([0.5], "must be integers")]
)
def test_ids_out_of_range_are_refused(ids: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterUtilization(5).update(torch.tensor(ids))
    with pytest.raises(ValueError, match=message):
        ClusteringScores(2, 5).update(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_scores_of_nothing_are_refused() -> None:
    for metric in (ClusterUtilization(5), ClusteringScores(2, 5)):
        with pytest.raises(ValueError, match="yet: call update"):
            metric.compute()
