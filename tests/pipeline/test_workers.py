"""The devices that jobs run on, each in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from callbacks.stop_request import Stopped, stop_at_once
from pipeline.running.workers import Worker, end_all, problem_of, workers_of
from storage import cores
from storage.errors import UserError


def test_processes_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: list(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = workers_of("cpu", 3)
    assert [worker.environment for worker in found] == [{"OMP_NUM_THREADS": "2"}] * 3
    assert found[0].settings == ("trainer.accelerator=cpu", "trainer.devices=1")
    with pytest.raises(UserError, match="from 1 on"):
        workers_of("cpu", 0)
    with pytest.raises(UserError, match="accelerator=gpuu: type one of"):
        workers_of("gpuu", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert workers_of("cpu", 3)[0].environment == {"OMP_NUM_THREADS": "1"}  # as the user says


def test_each_gpu_is_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch counts them; the numbers that a scheduler gave are kept."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,4,5")
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers_of("auto", "auto")] == ["1", "4", "5"]
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers_of("gpu", 2)] == ["1", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7,8,-1")  # CUDA counts up to the first that is none
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers_of("gpu", 2)] == ["6", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers_of("gpu", -1)] == ["0", "1", "2"]
    assert [worker.name for worker in workers_of("gpu", [0, 2])] == ["GPU 0", "GPU 2"]
    for devices in (4, [3]):
        with pytest.raises(UserError, match="3 GPUs"):
            workers_of("gpu", devices)


def test_a_second_signal_kills_what_the_first_did_not_end() -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    handler = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Stopped), stop_at_once():
        end_all([process])
    signal.signal(signal.SIGTERM, handler)
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            " 12%|█▏   | 3/24 [00:01<00:09, 2.3img/s]error: no such file\nType it right.",
            "error: no such file\n  Type it",
        ),
        ("3img [00:01, 2.3img/s]error: no such file", "error: no such file"),
        ("error: 1 of 2 failed:\nC = 5: exit code 2: error: too few", "error: 1 of 2 failed:\n  C = 5: exit code 2"),
        (" 9%|▉  | 1/9\rerror: first\n$ again\nRuntimeError: second", "RuntimeError: second"),
    ],
)
def test_an_error_is_found_behind_a_progress_bar(tmp_path: Path, said: str, told: str) -> None:
    (tmp_path / "log.txt").write_text(f"\n$ cedm train\n{said}\n")
    assert problem_of(2, tmp_path).startswith(f"exit code 2: {told}")


def test_a_log_holds_all_tries_and_the_last_one_says_what_went_wrong(tmp_path: Path) -> None:
    worker = Worker("cpu 0", (), {})
    worker.start([sys.executable, "-c", "print('error: out of memory', end='')"], tmp_path).wait()
    worker.start([sys.executable, "-c", "print('a word')"], tmp_path).wait()
    assert problem_of(1, tmp_path).startswith("exit code 1: a word\n")
    assert "out of memory" in (tmp_path / "log.txt").read_text()
