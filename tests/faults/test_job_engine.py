"""kill -9 and signals to commands that run jobs: none works on, and the same command again goes on at once."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import EDM, TEMI, Trials
from .jobs import Forks, Job

pytestmark = pytest.mark.faults
JOBS_GONE_WITHIN_S = 10
STOPPED_WITHIN_S = 30
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]
SHORT = [*TEMI, "map_images=0"]
LONG = "clustering.max_epochs=1000"  # about a minute, a snapshot every 50 epochs
SNAPSHOT = "**/snapshots/step-*.ckpt"
MODEL = [word for word in EDM if not word.startswith(("conditioning", "dataset", "training.duration_kimg"))]
COMMANDS = {
    "bound": ["bound", *SHORT, "bound.grid=[3,6]"],
    "study": ["study", "study=granularity", *SHORT, *MODEL, "study.clusters=[3,6]", "study.duration_kimg=20"],
    "auto": ["study", "study=auto", *SHORT, "bound.grid=[3,6]"],
}
for words in COMMANDS.values():  # the numbers of clusters are theirs to choose
    words.remove("clustering.num_clusters=8")


def job_processes(folder: Path) -> list[int]:
    """Processes that work in a folder, but for Ray's own; a job changes to where its command was typed."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not zombie and (entry / "cwd").readlink() == folder.resolve():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def begin(forks: Forks, name: str, folder: Path, *settings: str) -> Job:
    """Begin a command, and wait until a job of it has written a snapshot."""
    if not (folder / "cache").exists():
        forks.start("embed", *SHORT, folder=folder).succeed()
    job = forks.start(*COMMANDS[name], LONG, *settings, "run_dir=out", folder=folder)
    while not list(folder.glob(SNAPSHOT)) or len(job_processes(folder)) < 2:
        assert not job.poll(), job.words()
        time.sleep(0.05)
    return job


def await_end(folder: Path, seconds: float) -> None:
    """Fail unless all processes that work in a folder end within some seconds."""
    deadline = time.monotonic() + seconds
    while left := job_processes(folder):
        assert time.monotonic() < deadline, subprocess.run(["ps", "-p", ",".join(map(str, left))], check=False)
        time.sleep(0.1)


def test_no_job_outlives_a_killed_command(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    """The snapshots stay, and the same command goes on from them."""
    cases = [("bound", TWO[:1]), ("study", TWO), ("bound", TWO), ("auto", TWO)]
    row = "kill -9 to study, bound or auto with jobs at work: gone in 10 s, goes on at once"
    for rng, (name, devices) in trials.each(row, cases):
        folder = tmp_path / f"{rng.random()}"
        begin(forks, name, folder, *devices).signal(signal.SIGKILL, "rank 0")
        await_end(folder, JOBS_GONE_WITHIN_S)
        again = begin(forks, name, folder, *devices)
        deadline = time.monotonic() + 60
        while not any("Resuming from" in log.read_text() for log in folder.glob("**/log.txt")):
            assert time.monotonic() < deadline, again.words()
            time.sleep(0.2)
        again.signal(signal.SIGKILL, "rank 0")
        await_end(folder, JOBS_GONE_WITHIN_S)


def test_a_signal_stops_the_jobs(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    term, interrupt = (signal.SIGTERM, 143), (signal.SIGINT, 130)
    cases = [("study", term, TWO), ("bound", interrupt, TWO[:1]), ("bound", interrupt, TWO), ("bound", term, TWO[:1])]
    row = "SIGTERM (code 143) or SIGINT (130) to study or bound: its jobs write snapshots"
    for rng, (name, (number, code), devices) in trials.each(row, cases):
        folder = tmp_path / f"{rng.random()}"
        job = begin(forks, name, folder, *devices)
        job.signal(number, "rank 0")
        assert job.wait(STOPPED_WITHIN_S) == code, job.words()
        await_end(folder, 1)
        logs = [path.read_text() for path in folder.glob("**/log.txt")]
        assert any("Stopped. Run the same command" in log for log in logs), logs


def test_a_job_of_several_devices_ends_with_its_command(forks: Forks, trials: Trials, tmp_path: Path) -> None:
    for rng in trials("kill -9 to a study whose job has 2 processes: gone in 10 s", 1):
        folder = tmp_path / f"{rng.random()}"
        begin(forks, "study", folder, *TWO, "study.devices_per_job=2").signal(signal.SIGKILL, "rank 0")
        await_end(folder, JOBS_GONE_WITHIN_S)


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of two nodes on this machine, each with one core."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def test_a_cluster_of_two_nodes(forks: Forks, trials: Trials, tmp_path: Path, ray_cluster: str) -> None:
    """One job on each node; kill -9 to the command frees both, and another one is served at once."""
    for rng in trials("kill -9 to bound on a Ray cluster of 2 nodes: jobs gone in 10 s, goes on at once", 1):
        folder = tmp_path / f"{rng.random()}"
        address = [TWO[0], f"bound.address={ray_cluster}"]
        job = begin(forks, "bound", folder, *address)
        while len(list(folder.glob("**/cluster*/snapshots"))) < 2:
            assert not job.poll(), job.words()
            time.sleep(0.1)
        job.signal(signal.SIGKILL, "rank 0")
        await_end(folder, JOBS_GONE_WITHIN_S)
        forks.start(*COMMANDS["bound"], *address, "run_dir=short", folder=folder).succeed()
        assert (folder / "short/bound.csv").read_text().count("\n") == 4
