"""How many processor cores a process may use: its share of those that the scheduler left to it."""

import os


def available_cores() -> list[int]:
    """The cores that this process may use, as SLURM and `taskset` have it."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cores_of_each(num_processes: int) -> int:
    """Cores for each of several processes on this machine, at least one."""
    return max(1, len(available_cores()) // num_processes)
