"""`make check-gpu`: is all of the project right on this GPU, and how fast is it? One GPU, at most eight minutes.

Each part runs in a process of its own with a time limit; what it finds is written at once. A part that fails, hangs or
runs out of memory does not stop the others. `--dry` takes all parts through tiny sizes on a CPU.
"""

# isort: skip_file
# ruff: noqa: E402  # the process is prepared before PyTorch is imported
import time

BEGUN = time.monotonic()

import argparse
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # whether there is a GPU is asked without starting CUDA
os.environ["HF_HUB_OFFLINE"] = "1"
from pipeline.settings.machine import import_our_own, prepare_process

import_our_own(ROOT)
prepare_process()

import torch
import torch.utils.tensorboard  # imported once, before anything forks

import clustering_speed
import commands
import edm_speed
import facts
import numbers_on_device
import processes
import sampling_speed
import pipeline.running.clustering
import pipeline.running.training  # noqa: F401
from pipeline.settings.door import load_command
from runner import Check, Part, run_parts
from storage.cores import available_cores
from tables import file_stem, is_wrong, page, problems, read_rows

SECONDS = 470.0  # of eight minutes; the rest is for the page
TOGETHER = 4  # parts that time nothing, side by side
PARTS = (
    Part(facts.card, 60),
    Part(facts.peaks, 50),
    Part(edm_speed.compiles, 170, alone=False),
    Part(numbers_on_device.golden, 75, alone=False),
    Part(commands.digits, 170, alone=False),
    Part(numbers_on_device.parity, 75, alone=False),
    Part(processes.waits, 60, alone=False),
    Part(commands.resume, 150, alone=False),
    Part(processes.ddp, 75, alone=False),
    Part(numbers_on_device.same, 45, alone=False),
    Part(edm_speed.eager_steps, 80),
    Part(edm_speed.compiled_steps, 110),
    Part(sampling_speed.sampling, 75),
    Part(edm_speed.prelude, 40),
    Part(clustering_speed.temi, 45),
    Part(clustering_speed.neighbours, 60),
    Part(clustering_speed.embed, 60),
    Part(sampling_speed.pauses, 40),
    Part(commands.loop, 150),
    Part(edm_speed.graphs, 120),
    Part(edm_speed.networks, 60),
)


def main() -> int:
    arguments = parse()
    chosen = [part for part in PARTS if part.name in {"card", *(arguments.parts or [part.name for part in PARTS])}]
    if arguments.dry:  # no time means anything
        chosen = [replace(part, alone=False) for part in chosen]
    out = arguments.out or ROOT / "runs" / "check-gpu"
    out.mkdir(parents=True, exist_ok=True)
    for old in ("results.jsonl", "log.txt"):
        (out / old).unlink(missing_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="cedm-check-gpu-"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch / "inductor"))
    for command in ("embed", "cluster", "train", "generate", "evaluate"):
        load_command(command)
    assert not torch.cuda.is_initialized()
    check = Check("", "cpu" if arguments.dry else "cuda", arguments.dry, out / "results.jsonl", scratch)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run_parts(chosen[:1], check, BEGUN + arguments.seconds, TOGETHER)
        if not any(row["table"] == "card" for row in read_rows(check.results)):
            print("error: PyTorch finds no GPU that works here. Set DRY=1 to try the check on a CPU.", file=sys.stderr)
            return 2
        run_parts(chosen[1:], check, BEGUN + arguments.seconds, min(TOGETHER, len(available_cores())))
    finally:
        write_page(check, arguments)
        shutil.rmtree(scratch, ignore_errors=True)
    return int(is_wrong(read_rows(check.results)))


def parse() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser("make check-gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"these parts only: {', '.join(names)}")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU, to try the check itself")
    parser.add_argument("--out", type=Path, help="folder of results, log and page; default: runs/check-gpu, docs/gpu")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no part runs longer than that in all")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(names):
        parser.error(f"no such part: {', '.join(sorted(unknown))}. There are: {', '.join(names)}.")
    return arguments


def write_page(check: Check, arguments: argparse.Namespace) -> None:
    """Write the page of what was found, also of an interrupted check, and say what went wrong."""
    rows = read_rows(check.results)
    cards = [row["what"] for row in rows if row["table"] == "card"]
    if not cards:
        return
    folder = check.results.parent if arguments.dry or arguments.out else ROOT / "docs" / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_stem(cards[0])}.md"
    introductions = {part.name: " ".join((part.work.__doc__ or "").split()) for part in PARTS}
    command = " ".join(["make check-gpu", *(["DRY=1"] if arguments.dry else []), *arguments.parts])
    path.write_text(page(rows, introductions, command))
    print("\n".join(["", *problems(rows), f"{len(rows)} rows in {time.monotonic() - BEGUN:.0f} s: {path}"]))


if __name__ == "__main__":
    sys.exit(main())
