"""Exported models denoise as they did, in a process that has nothing of this project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.objective import EDMObjective
from lightning_modules.diffusion.sampler import sample
from pipeline.running import exported
from pipeline.running.exported import FORMATS

from .conftest import Cedm

SIGMAS = (0.002, 0.1, 0.5, 3.0, 80.0)
SHARES = [0.6, 0.1, 0.3]
# Reads folders of a format, and compares each with what its model made.
READER = """
import json, sys, torch
sys.modules.update(dict.fromkeys(["callbacks", "datamodules", "lightning_modules", "metrics", "pipeline", "storage"]))
form, *folders = sys.argv[1:]
for folder in folders:
    known = torch.load(f"{folder}.expected")
    if form == "onnx":
        import onnxruntime
        session = onnxruntime.InferenceSession(f"{folder}/denoiser.onnx", providers=["CPUExecutionProvider"])
        def denoise(*inputs):
            names = [own.name for own in session.get_inputs()]
            found = session.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})
            return torch.from_numpy(found[0])
    if form == "diffusers":
        from diffusers import DiffusionPipeline, EDMEulerScheduler
        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
        assert not pipe.unet.training
        def denoise(x, sigma, labels=None):
            indices = None if labels is None or not labels.any() else labels.argmax(1)
            own, sigma = pipe.scheduler, sigma[0]
            output = pipe.unet(own.precondition_inputs(x, sigma), own.precondition_noise(sigma), indices).sample
            return own.precondition_outputs(x, output, sigma)
    with torch.no_grad():
        for *inputs, denoised in known["denoised"]:
            torch.testing.assert_close(denoise(*inputs), denoised, rtol=1e-4, atol=1e-4)
    if form == "diffusers":
        clusters = pipe.config.cluster_ids
        pipe.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
        given = {"class_labels": known["clusters"], "latents": known["latents"], "num_inference_steps": 9}
        (made,) = pipe(**given, output_type="pt", return_dict=False)
        torch.testing.assert_close(made, known["euler"], rtol=0, atol=1e-4)
        if clusters:
            drawn = pipe.labels(5000, None, torch.Generator().manual_seed(0), "cpu").bincount() / 5000
            torch.testing.assert_close(drawn, torch.tensor([0.6, 0.1, 0.3]), rtol=0, atol=0.02)
        image, = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=2).images
        assert image.size == (8, 8)
        low = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
        assert low(num_inference_steps=2, output_type="pt").images.isfinite().all()
        x, sigma, *_ = known["denoised"][0]
        with torch.no_grad():
            exact, near = (own.unet(x.to(own.unet.dtype), sigma.log() / 4).sample.float() for own in (pipe, low))
        assert low.unet.dtype == torch.bfloat16 and (near - exact).norm() < 0.05 * exact.norm()
print("read")
"""


def model_of(architecture: str, label_dim: int, path: Path) -> Denoiser:
    """An untrained denoiser of the clusters 2, 5 and 7, or of none, whose images nevertheless differ."""
    torch.manual_seed(0)
    network = NetworkSettings(architecture, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
    objective = EDMObjective(sigma_data=0.6)
    denoiser = Denoiser(network, 8, 1, label_dim, augment_dim=9, objective=objective).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if label_dim:
        denoiser.cluster_frequencies, denoiser.cluster_ids = torch.tensor(SHARES), torch.tensor([2, 5, 7])
    denoiser.save_pretrained(path)
    return denoiser


def expect(denoiser: Denoiser, file: Path) -> None:
    """Write what the model makes: of each sigma, of several numbers of images, with labels and without."""
    known: list[tuple[Tensor, ...]] = []
    for number, sigma in enumerate(SIGMAS):
        x, sigmas = sigma * torch.randn(number + 1, 1, 8, 8), torch.full((number + 1,), sigma)
        labels = torch.eye(3)[torch.arange(number + 1) % 3]
        given = [(labels,), (torch.zeros_like(labels),)] if denoiser.label_dim else [()]
        known += [(x, sigmas, *one, denoiser(x, sigmas, *one).detach()) for one in given]
    latents = torch.randn(3, 1, 8, 8)
    start = latents * (1 + 1 / 80**2) ** 0.5  # diffusers adds noise to images of unit variance
    labels = torch.eye(3)[[2, 0, 1]] if denoiser.label_dim else None
    euler = sample(denoiser, start, labels, solver="euler", num_steps=9)
    clusters = [7, 2, 5] if denoiser.label_dim else None
    images = (euler.float() / 2 + 0.5).clamp(0, 1)
    torch.save({"denoised": known, "latents": latents, "clusters": clusters, "euler": images}, file)


def refuse_places(folder: Path) -> None:
    """Nothing in there tells where this package, or another, lies on this machine."""
    for file in folder.rglob("*.*"):
        for place in (Path(exported.__file__).parents[2], Path(torch.__file__).parents[1]):
            assert str(place).encode() not in file.read_bytes(), (file, place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "models"), [("diffusers", {"ddpmpp": 3, "ncsnpp": 0, "adm": 3}), ("onnx", {"ddpmpp": 3})]
)
def test_an_exported_model_is_read_without_this_project(
    cedm: Cedm, workplace: Path, form: str, models: dict[str, int]
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    for architecture, label_dim in models.items():
        expect(model_of(architecture, label_dim, Path(architecture)), Path(architecture, f"{form}.expected"))
        assert cedm("export", f"run={architecture}", f"format={form}").code == 0
        refuse_places(Path(architecture, form))
    folders = [str(workplace / architecture / form) for architecture in models]
    environment = os.environ | {"HF_HOME": str(workplace / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", READER, form, *folders]
    read = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert read.stdout.endswith("read\n"), read.stderr


def test_an_exported_graph_takes_any_number_of_images(cedm: Cedm, model: Path) -> None:
    denoiser = Denoiser.from_pretrained(model.rename("other.safetensors"))
    result = cedm("export", "run=other.safetensors", "format=torch_export", "folder=new/b c")
    assert (result.code, 'torch.export.load("new/b c/denoiser.pt2")' in result.out) == (0, True), result.err
    refuse_places(Path("new"))
    read = torch.export.load("new/b c/denoiser.pt2").module()
    for count in (1, 5):
        given = torch.randn(count, 1, 8, 8), torch.rand(count) + 0.1, torch.eye(3)[torch.arange(count) % 3]
        torch.testing.assert_close(read(*given), denoiser(*given))
    assert json.loads(Path("new/b c/config.json").read_text())["cluster_ids"] == [2, 5, 7]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["format=tensorrt"], "format=tensorrt: one of diffusers, onnx, torch_export is expected"),
        (["folder=taken"], "folder=taken: it is there already"),
        (["folder=denoiser.safetensors"], "it is there already"),
        (["folder=link"], "it is there already"),
        (['folder="a=b"'], "a name without = is expected"),
        (["run=taken"], "run=taken: there is no taken/denoiser.safetensors"),
        (["run=taken/file"], "file"),
        (["folder=/proc/new"], "/proc" if os.name == "posix" else "one of"),
        (["format=onnx"], 'pip install "cluster-conditioned-diffusion[onnx]"'),
    ],
)
def test_mistakes_are_told_in_one_message(
    cedm: Cedm, model: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    Path("taken").mkdir()
    Path("taken/file").write_text("a user's")
    Path("link").symlink_to("nowhere")
    before = {*Path().rglob("*")}
    result = cedm("export", f"run={model}", *words)
    assert (result.code, told in result.err) == (2, True), result.err
    assert {*Path().rglob("*")} == before


def test_what_diffusers_cannot_hold_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(EDMObjective):
        def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return super().scalings(2 * sigma)

    denoiser = Denoiser.from_pretrained(model)
    denoiser.objective = Other()
    with pytest.raises(Exception, match="Other does not precondition"):
        FORMATS["diffusers"].write(denoiser, tmp_path)
    denoiser.objective = EDMObjective()
    monkeypatch.setattr(exported, "ARCHITECTURES", {})
    with pytest.raises(Exception, match="the network ddpmpp is of another package"):
        FORMATS["diffusers"].write(denoiser, tmp_path)
