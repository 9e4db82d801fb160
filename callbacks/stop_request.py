"""The signal that asks a process to end, and what it ends with; needs no PyTorch, so that commands start fast."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(SystemExit):
    """Ends the process after SIGTERM with the exit code that shells give it: 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class StopRequest:
    """The signal that asked this process to end, if one has, and whether it may end at any point.

    `agreed` tells, the same on all processes, whether they know by now that one of them was asked.
    """

    def __init__(self) -> None:
        self.received, self.deferred, self.agreed = 0, False, False

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
        request.received, request.agreed = 0, False
