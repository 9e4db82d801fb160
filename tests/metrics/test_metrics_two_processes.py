"""Every metric, fed by two processes, of which one may have nothing, equals the metric fed by one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metrics.frechet import FeatureStatistics, rows_of_all

SPLITS = {"even": ([0, 2], [1, 3]), "one_has_none": ([0, 1, 2, 3], [])}  # batches of each process


def measure(batches: list[int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 25, 6, generator=generator) + 1.0
    statistics = FeatureStatistics(6)
    for batch in batches:
        statistics.update(features[batch])
    found = statistics.compute()
    # The order of rows is that of the ranks.
    return {
        "mean": found.mean,
        "cov": found.cov,
        "n": found.n,
        "rows": rows_of_all(features[batches].unbind(), 6).sort(dim=0).values,
    }


def test_two_processes_equal_one(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), tmp_path]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    one = measure([0, 1, 2, 3])
    for rank in range(2):
        for split, two in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10, msg=lambda text, s=split: f"{s}: {text}")


def run(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({split: measure(batches[rank]) for split, batches in SPLITS.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    run(int(sys.argv[1]), *sys.argv[2:])
