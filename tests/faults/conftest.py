"""The shared harness: commands in processes of their own, faults at seeded random moments, and the table of rows."""

import hashlib
import json
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from .jobs import Forks

Case = TypeVar("Case")
GONE_WITHIN_S = 60
LAUNCHER_PATIENCE_S = 5

# A training of seconds: 16 steps with dropout and augmentation, 5 snapshots, 3 evaluations.
EDM = [
    "conditioning=none",
    "dataset.max_images=300",
    "network.model_channels=8",
    "network.dropout=0.1",
    "training.augment_probability=0.12",
    "training.batch_size=32",
    "training.duration_kimg=0.512",
    "training.lr_rampup_kimg=0.1",
    "evaluation.snapshot_every_kimg=0.1",
    "evaluation.every_kimg=0.2",
    "evaluation.grid_every_kimg=0.512",
    "evaluation.num_images=40",
    "evaluation.batch_size=8",
    "sampler.steps=3",
]
TEMI = [
    "dataset.max_images=300",
    "clustering.num_clusters=8",
    "clustering.num_heads=2",
    "clustering.num_neighbours=10",
    "clustering.batch_size=64",
    "clustering.max_epochs=16",
    "clustering.warmup_epochs=2",
]
PHASES = {"train": EDM, "cluster": TEMI}


class Trials:
    """Counts the trials of one row of the table; each gets a random generator of its own.

    Where `--trials` wants fewer than `least`, `least` are made: of rows whose trials are cheap or differ much.
    """

    def __init__(self, most: int | None) -> None:
        self.most, self.row, self.wanted, self.passed = most, "", 0, 0
        self.start = time.monotonic()

    def __call__(self, row: str, count: int, least: int = 1) -> Iterator[random.Random]:
        self.row, self.wanted = row, min(count, max(self.most or count, least))
        for trial in range(self.wanted):
            yield random.Random(f"{row} {trial}")
            self.passed += 1  # not reached where the trial raises

    def each(self, row: str, cases: Sequence[Case], least: int = 1) -> Iterator[tuple[random.Random, Case]]:
        """One trial per case. CI tries the first ones only, so those come first that differ most from other rows'."""
        yield from zip(self(row, len(cases), least), cases, strict=False)


@pytest.fixture
def trials(request: pytest.FixtureRequest, record_property: Any) -> Iterator[Trials]:
    """`for rng in trials("what the row is about", 20): …`"""
    counted = Trials(request.config.getoption("--trials"))
    yield counted
    record_property("row", [counted.row, counted.wanted, counted.passed, time.monotonic() - counted.start])


@dataclass(frozen=True)
class Finished:
    """An uninterrupted run, to compare with."""

    folder: Path
    seconds: float
    results: dict[str, str]


@pytest.fixture(scope="session")
def finished(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`finished("train", ranks, …)`: the uninterrupted run of a phase with these settings, made once."""
    made: dict[tuple[str, int, tuple[str, ...]], Finished] = {}

    def run(phase: str, ranks: int, *settings: str) -> Finished:
        key = (phase, ranks, settings)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{phase}{ranks}")
            prepare(forks, phase, folder)
            start = time.monotonic()
            forks.start(phase, *PHASES[phase], *settings, "run_dir=run", folder=folder, ranks=ranks).succeed()
            made[key] = Finished(folder, time.monotonic() - start, results_of(folder / "run"))
        return made[key]

    return run


def prepare(forks: Forks, phase: str, folder: Path) -> None:
    """What the phase needs before it."""
    if phase == "cluster":
        forks.start("embed", *TEMI, folder=folder).succeed()


def kill_and_resume(forks: Forks, expected: Finished, phase: str, ranks: int, folder: Path, rng: random.Random) -> None:
    """kill -9 to all processes or one of them at a random moment, then the same command again."""
    prepare(forks, phase, folder)
    command = [phase, *PHASES[phase], "run_dir=run"]
    job = forks.start(*command, folder=folder, ranks=ranks)
    time.sleep(rng.uniform(0, expected.seconds))
    job.signal(signal.SIGKILL, rng.choice(["group", *(f"rank {rank}" for rank in range(ranks))]))
    with suppress(AssertionError):  # a launcher ends the ranks that wait for a dead one to come
        job.wait(LAUNCHER_PATIENCE_S)
    job.wait(GONE_WITHIN_S)
    forks.start(*command, folder=folder, ranks=ranks).succeed()
    assert results_of(folder / "run") == expected.results
    assert not list(folder.rglob("*.tmp"))


def results_of(run: Path) -> dict[str, str]:
    """Digests of what a run ends in: the last snapshot (weights, EMA, optimizer, counters, history) and the result."""
    last = max((run / "snapshots").glob("step-*.ckpt"))
    results = {last.name: content_digest(last)}
    for name in ("denoiser.safetensors", "pseudo_labels.safetensors", "head.safetensors"):
        if (run / name).exists():
            results[name] = digest(run / name)
    summary = json.loads((run / "summary.json").read_text())
    kept = {key: value for key, value in summary.items() if key not in ("arguments", "versions")}
    return results | {"summary.json": json.dumps(kept, sort_keys=True)}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content_digest(snapshot: Path) -> str:
    """Of all keys, values and tensors' bytes but the settings; the pickle may share its strings in other ways."""
    sha = hashlib.sha256()

    def walk(node: Any) -> None:
        sha.update(type(node).__name__.encode())
        if isinstance(node, torch.Tensor):
            sha.update(f"{node.dtype} {list(node.shape)}".encode())
            sha.update(node.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(node, dict):
            for key, value in node.items():
                sha.update(repr(key).encode())
                walk(value)
        elif isinstance(node, list | tuple):
            for value in node:
                walk(value)
        else:
            sha.update(repr(node).encode())

    content = torch.load(snapshot, weights_only=True)
    del content["hyper_parameters"]  # a run may go on with another number of workers
    walk(content)
    return sha.hexdigest()
