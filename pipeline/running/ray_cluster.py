"""Ray: a cluster on this machine, started for one command, or one that a user has started on several."""

import importlib.util
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import chdir
from typing import Any, TypeVar

from pipeline.settings.compose import CONFIGS
from storage.errors import UserError

T = TypeVar("T")
OBJECT_STORE_BYTES = 100 * 2**20  # jobs pass files to each other, not objects
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a job on a CPU is told so by its settings
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave the cores to the other jobs
}


def check_ray() -> None:
    """Raise a `UserError` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "Several jobs at a time need Ray, which is not installed: "
            "pip install 'cluster-conditioned-diffusion[cluster]'. Or set trainer.devices=1."
        )


def connect(address: str | None, cpus: int = 1, gpus: int = 0, variables: Mapping[str, str] | None = None) -> None:
    """Connect to the cluster at `address`; None: start one on this machine, which ends with this process.

    Args:
        address: `auto` or HOST:PORT.
        cpus, gpus: what a cluster on this machine may use.
        variables: of the environment of its processes.

    Raises:
        UserError: there is no Ray, or no cluster.
    """
    check_ray()
    os.environ.update(QUIET)
    import ray

    here: dict[str, Any] = {}
    if address is None:
        here = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": OBJECT_STORE_BYTES}
        here |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.update(variables or {})
    try:
        with chdir(CONFIGS.parent):  # from where Ray's processes import this project, and nothing of the user's
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"address={address}: no Ray cluster can be reached there ({error}).") from error
    finally:
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():  # this process ends in its own way
            signal.signal(number, handler)


def cores_per_job(slots: int) -> int:
    """Cores for one job, so that the cluster runs as many at a time as there are `slots`."""
    import ray

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min(sum(nodes) // slots, max(nodes)))


def devices_of_cluster(address: str) -> tuple[int, int]:
    """GPUs and machines of a cluster."""
    import ray

    connect(address)
    try:
        return int(ray.cluster_resources().get("GPU", 0)), sum(node["Alive"] for node in ray.nodes())
    finally:
        ray.shutdown()


def on_cluster(address: str, on_gpu: bool, work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns on a machine of a cluster, with a GPU of it."""
    import ray
    from ray.exceptions import RayTaskError

    connect(address)
    try:
        return ray.get(ray.remote(num_gpus=int(on_gpu))(work).remote(*arguments))
    except RayTaskError as error:
        raise error.cause from None  # as it was there, without the lines of code around it
    finally:
        ray.shutdown()
