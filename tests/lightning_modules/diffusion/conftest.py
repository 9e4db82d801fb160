"""Reference networks: small ones with published weights' names, and what they compute."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open
from torch import Tensor

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.interop import PublishedNetwork, denoiser_from_edm


class GoldenNetwork(NamedTuple):
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    grad_norms: dict[str, Tensor]
    arguments: dict[str, Any]  # of PublishedNetwork, but for the weights

    def published(self, **changes: Any) -> PublishedNetwork:
        return PublishedNetwork(self.weights, **self.arguments)._replace(**changes)

    def denoiser(self) -> Denoiser:
        return denoiser_from_edm(self.published())


@pytest.fixture(scope="session")
def golden_network(golden_dir: Path) -> Callable[[str], GoldenNetwork]:
    def load(name: str) -> GoldenNetwork:
        path = golden_dir / f"edm_{name}.safetensors"
        if not path.is_file():
            path = Path(os.environ.get("CEDM_TEST_DATA", "")) / ".." / "golden" / path.name
        if not path.is_file():
            pytest.skip(f"{path.name} is not committed: set CEDM_TEST_DATA to the folder beside golden/")
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "input": {}, "output": {}, "grad_norm": {}}
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                group, _, rest = key.partition(".")
                groups[group][rest] = file.get_tensor(key)
            metadata = file.metadata()
        numbers = {key: int(metadata[key]) for key in ("img_resolution", "img_channels", "label_dim", "augment_dim")}
        return GoldenNetwork(*groups.values(), arguments={**numbers, "network": json.loads(metadata["config"])})

    return load
