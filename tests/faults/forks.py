"""Runs commands for the fault tests, each in processes of its own, forked from one that has imported everything.

So a start costs milliseconds instead of the seconds of importing PyTorch, and faults can be tried by the hundred.
Orders come as lines of JSON on standard input; each is answered by one line on standard output.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from pipeline import __main__ as command_line
from pipeline.settings.door import load_command

COMMANDS = ("embed", "cluster", "bound", "train", "generate", "evaluate", "import-edm", "study")


def start(order: dict[str, Any]) -> list[int]:
    """Fork one process per rank; their ids. All are in a process group of their own, which the first one leads."""
    pids: list[int] = []
    for rank in range(1 if order["launched"] else order["ranks"]):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, pids[0] if pids else 0)
            if order["launched"]:
                let_lightning_launch(Standby(order))
            elif order["ranks"] > 1:
                os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(order["ranks"])}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"])}
            run(order, rank)
        with contextlib.suppress(OSError):  # the child has done so itself
            os.setpgid(pid, pids[0] if pids else pid)
        pids.append(pid)
    return pids


def run(order: dict[str, Any], rank: int) -> NoReturn:
    """What a forked process does: one command, as if typed in the order's folder, or started there by a launcher."""
    os.chdir(order["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644), number)
    os.environ |= order["environment"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tempfile.tempdir = None  # what was found for the process that forks; the environment may say otherwise
    sys.argv = ["cedm", order["command"], *order["settings"]]
    code = 0
    try:
        if order["file_size"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], order["file_size"]))
        if order["sabotage"] and rank in order["sabotaged_ranks"]:
            getattr(importlib.import_module("sabotage"), order["sabotage"])()
        command_line.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Standby:
    """Rank 1, forked before rank 0's command begins; for Lightning it is `subprocess.Popen`, which starts it.

    So it knows nothing of what rank 0 has done until then, and is rank 0's child, as where it is started anew.
    """

    returncode: int | None = None

    def __init__(self, order: dict[str, Any]) -> None:
        receiver, self.sender = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.sender)
            with os.fdopen(receiver) as file:
                told = file.read()
            if not told:  # rank 0 has ended without it
                os._exit(0)
            environment, settings = json.loads(told)
            run(order | {"environment": environment, "settings": settings}, 1)
        os.close(receiver)

    def __call__(self, command: list[str], env: dict[str, str], cwd: str | None = None) -> "Standby":
        with os.fdopen(self.sender, "w") as file:
            json.dump([env, command[3:]], file)  # behind interpreter, script and the command's name
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def let_lightning_launch(standby: Standby) -> None:
    for library in ("fabric", "pytorch"):
        launcher = importlib.import_module(f"lightning.{library}.strategies.launchers.subprocess_script")
        launcher.subprocess = SimpleNamespace(Popen=standby)  # type: ignore[attr-defined]


def poll(pids: list[int]) -> dict[str, int]:
    """Exit codes of those that have ended since the last question; negative: the signal that ended it."""
    ended = {}
    for pid in pids:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[str(pid)] = os.waitstatus_to_exitcode(status)
    return ended


def main() -> None:
    import faulthandler

    import torch

    faulthandler.enable()  # SIGABRT shows where a process hangs

    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parent))
    for command in COMMANDS:
        load_command(command)
    for heavy in ("lightning", "pipeline.running.training", "pipeline.running.clustering", "torch.utils.tensorboard"):
        importlib.import_module(heavy)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    groups = []
    for line in sys.stdin:
        order = json.loads(line)
        answer = poll(order["poll"]) if "poll" in order else start(order)
        print(json.dumps(answer), flush=True)
        if "poll" not in order:
            groups.append(answer[0])
    for group in groups:  # whoever gave the orders has ended, perhaps before its time
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
