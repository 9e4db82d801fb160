"""`make bench`: how fast the parts are, against the usual way of writing them. Ratios are taken in one run.

`make bench ONLY=temi` runs one part. `standardise` is about quality, not speed, takes minutes, and runs only
when asked for.
"""

# isort: skip_file
# ruff: noqa: E402  # the process is prepared before PyTorch is imported
import platform
import sys

from pipeline.settings.machine import prepare_process

prepare_process()  # before PyTorch: how OpenMP threads wait, and what becomes of freed memory
import torch

from bench_edm import bench_edm
from bench_embed import bench_embed
from bench_neighbours import bench_neighbours
from bench_shared import bench_shared
from bench_small import bench_small
from bench_standardise import bench_standardise
from bench_temi import bench_temi

PARTS = {
    "embed": bench_embed,
    "neighbours": bench_neighbours,
    "temi": bench_temi,
    "edm": bench_edm,
    "small": bench_small,
    "shared": bench_shared,
}
ON_REQUEST = {"standardise": bench_standardise}


def main() -> None:
    torch.set_flush_denormal(True)
    chosen = sys.argv[1:] or list(PARTS)
    parts = PARTS | ON_REQUEST
    if unknown := set(chosen) - set(parts):
        sys.exit(f"error: no such part: {', '.join(sorted(unknown))}. There are: {', '.join(parts)}.")
    print(f"PyTorch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    print(f"{'':<58} {'usual':>9} {'ours':>9}")
    for part in chosen:
        parts[part]()


if __name__ == "__main__":
    main()
