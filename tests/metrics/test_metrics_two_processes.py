"""Every metric, fed by two processes, of which one may have nothing, equals the metric fed by one."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from metrics import frechet
from metrics.clustering import ClusteringScores
from metrics.collected_features import CollectedFeatures
from metrics.frechet import FeatureStatistics, FrechetDistance, Statistics
from metrics.memorisation import memorisation, training_neighbours
from metrics.prdc import prdc
from metrics.utilization import ClusterUtilization

SPLITS = {"even": ([0, 2], [1, 3]), "one_has_none": ([0, 1, 2, 3], [])}  # batches of each process


def measure(batches: list[int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 25, 6, generator=generator) + 1.0
    reference = torch.randn(90, 6, generator=generator)
    cluster_ids, labels = torch.randint(8, (2, 4, 25), generator=generator)
    on_features = {
        "statistics": FeatureStatistics(6),
        "frechet": FrechetDistance(Statistics(reference.mean(0), reference.T.cov())),
        "rows": CollectedFeatures(6),
    }
    far_away = FeatureStatistics(6)
    utilization, scores = ClusterUtilization(8), ClusteringScores(8, 8)
    for batch in batches:
        for metric in on_features.values():
            metric.update(features[batch])
        far_away.update(1e4 + 0.05 * features[batch])
        utilization.update(cluster_ids[batch])
        scores.update(cluster_ids[batch], labels[batch])
    result = {name: metric.compute() for name, metric in on_features.items()}
    statistics, from_afar, far = result.pop("statistics"), far_away.compute(), 100 + 0.01 * result["rows"]
    nearest = memorisation(far, 100 + 0.01 * reference, training_neighbours(100 + 0.01 * reference))
    return {
        **{"prdc": prdc(far, 100 + 0.01 * reference), "distances": nearest.distances.sort().values},
        **{"mean": statistics.mean, "cov": statistics.cov, "n": statistics.n},
        **{"mean from afar": from_afar.mean, "cov from afar": from_afar.cov},
        **{"frechet": result["frechet"], "rows": result["rows"].sort(dim=0).values},  # their order is that of the ranks
        **{"utilization": utilization.compute(), "scores": scores.compute()},
    }


def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.start_processes(run, args=(tmp_path,), nprocs=2, start_method="fork")
    one = measure([0, 1, 2, 3])
    for rank in range(2):
        for split, two in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10, msg=lambda text, s=split: f"{s}: {text}")


def only_on_rank_0(*_: Any) -> float:
    raise AssertionError("the distance takes seconds of all cores: it is worked out on rank 0 alone")


def run(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    if rank == 1:
        frechet.frechet_distance = only_on_rank_0
    torch.save({split: measure(batches[rank]) for split, batches in SPLITS.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
