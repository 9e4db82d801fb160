"""The check of a GPU, tried on a CPU: all of its parts, and what it makes of those that fail, hang or take too much."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

HERE = Path(__file__).parent
NOT_THERE = ("pytest", "plotly", "ray", "faiss", "timm", "datasets", "hypothesis")  # on a machine without network


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`modules("runner")`: a file of the check."""
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module


@pytest.fixture
def check(modules: Any, tmp_path: Path) -> Any:
    return modules("runner").Check("part", "cpu", False, tmp_path / "results.jsonl", tmp_path)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_all_parts_on_a_cpu_with_the_packages_of_a_bare_machine(tmp_path: Path):
    hide = f"import sys\nsys.modules.update(dict.fromkeys({NOT_THERE!r}))\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(HERE), "--dry", "--out", str(tmp_path), "--seconds", "900"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path)
    parts = {row["part"] for row in rows if row["table"] == "ends"}
    assert parts == {row["part"] for row in rows if row["table"] != "ends"}  # each has found something
    assert len(parts) == 21
    assert sum("right" in row for row in rows) >= 60
    assert [row for row in rows if row.get("right") is False or "failed" in row or "skipped" in row] == []
    steps = [row for row in rows if row["table"] == "training steps"]
    assert len(steps) == 14
    assert all(row["images_per_s"] > 0 and row["of_matrix_rate"] >= 0 for row in steps)
    page = next(tmp_path.glob("*.md")).read_text()
    assert all(f"\n## {part.replace('_', ' ')}\n" in page for part in parts - {"card"})
    assert "Wrong" not in page


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path: Path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE), "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "finds no GPU that works here. Set DRY=1" in done.stderr
    assert not list(tmp_path.glob("*.md"))


PARTS_THAT_FAIL = """
import os, signal, subprocess, sys, time
from pathlib import Path

import torch
from runner import Check, Part, run_parts

def raises(check): raise ValueError("broken")
def crashes(check): os.kill(os.getpid(), signal.SIGSEGV)
def leaves(check): os._exit(7)
def hangs(check):
    subprocess.Popen(["sleep", "301.25"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(300)
def runs_out(check):
    with check.tried("too large"): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")
    check.record("small")
def is_wrong(check): check.expect("sum", float("nan"), 1e-3)
def works(check): check.record("fine", seconds=1.5)
def too_late(check): check.record("never")

folder = Path(sys.argv[1])
parts = [Part(raises, 20), Part(crashes, 20), Part(leaves, 20), Part(hangs, 2), Part(runs_out, 20), Part(is_wrong, 20)]
begun = time.monotonic()
run_parts([*parts, Part(works, 20)], Check("", "cpu", False, folder / "results.jsonl", folder), begun + 60, 4)
run_parts([Part(too_late, 20)], Check("", "cpu", False, folder / "results.jsonl", folder), begun, 4)
"""


def test_a_part_that_fails_does_not_stop_the_others(modules: Any, tmp_path: Path):
    root = HERE.parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(root)])}
    command = [sys.executable, "-c", PARTS_THAT_FAIL, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    rows = rows_of(tmp_path)
    told = {f"{row['part']} {row['what']}": row.get("failed", row.get("skipped")) for row in rows}
    assert told["raises the part"] is None  # it has told why itself, before it ended
    assert any(row["part"] == "raises" and row.get("failed") == "ValueError: broken" for row in rows)
    assert told["crashes the part"] == "ended by signal 11"
    assert told["leaves the part"] == "exit code 7"
    assert told["hangs the part"] == "not done within 2 s"
    hung = next(row for row in rows if row["part"] == "hangs")
    assert "in hangs" in hung["where"]  # the line at which it hung
    assert told["runs_out too large"].startswith("OutOfMemoryError: CUDA out of memory")
    assert told["runs_out small"] is None
    assert told["works fine"] is None
    assert told["too_late the part"] == "no time was left"
    problems = modules("tables").problems(rows)
    assert "is_wrong: sum: the error is nan, at most 0.001 is right" in problems
    assert len(problems) == 7
    sleepers = subprocess.run(["pgrep", "-f", "^sleep 301.25$"], capture_output=True, text=True)
    assert not sleepers.stdout  # ended with the part that had started it


def test_parts_that_measure_times_run_alone(modules: Any):
    runner = modules("runner")
    timed, other = runner.Part(print, 1), runner.Part(print, 1, alone=False)
    assert runner.may_start(timed, [], 4)
    assert not runner.may_start(timed, [other], 4)
    assert not runner.may_start(other, [timed], 4)
    assert runner.may_start(other, [other] * 3, 4)
    assert not runner.may_start(other, [other] * 4, 4)


def test_the_page(modules: Any, tmp_path: Path):
    tables: ModuleType = modules("tables")
    rows = [
        {"part": "card", "table": "card", "what": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "GB": 85.0},
        {"part": "speed", "table": "steps", "what": "bf16", "images_per_s": 2345.6, "of_matrix_rate": 0.41},
        {"part": "speed", "table": "steps", "what": "fp<float>|x", "images_per_s": 12, "peak_GB": None},
        {"part": "speed", "table": "", "what": "batch 512", "failed": "OutOfMemoryError: no"},
        {"part": "numbers", "table": "right or wrong", "what": "sum", "error": 2e-05, "at_most": 1e-05, "right": False},
        {"part": "speed", "table": "ends", "what": "the part", "seconds": 3.25},
    ]
    page = tables.page(rows, {"card": "", "numbers": "Sums.", "speed": "Steps."}, "make check-gpu")
    assert page.startswith("# NVIDIA H100 80GB HBM3\n\nMeasured by `make check-gpu` in one run. 0 of 1 comparisons")
    assert "torch 2.11.0, GB 85.0." in page
    assert "* speed: batch 512: OutOfMemoryError: no\n* numbers: sum: the error is 2e-05, at most 1e-05" in page
    assert (
        "| steps | images/s | of matrix rate | peak GB |\n| --- | --- | --- | --- |\n| bf16 | 2,346 | 0.41 |  |" in page
    )
    assert "| fp\\<float\\>\\|x | 12 |  |  |" in page
    assert "| sum | 2e-05 | 1e-05 | **no** |" in page
    assert page.endswith("| speed | 3.25 |\n")
    assert tables.file_stem("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert tables.is_wrong(rows)
    assert not tables.is_wrong([{"part": "speed", "table": "ends", "what": "the part", "skipped": "no time was left"}])
    (tmp_path / "results.jsonl").write_text(json.dumps(rows[0]) + '\n{"part": "cut')
    assert tables.read_rows(tmp_path / "results.jsonl") == rows[:1]


def test_the_largest_batch_that_fits(modules: Any, check: Any):
    tried = []

    def measure(size: int) -> None:
        tried.append(size)
        if size > 128:
            raise torch.OutOfMemoryError("CUDA out of memory")

    modules("models").at_largest_batch(check, "step", measure)
    assert tried == [512, 256, 128]
    recorded = [(row["table"], row["batch"]) for row in rows_of(check.scratch)]
    assert recorded == [("out of memory", 512), ("out of memory", 256)]


def test_waits_are_counted_from_the_warnings_of_cuda(modules: Any, monkeypatch: pytest.MonkeyPatch):
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    waits = modules("measuring").HostWaits("cuda")
    with waits.counted():
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at …)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert waits.places.total() == 3
    assert modes == ["warn", "default"]


def test_waits_are_counted_from_the_operators_of_a_cpu(modules: Any):
    from metrics.frechet import FeatureStatistics

    metric, waits = FeatureStatistics(2), modules("measuring").HostWaits("cpu")
    with waits.counted():
        (torch.ones(3) * 2).sum()  # asks nothing
        metric.update(torch.ones(3, 2))  # asks whether all values are finite
    torch.ones(1).item()
    assert waits.places.total() == 1
    assert next(iter(waits.places)).startswith("frechet.py:")


def test_kernels_are_what_the_device_executes(modules: Any):
    def event(key: str, device: DeviceType, us: float, marked: bool = False) -> Any:
        return SimpleNamespace(
            key=key, device_type=device, is_user_annotation=marked, self_device_time_total=us, self_cpu_time_total=9.0
        )

    events = [
        event("gemm", DeviceType.CUDA, 5.0),
        event("aten::mm", DeviceType.CPU, 5.0),
        event("Optimizer.step", DeviceType.CUDA, 7.0, marked=True),
        event("nothing", DeviceType.CUDA, 0.0),
    ]
    found = modules("measuring").kernels_of(events, on_gpu=True)
    assert [event.key for event in found] == ["gemm"]
    assert [event.key for event in modules("measuring").kernels_of(events, on_gpu=False)] == ["aten::mm"]


def test_arithmetic_is_left_as_it_was(modules: Any):
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    with modules("measuring").arithmetic("tf32", "cpu"):
        assert [backend.allow_tf32 for backend in backends] == [True, True]
    with modules("measuring").arithmetic("bf16", "cpu"):
        assert [backend.allow_tf32 for backend in backends] == [False, False]
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert [backend.allow_tf32 for backend in backends] == before
