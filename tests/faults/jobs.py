"""Commands in processes of their own: forked (see forks.py), or as a user types them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass
class Job:
    """A command at work: one process per rank, in a process group of its own."""

    folder: Path
    pids: list[int]
    forks: "Forks | None" = None  # who waits for them; None for a real command
    process: subprocess.Popen | None = None
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Whether all processes have ended, those that they have started too."""
        if self.forks is not None:
            self.codes |= self.forks.poll([pid for pid in self.pids if pid not in self.codes])
        elif self.process is not None and self.process.poll() is not None:
            self.codes[self.pids[0]] = self.process.returncode
        return len(self.codes) == len(self.pids) and not group_lives(self.pids[0])

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
        """The process of a rank; where Lightning starts the others, they are children of rank 0."""
        if rank < len(self.pids):
            return self.pids[rank]
        listed, deadline = Path(f"/proc/{self.pids[0]}/task/{self.pids[0]}/children"), time.monotonic() + 5
        while len(children := listed.read_text().split()) < rank and time.monotonic() < deadline:
            time.sleep(0.05)  # the kernel may leave one out while another comes or goes
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

    def await_path(self, pattern: str) -> None:
        """Wait until a file of this name is there."""
        deadline = time.monotonic() + 90
        while not list(self.folder.glob(pattern)):
            assert not self.poll(), self.words()
            assert time.monotonic() < deadline, self.words()
            time.sleep(0.02)

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

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(60)

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
        launched: bool = False,
        sabotage: str | None = None,
        sabotaged_ranks: Sequence[int] = (0, 1),
        environment: dict[str, str] | None = None,
        file_size: int = 0,
    ) -> Job:
        """Begin `cedm COMMAND settings…` in `folder`, after `sabotage.NAME()` on the sabotaged ranks.

        All ranks begin at once, as torchrun does it; with `launched`, rank 0 begins and Lightning launches the other.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if ranks > 1:
            settings = (*settings, "trainer.accelerator=cpu", f"trainer.devices={ranks}")
        pids = self._order(
            command=command,
            settings=settings,
            folder=str(folder),
            ranks=ranks,
            launched=launched,
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
            [sys.executable, "-m", "pipeline", command, *settings],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    return Job(folder, [process.pid], process=process)
