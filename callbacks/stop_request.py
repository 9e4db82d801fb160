"""The signal that asks a process to end, and what it ends with; needs no PyTorch, so that commands start fast."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TIME_IS_UP = 1  # beside the numbers of the signals that are heeded, which are higher


class Stopped(SystemExit):
    """Ends the process after SIGTERM with the exit code that shells give it: 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class TimeIsUp(Exception):  # noqa: N818, as nothing is wrong
    """Ends a training after `trainer.max_time`, with a snapshot and exit code 0."""


class StopRequest:
    """The signal that asked this process to end, if one has, and whether it may end at any point.

    `agreed` is the signal, or `TIME_IS_UP`, that all processes know by now to have come to one of them; 0: none.
    `deadline` is when the time is up, by `time.monotonic()`.
    """

    def __init__(self) -> None:
        self.received, self.deferred, self.agreed, self.deadline = 0, False, 0, math.inf

    @property
    def reason(self) -> int:
        """Why this process is to end: a signal's number, `TIME_IS_UP`, or 0: it is not."""
        return self.received or (TIME_IS_UP if time.monotonic() >= self.deadline else 0)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.received = max(self.received, number)
        if not self.deferred:
            raise Stopped


request = StopRequest()


@contextmanager
def stop_at_once() -> Iterator[None]:
    """SIGTERM raises `Stopped` wherever the block is: temporary files are removed and locks let go on the way out.

    From then on it is ignored: a second one, such as another process's answer, must not change the exit code.
    """
    before = signal.signal(signal.SIGTERM, request.receive)
    try:
        yield
    except Stopped:
        before = signal.SIG_IGN
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        request.received, request.agreed = 0, 0
