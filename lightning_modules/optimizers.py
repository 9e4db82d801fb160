"""Optimizers by name. Another one is an entry here, its name in `OptimizerSettings`, and a YAML."""

from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import Adam, Optimizer

from lightning_modules.optimizer_settings import OptimizerSettings


def adam(parameters: Iterable[nn.Parameter], lr: float, settings: OptimizerSettings) -> Optimizer:
    """Adam in one fused kernel."""
    beta1, beta2 = settings.betas
    return Adam(parameters, lr=lr, betas=(beta1, beta2), eps=settings.eps, fused=True)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], float, OptimizerSettings], Optimizer]] = {"adam": adam}
