"""What a run will cost, said before it starts."""

import copy
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.image_datamodule import ImageBatch
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.edm_module import EDMModule
from lightning_modules.training_settings import TrainingSettings
from pipeline.running.cost import Cost, duration, measure_cost
from pipeline.running.models import passes_of
from storage.errors import UserError

CPU = torch.device("cpu")


def test_hours_and_device_hours() -> None:
    cost = Cost(images=200_000_000, images_per_s=5000, measured_batch=128, num_devices=8, device="cuda")
    assert cost.hours == pytest.approx(200e6 / 5000 / 3600)
    assert "200,000 kimg at 5,000 images/s" in str(cost)
    assert "11 hours" in str(cost)
    assert "88.9 GPU-hours" in str(cost)
    assert cost.warning is None


def test_a_cpu_is_not_meant_for_200_mimg() -> None:
    cost = Cost(images=200_000_000, images_per_s=1.6, measured_batch=4, num_devices=1, device="cpu")
    assert cost.warning is not None
    assert "4 years" in cost.warning
    assert "training.duration_kimg=5.76;" in cost.warning
    small = Cost(images=150_000, images_per_s=900, measured_batch=128, num_devices=1, device="cpu")
    assert small.warning is None


@pytest.mark.parametrize(
    ("hours", "words"), [(0.01, "36 s"), (0.5, "30 min"), (5, "5 hours"), (100, "4 days"), (24 * 365 * 9, "9 years")]
)
def test_durations_as_a_person_says_them(hours: float, words: str) -> None:
    assert duration(hours) == words


class SlowStep(EDMModule):
    """Its optimizer takes a tenth of a second for a step."""

    def configure_optimizers(self) -> Any:
        return {"optimizer": SimpleNamespace(step=lambda: time.sleep(0.1))}


def module_and_batch(kind: type[EDMModule] = EDMModule) -> tuple[EDMModule, ImageBatch]:
    network = NetworkSettings(model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=0.1)
    module = kind(Denoiser(network, 8, 1, label_dim=0, augment_dim=9), TrainingSettings(batch_size=16))
    return module, ImageBatch(torch.zeros(16, 1, 8, 8, dtype=torch.uint8), torch.full((16,), -1), torch.arange(16))


def test_measuring_leaves_the_module_and_the_random_state_alone() -> None:
    module, batch = module_and_batch()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    cost = measure_cost(module, batch, CPU, 2, 1000, "32-true")
    assert 0 < cost.images_per_s < 1e7
    assert cost.num_devices == 2
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_optimizer_steps_and_waiting_for_images_cost_too() -> None:
    module, batch = module_and_batch(SlowStep)
    alone = measure_cost(module, batch, CPU, 1, 1000, "32-true", accumulate=4)
    assert 0.1 * 16 / 0.025 < alone.images_per_s < 16 / 0.025  # a quarter of a step for each pass
    loading = measure_cost(module, batch, CPU, 1, 1000, "32-true", loading=16.0)
    assert 0.9 < loading.images_per_s < 1
    meanwhile = measure_cost(module, batch, CPU, 1, 1000, "32-true", loading=16.0, num_workers=4)
    assert meanwhile.images_per_s == pytest.approx(4)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_compiled_network_is_measured_compiled(monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
    """In the way in which it will be trained, each pass begun as there."""
    begun: list[None] = []

    def compile_to_slow_code(self: Any, device: torch.device, cuda_graphs: bool = False) -> None:
        assert cuda_graphs == graphs
        self.cuda_graphs = cuda_graphs

        def slow(*arguments: Any, **others: Any) -> Any:
            time.sleep(0.2)
            return self.denoiser.forward(*arguments, **others)

        self.denoiser._compiled_call_impl = slow

    monkeypatch.setattr(EDMModule, "compile_pass", compile_to_slow_code)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(None))
    module, batch = module_and_batch()
    module.compile_pass(CPU, graphs)
    assert 8 < measure_cost(module, batch, CPU, 1, 1000, "32-true").images_per_s < 80
    assert (len(begun) >= 3) == graphs


@pytest.mark.parametrize(
    ("batch", "world", "largest", "passes"),
    [(1024, 1, 128, 8), (1024, 4, 128, 2), (1024, 8, 128, 1), (96, 1, 64, 2), (90, 1, 64, 2), (64, 2, None, 1)],
)
def test_the_fewest_passes_that_fit(batch: int, world: int, largest: int | None, passes: int) -> None:
    assert passes_of(TrainingSettings(batch_size=batch, max_batch_per_device=largest), world) == passes


def test_a_batch_that_falls_into_tiny_passes_is_refused() -> None:
    with pytest.raises(UserError, match=r"training.batch_size=1021: .* training.batch_size=1024"):
        passes_of(TrainingSettings(batch_size=1021, max_batch_per_device=128), 1)
    with pytest.raises(UserError, match=r"cannot be shared by 3 devices"):
        passes_of(TrainingSettings(batch_size=64, max_batch_per_device=None), 3)
