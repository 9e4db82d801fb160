"""How a row of the table is measured and shown."""

import time
from collections.abc import Callable


def seconds(work: Callable[[], object], repeats: int = 3, warm_up: bool = True) -> float:
    """The shortest of some timings, after one run to warm up."""
    if warm_up:
        work()
    timings = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        timings.append(time.perf_counter() - start)
    return min(timings)


def show(what: str, usual: float, ours: float, unit: str = "s") -> None:
    """One row of the table."""
    print(f"{what:<58} {usual:9.3f} {ours:9.3f} {unit:<4} {usual / ours:6.2f} ×", flush=True)
