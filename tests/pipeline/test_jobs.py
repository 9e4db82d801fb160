"""The engine, on jobs that take milliseconds: order, failures, crashes, logs, and nothing left for the next job."""

import importlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from callbacks.stop_request import Stopped, stop_at_once
from pipeline.running import job_pools
from pipeline.running.jobs import Job, problem_of, run_jobs
from pipeline.running.resources import Resources, resources_of
from pipeline.running.trainer_settings import TrainerSettings
from storage import cores
from storage.errors import UserError

ONE = Resources("cpu")
FINISH = f"open('summary.json', 'w').write({json.dumps({'command': 'train', 'arguments': []})!r})"


@pytest.fixture(autouse=True)
def python_jobs(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    """A job's first word is a piece of Python; worker processes find it by this path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    perform = importlib.import_module("python_jobs").perform_python
    monkeypatch.setattr(job_pools, "perform", perform)


def job(name: str, *needs: str, code: str = "pass") -> Job:
    noted = f"open('../order', 'a').write({name!r} + ' ')"
    return Job(name, "train", (f"import os, sys, torch; {noted}; {code}; {FINISH}",), Path(name), needs)


def order_of_starts() -> list[str]:
    return Path("order").read_text().split()


def test_each_job_comes_after_those_that_it_needs_and_a_failure_stops_only_what_needs_it() -> None:
    pid = "open('pid', 'w').write(str(os.getpid()))"
    jobs = [
        job("third", "second", "first", code=pid),
        job("second", "first"),
        job("first", code=pid),
        job("bad", code="print('a word'); print('error: no such thing', file=sys.stderr); raise SystemExit(2)"),
        job("after", "bad"),
        job("last", "after"),
        job("silent", code="os.chdir('/tmp')"),  # ends well and has nothing to show
        job("crash", code="print('its last words', flush=True); os.kill(os.getpid(), 9)"),
        job("new", code=pid),
    ]
    failed = run_jobs(jobs, ONE)
    assert order_of_starts() == ["first", "second", "third", "bad", "silent", "crash", "new"]
    assert set(failed) == {"bad", "after", "last", "silent", "crash"}
    assert failed["bad"].startswith("exit code 2: error: no such thing")
    assert failed["after"] == "not run, because bad failed"
    assert failed["last"] == "not run, because after failed"
    assert "exit code -9" in failed["crash"]
    assert "its last words" in failed["crash"]
    first, new, third = (int(Path(name, "pid").read_text()) for name in ("first", "new", "third"))
    assert first == third != new  # after the crash
    for number in (first, new):
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
    assert run_jobs(jobs[:3], ONE) == {}
    assert order_of_starts().count("first") == 1


def test_a_job_finds_nothing_of_the_one_before_nor_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what is printed go anywhere but into the job's own log, be it by Python, C or a child."""
    told = {"SLURM_NTASKS", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "CEDM_RUN_FOLDER", "MESS"}
    for key in told - {"MESS"}:
        monkeypatch.setenv(key, "4")
    look = (
        "import json, signal; open('found', 'w').write(json.dumps([os.getcwd(), str(torch.get_default_dtype()), "
        "torch.get_num_threads(), torch.rand(()).item(), str(signal.getsignal(signal.SIGTERM)).split(' at')[0], "
        f"sorted(os.environ.keys() & {told})]))"
    )
    mess = (
        "torch.set_default_dtype(torch.float64); torch.set_num_threads(2); os.environ['MESS'] = '1'; os.chdir('/'); "
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); torch.manual_seed(3); "
        f"print('python'); os.system('echo shell'); os.write(2, b'descriptor\\n'); "
        f"os.chdir({str(Path('mess').absolute())!r})"
    )
    assert run_jobs([job("first", code=look), job("mess", code=mess), job("last", code=look)], ONE) == {}
    first, last = (json.loads(Path(name, "found").read_text()) for name in ("first", "last"))
    assert first.pop(0) != last.pop(0)
    assert first == last
    assert first[-1] == []
    log = Path("mess/log.txt").read_text().splitlines()
    assert log[1].startswith("$ cedm train ")
    assert sorted(log[2:]) == ["descriptor", "python", "shell"]


def test_a_signal_stops_the_job_and_not_before_it_has_written_its_snapshot() -> None:
    slow = "import time\ntry:\n    open('begun', 'w'); time.sleep(60)\nfinally:\n    open('snapshot', 'w')\n"

    def stop() -> None:
        while not Path("slow/begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    with pytest.raises(Stopped), stop_at_once():
        run_jobs([Job("slow", "train", (slow,), Path("slow")), job("never")], ONE)
    signal.signal(signal.SIGTERM, handler)
    assert Path("slow/snapshot").exists()
    assert not Path("order").exists()


def test_a_finished_job_whose_cache_is_gone_runs_again() -> None:
    kept, found = Path("labels"), job("cluster")
    found.folder.mkdir()
    kept.touch()
    (found.folder / "summary.json").write_text(
        json.dumps({"command": "train", "arguments": [], "pseudo_labels": str(kept)})
    )
    assert found.summary() is not None
    kept.unlink()
    assert found.summary() is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (" 12%|█▏   | 3/24 [00:01<00:09, 2.3img/s]error: no such file\nFix it.", "error: no such file\n  Fix it."),
        ("3img [00:01, 2.3img/s]error: no such file", "error: no such file"),
        ("error: 1 of 2 failed:\nC = 5: exit code 2: error: too few", "error: 1 of 2 failed:\n  C = 5: exit code 2"),
        (" 9%|▉  | 1/9\rerror: first\n$ again\nRuntimeError: second", "RuntimeError: second"),
    ],
)
def test_an_error_is_found_behind_a_progress_bar_and_in_the_last_try(said: str, told: str) -> None:
    Path("log.txt").write_text(f"\n$ cedm train\n{said}\n")
    assert problem_of(2, Path()).startswith(f"exit code 2: {told}")


def test_processes_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: list(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = resources_of(TrainerSettings("cpu", 4), devices_per_job=2)
    assert (found.slots, found.threads, found.on_ray) == (2, 2, True)
    assert found.settings == ["trainer.accelerator=cpu", "trainer.devices=2"]
    assert not resources_of(TrainerSettings("cpu", "auto"), devices_per_job=2).on_ray
    for devices, words in ((0, "trainer.devices=0"), (1, "devices_per_job=2")):
        with pytest.raises(UserError, match=words):
            resources_of(TrainerSettings("cpu", devices), devices_per_job=2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert found.threads == 1  # as the user says


def test_each_gpu_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch counts them; the numbers that a scheduler gave are kept."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)

    def visible(accelerator: str, devices: object) -> str:
        return resources_of(TrainerSettings(accelerator, devices)).visible

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,4,5")
    assert visible("auto", "auto") == "1,4,5"
    assert visible("gpu", 2) == "1,4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7,8,-1")  # CUDA counts up to the first that is none
    assert visible("gpu", 3) == "6,7,8"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible("gpu", [0, 2]) == "0,2"
    assert resources_of(TrainerSettings("gpu", [2])).environment["CUDA_VISIBLE_DEVICES"] == "2"
    for devices in (4, [3]):
        with pytest.raises(UserError, match="has 3 of the kind cuda"):
            visible("gpu", devices)


def test_without_ray_one_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for settings, address in ((TrainerSettings("cpu", 2), None), (TrainerSettings("cpu", 1), "auto")):
        with pytest.raises(UserError, match=r"pip install 'cluster-conditioned-diffusion\[cluster\]'"):
            resources_of(settings, address=address)
