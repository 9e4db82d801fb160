"""The real commands on the device: the digits end to end, a stopped run, and the rate that a training has."""

import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from runner import POLL_S, Check
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.__main__ import run
from pipeline.running.run_files import DENOISER

TINY = ["network.model_channels=8", "sampler.steps=1"]
COLOURS_AND_BARS = re.compile(r"\x1b\[[0-9;]*m|^.*\r", re.MULTILINE)


class Ended(NamedTuple):
    """A command that was run: its exit code (None: ended at its limit), its seconds, what it said."""

    code: int | None
    seconds: float
    said: str


def as_it_is() -> None:
    """No preparation."""


def cedm(
    check: Check,
    name: str,
    *words: str,
    limit_s: float = 90,
    environment: dict[str, str] | None = None,
    before: Callable[[], object] = as_it_is,
    poll: Callable[[int], object] = lambda pid: None,
) -> Ended:
    """`cedm NAME words…` in a fork of this process, which has imported everything and computed nothing with PyTorch.

    For neither CUDA nor OpenMP's threads work in a process whose parent has used them.
    """
    assert not torch.cuda.is_initialized()
    log, begun = Path(tempfile.mkstemp(".txt", f"{name}-", check.scratch)[1]), time.monotonic()
    pid = os.fork()
    if pid == 0:
        become(log, environment or {}, before, [name, *words])
    code: int | None = None
    while time.monotonic() - begun < limit_s * (3 if check.dry else 1):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
        poll(pid)
        time.sleep(POLL_S)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said = COLOURS_AND_BARS.sub("", log.read_text(errors="replace"))
    return Ended(code, round(time.monotonic() - begun, 1), said)


def become(log: Path, environment: dict[str, str], before: Callable[[], object], words: list[str]) -> NoReturn:
    """What the forked process does."""
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ |= environment
        sys.argv = ["cedm", *words]
        before()
        code = run(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def record_run(check: Check, what: str, ended: Ended, table: str, wanted: int = 0, **values: Any) -> None:
    """A row about a command, which failed where it did not end as wanted."""
    problem = {}
    if ended.code != wanted:
        problem = {"failed": f"exit code {ended.code}, not {wanted}", "where": ended.said[-1500:]}
    check.record(what, table=table, seconds=ended.seconds, **values, **problem)


def on_device(check: Check) -> list[str]:
    return [f"trainer.accelerator={'cpu' if check.dry else 'gpu'}", "trainer.devices=1"]


def without_compiler() -> None:
    """In a dry run, `trainer.compile=true` goes all its way but for the compiler, which takes minutes."""
    torch.compiler.set_stance("force_eager")


def digits(check: Check) -> None:
    """The digits from images to distances by the real commands, then trainings in other precisions, and compiled."""
    common = ["dataset=digits", f"cache_dir={check.scratch}/cache", *on_device(check), "map_images=0"]
    common += [f"clustering.max_epochs={2 if check.dry else 20}", "clustering.warmup_epochs=1"]
    kimg, images = (0.256, 16) if check.dry else (12.8, 500)
    short = [f"training.duration_kimg={kimg}", f"evaluation.num_images={images}"]
    short += [f"evaluation.{what}_kimg={kimg / 2}" for what in ("every", "grid_every", "snapshot_every")]
    trained, clusters = check.scratch / "train", check.scratch / "cluster"
    if check.dry:
        short += TINY
    sampler = ["steps=2"] if check.dry else []
    model = [f"generated={trained}", "dataset=digits", f"cache_dir={check.scratch}/cache", *on_device(check)]
    for name, words in {
        "embed": common,
        "cluster": [*common, f"run_dir={clusters}"],
        "train": [*common, *short, f"run_dir={trained}"],
        "generate": [f"ckpt={trained}", "num=32", f"run_dir={check.scratch}/generate", *on_device(check), *sampler],
        "evaluate": [*model, *sampler, f"num={images}", "metrics=[fd,prdc]", f"run_dir={check.scratch}/evaluate"],
    }.items():
        record_run(check, name, cedm(check, name, *words), "digits, float32")
    for number, extra in enumerate(
        (
            ["trainer.precision=bf16-mixed"],
            ["trainer.precision=16-mixed"],
            ["trainer.precision=bf16-mixed", "trainer.channels_last=true", "trainer.compile=true"],
        )
    ):
        if check.dry and "trainer.precision=16-mixed" in extra:
            continue  # a CPU has no such training
        given = [f"assignments={clusters}/pseudo_labels.safetensors", f"run_dir={check.scratch}/train{number}"]
        words = [*common, *short, *extra, *given]
        ended = cedm(check, "train", *words, limit_s=120, before=without_compiler if check.dry else as_it_is)
        record_run(check, "train " + " ".join(extra), ended, "digits, other precisions")


def resume(check: Check) -> None:
    """Two equal trainings, and one that is stopped by SIGTERM and goes on: are the weights the same, byte for byte?"""
    bf16 = ["trainer.precision=bf16-mixed", "trainer.channels_last=true"]
    for what, words, deterministic in (
        ("float32", ["trainer.precision=32-true"], False),
        ("bf16, channels last", bf16, False),
        ("bf16, channels last, deterministic", bf16, True),
    ):
        if check.dry and words is bf16 and not deterministic:
            continue  # on a CPU the same
        with check.tried(what):
            resume_one(check, what, words, deterministic)


def resume_one(check: Check, what: str, words: list[str], deterministic: bool) -> None:
    kimg = 1.024 if check.dry else 38.4
    words = ["dataset=digits", "conditioning=none", f"cache_dir={check.scratch}/cache", *on_device(check), *words]
    words += ["training.augment_probability=0.12", "network.dropout=0.1", "evaluation.backbone=null"]
    words += [f"training.duration_kimg={kimg}", f"evaluation.snapshot_every_kimg={kimg / 6}"]
    words += ["evaluation.grid_every_kimg=1000", *(TINY if check.dry else ["sampler.steps=2"])]
    words += ["trainer.benchmark=false"] if deterministic else []
    how = torch_is_deterministic, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    stem = what.replace(",", "").replace(" ", "-")
    folders = {name: check.scratch / f"{stem}-{name}" for name in "abc"}

    def train(name: str, poll: Callable[[int], object] = lambda pid: None) -> Ended:
        before, environment = how if deterministic else (as_it_is, None)
        words_of_it = [*words, f"run_dir={folders[name]}"]
        return cedm(check, "train", *words_of_it, limit_s=60, environment=environment, before=before, poll=poll)

    stopped: list[int] = []

    def stop_after_a_snapshot(pid: int) -> None:
        if not stopped and list((folders["c"] / "snapshots").glob("*.ckpt")):
            os.kill(pid, signal.SIGTERM)
            stopped.append(pid)

    table = "a stopped run"
    record_run(check, f"{what}: run to the end", train("a"), table)
    record_run(check, f"{what}: again", train("b"), table)
    record_run(check, f"{what}: stopped by SIGTERM", train("c", stop_after_a_snapshot), table, wanted=143)
    record_run(check, f"{what}: resumed", train("c"), table)
    weights = {name: load_file(folder / DENOISER) for name, folder in folders.items()}
    for other, of in (("b", "two equal runs"), ("c", "the stopped run")):
        pairs = ((weights["a"][name], weights[other][name]) for name in weights["a"])
        largest = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs)
        check.record(f"{what}: {of}", table="the same bytes?", largest_difference=largest, same=largest == 0)
        if deterministic or check.dry:
            check.expect(f"{what}: {of}", largest, 0)


def torch_is_deterministic() -> None:
    """Algorithms that give the same bits each time; an error where there is none."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def loop(check: Check) -> None:
    """`cedm train` of the CIFAR-10 network on 50,000 random images: its rate as foretold, as logged, by the clock."""
    count, resolution = (600, 8) if check.dry else (50_000, 32)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (count, resolution, resolution, 3), dtype=np.uint8)
    np.save(check.scratch / "images.npy", images)
    np.save(check.scratch / "clusters.npy", generator.integers(0, 100, count))
    batch, kimg, logged = (64, 0.384, 0.064) if check.dry else (1024, 24.6, 2.048)
    words = ["dataset=npy", f"dataset.path={check.scratch}/images.npy", f"dataset.resolution={resolution}"]
    words += [f"assignments={check.scratch}/clusters.npy", f"cache_dir={check.scratch}/cache", *on_device(check)]
    words += ["network=ddpmpp_small" if check.dry else "network=ddpmpp", "trainer.precision=bf16-mixed"]
    words += ["evaluation.backbone=null", "evaluation.grid_every_kimg=1000000"]
    words += TINY if check.dry else ["sampler.steps=2"]
    words += ["evaluation.snapshot_every_kimg=1000000", f"evaluation.log_every_kimg={logged}"]
    words += [f"training.batch_size={batch}", f"training.duration_kimg={kimg}", "training.label_dropout=0.1"]
    for number, (what, extra, limit_s) in enumerate(
        (
            ("128 at once, eager", ["training.max_batch_per_device=128", "trainer.compile=false"], 60.0),
            ("as set by default", [], 120.0),  # compiled, and as many at once as the card is thought to take
        )
    ):
        folder = check.scratch / f"run{number}"
        before = without_compiler if check.dry else as_it_is
        ended = cedm(check, "train", *words, *extra, f"run_dir={folder}", limit_s=limit_s, before=before)
        found = re.search(r"^cost .* at ([\d,]+) images/s", ended.said, re.MULTILINE)
        rates: dict[str, Any] = {"foretold": int(found[1].replace(",", "")) if found else None}
        with check.tried(what):
            if ended.code == 0:
                rates |= logged_rates(folder, 1000 * logged)
        record_run(check, what, ended, "cedm train, images/s", **rates)


def logged_rates(folder: Path, images: float) -> dict[str, float]:
    """Images per second in the second half of a training that logs every `images`, by its log and by the clock."""
    events = EventAccumulator(str(folder))
    events.Reload()
    points = events.Scalars("throughput/kimg_per_s")
    late = points[len(points) // 2 :]
    by_the_clock = images * (len(late) - 1) / (late[-1].wall_time - late[0].wall_time)
    memory = events.Scalars("throughput/peak_memory_gb")[-1].value
    return {"logged": round(1000 * late[-1].value), "by_the_clock": round(by_the_clock), "peak_GB": round(memory, 2)}
