"""Runs the parts of the check, each in a forked process with a time limit, and keeps what they find as it comes.

Nothing here may start CUDA: a process that has done so cannot fork others that use it.
"""

import contextlib
import faulthandler
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from storage.cores import cores_of_each

LEAST_S = 5.0  # a part with less time left is not started
POLL_S = 0.05
SLOWER_DRY = 3  # times the limit: a dry run may share its cores with others
HAS_TOLD = 3  # exit code of a part that has recorded its own end
GONE_WITHIN_S = 5.0  # after SIGKILL; a process that waits for a broken driver may stay for ever


@dataclass(frozen=True)
class Check:
    """What a part works with.

    Attributes:
        part: its name.
        device: cuda, or cpu in a dry run.
        dry: tiny sizes, to try the check itself.
        results: the file that rows are appended to, a line of JSON each.
        scratch: a folder for files of its own.
    """

    part: str
    device: str
    dry: bool
    results: Path
    scratch: Path

    def record(self, what: str, table: str = "", **values: Any) -> None:
        """Append one row, at once and in one piece. Rows of one `table` of a part are shown together."""
        row = {"part": self.part, "table": table, "what": what, **values}
        line = json.dumps(row, default=str) + "\n"
        descriptor = os.open(self.results, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def expect(self, what: str, error: float, at_most: float, table: str = "right or wrong") -> None:
        """Record whether an error is within its tolerance; NaN is not."""
        self.record(what, table, error=float(f"{error:.2g}"), at_most=at_most, right=bool(error <= at_most))

    @contextlib.contextmanager
    def tried(self, what: str) -> Iterator[None]:
        """Record an error in the block, running out of memory included, and go on behind it."""
        try:
            yield
        except Exception as error:
            self.record(what, failed=describe(error), where=traceback.format_exc()[-1500:])
        finally:
            free_memory(self.device)


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        work: what it does; its docstring is the first line of its section.
        limit_s: it is ended after so many seconds.
        alone: whether it measures times, so that no other part may run beside it.
    """

    work: Callable[[Check], None]
    limit_s: float
    alone: bool = True

    @property
    def name(self) -> str:
        return self.work.__name__


@dataclass
class Running:
    """A forked process."""

    part: Part
    check: Check
    pid: int
    limit_s: float
    log: Path
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.begun, 1)


def run_parts(parts: Sequence[Part], template: Check, deadline: float, together: int) -> None:
    """Run `parts` in order until `deadline` (of `time.monotonic`), up to `together` of those that time nothing."""
    waiting, running = list(parts), list[Running]()
    try:
        while waiting or running:
            while waiting and may_start(waiting[0], [job.part for job in running], together):
                running += start(waiting.pop(0), template, deadline, together)
            time.sleep(POLL_S)
            running = [job for job in running if not has_ended(job)]
    finally:  # an interruption leaves nothing behind
        for job in running:
            kill(job.pid)


def may_start(part: Part, running: Sequence[Part], together: int) -> bool:
    """Whether `part` may run beside those that do."""
    return not running or not (part.alone or any(other.alone for other in running) or len(running) >= together)


def start(part: Part, template: Check, deadline: float, together: int) -> list[Running]:
    """Fork the part; nothing where no time is left for it."""
    scratch = template.scratch / part.name
    check = Check(part.name, template.device, template.dry, template.results, scratch)
    left = deadline - time.monotonic()
    if left < LEAST_S:
        check.record("the part", table="ends", skipped="no time was left")
        return []
    scratch.mkdir(parents=True, exist_ok=True)
    limit = min(part.limit_s * (SLOWER_DRY if check.dry else 1), left)
    threads = 1 if check.dry else cores_of_each(1 if part.alone else together)
    log = scratch / "log.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        become(part, check, limit, threads, log)
    return [Running(part, check, pid, limit, log)]


def become(part: Part, check: Check, limit_s: float, threads: int, log: Path) -> NoReturn:
    """What the forked process does; it never returns."""
    code = HAS_TOLD
    try:
        os.setsid()  # so that it can be ended with all that it starts
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(threads)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        faulthandler.enable()
        faulthandler.dump_traceback_later(max(1.0, limit_s - 1))  # where it hangs
        part.work(check)
        code = 0
    except BaseException as error:
        check.record("the part", table="ends", failed=describe(error), where=traceback.format_exc()[-1500:])
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def has_ended(job: Running) -> bool:
    """Whether a part is over, of itself or by its limit; how it ended is recorded and shown."""
    found, status, used = os.wait4(job.pid, os.WNOHANG)
    problem = {}
    if found:
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, HAS_TOLD):
            problem["failed"] = f"exit code {code}" if code > 0 else f"ended by signal {-code}"
        kill_group(job.pid)  # what it has started and left behind
    elif job.seconds > job.limit_s:
        gone = "" if kill(job.pid) else ", and could not be killed"
        problem["failed"] = f"not done within {job.limit_s:.0f} s{gone}"
    else:
        return False
    said = job.log.read_text(errors="replace") if job.log.exists() else ""
    if problem:
        problem["where"] = said[-1500:]
    processor_s = round(used.ru_utime + used.ru_stime, 1)
    job.check.record("the part", table="ends", seconds=job.seconds, processor_s=processor_s, **problem)
    with (job.check.results.parent / "log.txt").open("a") as file:
        file.write(f"=== {job.part.name}\n{said}\n")
    print(f"{job.part.name:<12} {job.seconds:6.1f} s  {problem.get('failed', '')}", flush=True)
    return True


def kill(pid: int) -> bool:
    """End a process with all that it has started; whether it is gone. Waits for a moment only."""
    kill_group(pid)
    until = time.monotonic() + GONE_WITHIN_S
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(POLL_S)
    return False


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def describe(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:400]


def free_memory(device: str) -> None:
    """Let go of what nobody holds any more, so that the next measurement starts from nothing."""
    gc.collect()
    if device == "cuda" and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
