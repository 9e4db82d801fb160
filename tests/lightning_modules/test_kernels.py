"""How many kernels a training step is made of: more of them, and small batches wait for the processor."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from datamodules.image_datamodule import ImageBatch
from lightning_modules.diffusion import augment
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.edm_module import EDMModule

T = TypeVar("T")
NETWORK = NetworkSettings(model_channels=32, channel_mult=[1, 2, 2], num_blocks=1, attn_resolutions=[8], dropout=0.1)


class Kernels(TorchDispatchMode):
    """Counts what a device is given to do, by name: neither other views of the same memory nor memory itself."""

    NOTHING: ClassVar = ("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view")

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns, name = func._schema.returns, func._schema.name.removeprefix("aten::")
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
        self.names[name] += not is_view and name not in self.NOTHING
        return func(*args, **kwargs or {})


def test_a_step_of_the_small_network_has_so_many_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a GPU, where all images are resampled; none of them makes the processor wait for a number."""
    monkeypatch.setattr(augment, "apply", partial(augment.apply, resample_all=True))
    torch.manual_seed(0)
    module = EDMModule(Denoiser(NETWORK, 32, 3, label_dim=10, augment_dim=9)).train()
    configured: Any = module.configure_optimizers()
    optimizer, average = configured["optimizer"], module.emas[0]
    batch = ImageBatch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2), torch.arange(2))
    counts: dict[str, Counter[str]] = {}

    def counted(what: str, work: Callable[[], T]) -> T:
        with Kernels() as kernels:
            result = work()
        counts[what] = kernels.names
        return result

    for _ in range(2):  # Adam's moments are made in the first step
        optimizer.zero_grad(set_to_none=True)
        prepared = counted("prelude", lambda: module.prelude(*batch))
        loss = counted("forward", lambda given=prepared: module.objective(module.denoiser, *given).mean())
        counted("backward", loss.backward)
        counted("optimizer", optimizer.step)
        counted("average", lambda: average.update(module.denoiser, nimg=10**6, batch_size=16))
    most = {"prelude": 850, "forward": 300, "backward": 300, "optimizer": 4, "average": 2}
    assert {what: count.total() for what, count in counts.items() if count.total() > most[what]} == {}
    assert not any(count["_local_scalar_dense"] for count in counts.values())
    assert not any(count["lift_fresh"] for count in counts.values())
