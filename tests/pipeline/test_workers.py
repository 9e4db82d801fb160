"""The devices that jobs run on, each in a process of its own."""

import pytest

from datamodules.artifacts import UserError
from pipeline import workers
from pipeline.workers import workers_of


def test_processes_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: set(range(8)))
    found = workers_of("cpu", 3)
    assert [worker.environment for worker in found] == [{"OMP_NUM_THREADS": "2"}] * 3
    assert found[0].settings == ("trainer.accelerator=cpu", "trainer.devices=1")
    with pytest.raises(UserError, match="from 1 on"):
        workers_of("cpu", 0)


def test_each_gpu_is_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch counts them; the numbers that a scheduler gave are kept."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,4,5")
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers_of("auto", "auto")] == ["1", "4", "5"]
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers_of("gpu", 2)] == ["1", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers_of("gpu", -1)] == ["0", "1", "2"]
    assert [worker.name for worker in workers_of("gpu", [0, 2])] == ["GPU 0", "GPU 2"]
    for devices in (4, [3]):
        with pytest.raises(UserError, match="3 GPUs"):
            workers_of("gpu", devices)
