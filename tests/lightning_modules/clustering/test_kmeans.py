"""k-means on directions, and random groups."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestCentroid

from lightning_modules.clustering import kmeans as kmeans_file
from lightning_modules.clustering.kmeans import kmeans, nearest_cluster, random_groups, simplified_silhouette


@pytest.mark.parametrize("minibatch", [False, True])
def test_kmeans_groups_by_direction_not_length(minibatch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if minibatch:
        monkeypatch.setattr(kmeans_file, "MINIBATCH_ABOVE", 100)
    torch.manual_seed(0)
    direction = torch.arange(400) % 4
    lengths = torch.empty(400, 1).uniform_(0.1, 50)
    embeddings = lengths * (torch.eye(4)[direction] + 0.02 * torch.randn(400, 4))
    cluster_ids, confidence = kmeans(embeddings, num_clusters=4, seed=0)
    assert cluster_ids.dtype == torch.int64
    for group in range(4):
        assert len(cluster_ids[direction == group].unique()) == 1
    assert len(cluster_ids.unique()) == 4
    assert torch.equal(cluster_ids, kmeans(embeddings, num_clusters=4, seed=0)[0])
    assert confidence.min() > 0.8


def test_random_groups_are_even_seeded_and_unordered() -> None:
    groups = random_groups(num_images=1003, num_clusters=10, seed=3)
    counts = groups.bincount(minlength=10)
    assert counts.sum() == 1003
    assert counts.max() - counts.min() <= 1
    assert torch.equal(groups, random_groups(1003, 10, seed=3))
    assert not torch.equal(groups, random_groups(1003, 10, seed=4))
    assert not torch.equal(groups, torch.arange(1003) % 10)


def test_confidence_falls_from_the_centre_to_the_border() -> None:
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    torch.testing.assert_close(simplified_silhouette(points, centres), torch.tensor([1.0, 2 / 3, 0.0, 1.0]))
    assert torch.equal(simplified_silhouette(points, centres[:1]), torch.ones(4))


def test_silhouettes_far_from_the_origin() -> None:
    torch.manual_seed(0)
    points, centres = 100 + 0.05 * torch.randn(60, 8), 100 + 0.05 * torch.randn(40, 8)
    distances = (points.double()[:, None] - centres.double()).norm(dim=2).sort(dim=1).values
    expected = (1 - distances[:, 0] / distances[:, 1]).float()
    torch.testing.assert_close(simplified_silhouette(points, centres), expected, rtol=1e-4, atol=1e-5)


def test_new_images_go_to_the_cluster_with_the_nearest_mean() -> None:
    points = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) + 3  # more than one direction alone
    cluster_ids = kmeans(points, 6, seed=0)[0]
    cluster_ids[cluster_ids == 2] = 4  # an empty cluster
    oracle = NearestCentroid().fit(F.normalize(points.double()).numpy(), cluster_ids.numpy())
    new = 7 * torch.randn(50, 5, generator=torch.Generator().manual_seed(1)) + 21
    assert (
        nearest_cluster(new, points, cluster_ids).tolist() == oracle.predict(F.normalize(new.double()).numpy()).tolist()
    )
