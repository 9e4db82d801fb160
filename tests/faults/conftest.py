"""The shared harness: commands in processes of their own, faults at seeded random moments, and the table of rows."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GONE_WITHIN_S = 60

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trials", type=int, default=None, help="at most this many trials per row; default: all")


class Trials:
    """Counts the trials of one row of the table; each gets a random generator of its own."""

    def __init__(self, most: int | None) -> None:
        self.most, self.row, self.wanted, self.passed = most, "", 0, 0
        self.start = time.monotonic()

    def __call__(self, row: str, count: int) -> Iterator[random.Random]:
        self.row, self.wanted = row, min(count, self.most or count)
        for trial in range(self.wanted):
            yield random.Random(f"{row} {trial}")
            self.passed += 1  # not reached where the trial raises


@pytest.fixture
def trials(request: pytest.FixtureRequest, record_property: Any) -> Iterator[Trials]:
    """`for rng in trials("what the row is about", 20): …`"""
    counted = Trials(request.config.getoption("--trials"))
    yield counted
    record_property("row", [counted.row, counted.wanted, counted.passed, time.monotonic() - counted.start])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for group in terminalreporter.stats.values() for report in group]
    properties = [found for report in reports for found in getattr(report, "user_properties", [])]
    rows = [value for name, value in properties if name == "row"]
    unique = {row[0]: row for row in rows}
    if not unique:
        return
    terminalreporter.write_line(f"\n{'fault':<92} {'trials':>6} {'passed':>6} {'seconds':>7}")
    for row, wanted, passed, seconds in unique.values():
        terminalreporter.write_line(f"{row:<92} {wanted:>6} {passed:>6} {seconds:>7.0f}")


@dataclass
class Job:
    """A command at work: one process per rank, in a process group of its own."""

    folder: Path
    pids: list[int]
    forks: "Forks | None" = None  # who waits for them; None for a real command
    process: subprocess.Popen | None = None
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Whether all processes have ended."""
        if self.forks is not None:
            self.codes |= self.forks.poll([pid for pid in self.pids if pid not in self.codes])
            return len(self.codes) == len(self.pids)
        assert self.process is not None
        if self.process.poll() is not None:
            self.codes[self.pids[0]] = self.process.returncode
        return self.process.returncode is not None and not group_lives(self.pids[0])

    def signal(self, number: int, whom: str = "group") -> None:
        """Send a signal to the whole `group`, or to `rank 0` or `rank 1` alone."""
        try:
            if whom == "group":
                os.killpg(self.pids[0], number)
            else:
                os.kill(self.pid_of(int(whom.split()[1])), number)
        except ProcessLookupError:
            pass

    def pid_of(self, rank: int) -> int:
        """The process of a rank; Lightning starts the others as children of rank 0."""
        if self.process is None or rank == 0:
            return self.pids[rank]
        children = Path(f"/proc/{self.pids[0]}/task/{self.pids[0]}/children").read_text().split()
        return int(children[rank - 1])

    def wait(self, timeout_s: float = 120) -> int:
        """Wait until all processes have ended; rank 0's exit code."""
        deadline = time.monotonic() + timeout_s
        while not self.poll():
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"still running after {timeout_s:.0f} s:\n{self.words()}")
            time.sleep(0.02)
        return self.codes[self.pids[0]]

    def succeed(self) -> None:
        assert self.wait() == 0, self.words()

    def words(self) -> str:
        """All that the processes have printed."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("[oe][ur]?*.txt")))


def group_lives(group: int) -> bool:
    """Whether a process of the group is alive (and no zombie)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(found) == group and state != "Z":
            return True
    return False


class Forks:
    """The process that forks commands; see forks.py."""

    def __init__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CEDM_RUN")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, str(HERE / "forks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"

    def _order(self, **order: Any) -> Any:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def poll(self, pids: list[int]) -> dict[int, int]:
        return {int(pid): code for pid, code in self._order(poll=pids).items()}

    def start(
        self,
        command: str,
        *settings: str,
        folder: Path,
        ranks: int = 1,
        sabotage: str | None = None,
        sabotaged_ranks: Sequence[int] = (0, 1),
        environment: dict[str, str] | None = None,
        file_size: int = 0,
    ) -> Job:
        """Begin `cedm COMMAND settings…` in `folder`, after `sabotage.NAME()` on the sabotaged ranks."""
        folder.mkdir(parents=True, exist_ok=True)
        if ranks > 1:
            settings = (*settings, "trainer.accelerator=cpu", f"trainer.devices={ranks}")
        pids = self._order(
            command=command,
            settings=settings,
            folder=str(folder),
            ranks=ranks,
            port=free_port(),
            sabotage=sabotage,
            sabotaged_ranks=list(sabotaged_ranks),
            environment=environment or {},
            file_size=file_size,
        )
        return Job(folder, pids, forks=self)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def real_command(command: str, *settings: str, folder: Path, ranks: int = 1) -> Job:
    """Begin a command as a user types it: Lightning starts the other ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    if ranks > 1:
        settings = (*settings, "trainer.accelerator=cpu", f"trainer.devices={ranks}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CEDM_RUN")}
    with (folder / "out0.txt").open("a") as out, (folder / "err0.txt").open("a") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", f"pipeline.{command}", *settings],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    return Job(folder, [process.pid], process=process)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    assert server.server.stdin is not None
    server.server.stdin.close()
    server.server.wait(10)


@dataclass(frozen=True)
class Finished:
    """An uninterrupted run, to compare with."""

    folder: Path
    seconds: float
    results: dict[str, str]


@pytest.fixture(scope="session")
def finished(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`finished("train", ranks)`: the uninterrupted run of a phase, made once."""
    made: dict[tuple[str, int], Finished] = {}

    def run(phase: str, ranks: int) -> Finished:
        if (phase, ranks) not in made:
            folder = tmp_path_factory.mktemp(f"{phase}{ranks}")
            prepare(forks, phase, folder)
            start = time.monotonic()
            forks.start(phase, *PHASES[phase], "run_dir=run", folder=folder, ranks=ranks).succeed()
            made[phase, ranks] = Finished(folder, time.monotonic() - start, results_of(folder / "run"))
        return made[phase, ranks]

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
    """Of all keys, values and tensors' bytes; the pickle around them may share its strings in other ways."""
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

    walk(torch.load(snapshot, weights_only=True))
    return sha.hexdigest()
