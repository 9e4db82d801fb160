"""`cedm import-edm`: from a published network to generated images; what is no such network is refused."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import pipeline.commands.import_edm
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.interop import PublishedNetwork

from .conftest import Cedm


@pytest.mark.parametrize(
    ("p_uncond", "code", "said"),
    [(0.1, 0, ""), (0.0, 2, "never saw an image without its label"), (None, 0, "does not tell")],
)
def test_an_imported_network_denoises_as_published_and_generates(
    cedm: Cedm,
    workplace: Path,
    golden_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    p_uncond: float | None,
    code: int,
    said: str,
) -> None:
    """The pickle itself is read in tests/diffusion/test_interop.py; here its content comes from the golden file."""
    with safe_open(golden_dir / "edm_ddpmpp.safetensors", framework="pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {name.removeprefix("weights."): t.float() for name, t in tensors.items() if name.startswith("weights.")}
    sizes = [int(meta[name]) for name in ("img_resolution", "img_channels", "label_dim", "augment_dim")]
    network = {key: value for key, value in json.loads(meta["config"]).items() if key != "label_dropout"}
    content = PublishedNetwork(weights, *sizes, network, 0.5, p_uncond)
    monkeypatch.setattr(pipeline.commands.import_edm, "read_edm_pickle", lambda path: content)
    Path("published.pkl").write_bytes(b"content")

    result = cedm("import_edm", "pickle=published.pkl")
    assert result.code == 0, result.err
    (folder,) = workplace.glob("runs/published/import-edm/*")
    denoiser = Denoiser.from_pretrained(folder / "denoiser.safetensors")
    inputs = [tensors[f"input.{name}"] for name in ("noisy", "sigma", "class_labels", "augment_labels")]
    torch.testing.assert_close(denoiser(*inputs), tensors["output.denoised"].float(), rtol=1e-4, atol=1e-5)
    generated = cedm("generate", f"ckpt={folder}", "num=3", "steps=2", "clusters=[4]", "run_dir=images")
    assert generated.code == 0, generated.err

    guided = cedm("generate", f"ckpt={folder}", "num=2", "steps=2", "guidance=2", "run_dir=guided")
    assert (guided.code, said in guided.err) == (code, True), guided.err
    assert ("does not tell" in guided.err) == (p_uncond is None)


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("content", "expected"), [(pickle.dumps(Canary()), "mkdir"), (b"not a pickle", "network.pkl"), (b"", "network.pkl")]
)
def test_anything_else_is_refused_and_not_run(cedm: Cedm, workplace: Path, content: bytes, expected: str) -> None:
    Path("network.pkl").write_bytes(content)
    result = cedm("import_edm", "pickle=network.pkl")
    assert (result.code, expected in result.err) == (2, True), result.err
    assert not Path("executed").exists()
    assert not list(workplace.glob("runs/**/denoiser.safetensors"))
