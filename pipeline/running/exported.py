"""A denoiser in the formats of other libraries, which load it without this package."""

import ast
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from lightning_modules.diffusion.denoiser import CLUSTERS, Denoiser
from lightning_modules.diffusion.networks import ARCHITECTURES
from lightning_modules.diffusion.objective import EDMObjective
from lightning_modules.diffusion.sampler_settings import SamplerSettings
from storage.errors import UserError
from storage.files import write_json

PACKAGE = "lightning_modules.diffusion"
MODEL_FILES = ("unet_table", "layers", "networks", "diffusers_unet")  # each imports those before it alone
HEADER = '''"""The network F(x; c_noise, cluster) of EDM. Of cluster-conditioned-diffusion, Apache-2.0."""

from types import SimpleNamespace as NetworkSettings
'''
INPUTS = ("x", "sigma", "class_labels")


def write_diffusers(denoiser: Denoiser, folder: Path) -> None:
    """A pipeline of `diffusers`: weights, settings, scheduler, and the source of network and pipeline.

    Raises:
        UserError: the network or its preconditioning is of another package.
    """
    objective = type(denoiser.objective)
    foreign = None
    if denoiser.settings.architecture not in ARCHITECTURES:
        foreign = f"the network {denoiser.settings.architecture} is of another package"
    elif (objective.scalings, objective.denoise) != (EDMObjective.scalings, EDMObjective.denoise):
        foreign = f"{objective.__name__} does not precondition as its schedulers do"
    if foreign:
        raise UserError(f"format=diffusers: {foreign}. Set format=onnx or format=torch_export, which hold it whole.")
    weights = denoiser.state_dict()
    frequencies = weights.get("model.map_noise.freqs")
    network = {
        "_class_name": "EDMUNet",
        "network": denoiser.description["network"],
        "sample_size": denoiser.img_resolution,
        "in_channels": denoiser.img_channels,
        "label_dim": denoiser.label_dim,
        "augment_dim": denoiser.augment_dim,
        "noise_frequencies": None if frequencies is None else frequencies.tolist(),
    }
    scheduler = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": denoiser.objective.sigma_data}
    index = {
        "_class_name": ["pipeline", "EDMPipeline"],
        "unet": ["edm_unet", "EDMUNet"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **clusters_of(denoiser),
        "num_inference_steps": 2 * SamplerSettings().num_steps(denoiser.img_resolution) - 1,  # as often as Heun's
    }
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "unet" / "config.json", network)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    source = HEADER + "".join(map(standalone, MODEL_FILES))
    (folder / "unet" / "edm_unet.py").write_text(source, encoding="utf-8")
    (folder / "pipeline.py").write_text(standalone("diffusers_pipeline"), encoding="utf-8")


def standalone(name: str) -> str:
    """The source of a file of `lightning_modules/diffusion`, without what it imports of this package."""
    source = (resources.files(PACKAGE) / f"{name}.py").read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE):
            del lines[node.lineno - 1 : node.end_lineno]
    return "".join(lines)


def write_onnx(denoiser: Denoiser, folder: Path) -> None:
    """`denoiser.onnx`, with the weights in a file beside it.

    Raises:
        UserError: `onnxscript` is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        package = '"cluster-conditioned-diffusion[onnx]"'
        raise UserError(f"format=onnx needs onnxscript, which is not installed. Run: pip install {package}") from error
    program = exported(denoiser)
    names = INPUTS[: 3 if denoiser.label_dim else 2]
    torch.onnx.export(
        program,
        f=folder / "denoiser.onnx",
        input_names=names,
        output_names=["denoised"],
        dynamic_shapes=[{0: "batch"}, *[None] * (len(names) - 1)],  # which only names the axis here
        dynamo=True,
        verbose=False,
    )
    write_json(folder / "config.json", denoiser.description | clusters_of(denoiser))


def write_torch_export(denoiser: Denoiser, folder: Path) -> None:
    """`denoiser.pt2`."""
    torch.export.save(exported(denoiser), folder / "denoiser.pt2")
    write_json(folder / "config.json", denoiser.description | clusters_of(denoiser))


def exported(denoiser: Denoiser) -> ExportedProgram:
    """The graph of D(x; sigma, class_labels), preconditioning and all, for any number of images.

    x `[B, C, H, W]`, sigma `[B]`, and where the denoiser knows clusters, one-hot class_labels `[B, label_dim]`.
    """
    size, label_dim = denoiser.img_resolution, denoiser.label_dim
    inputs = [torch.zeros(2, denoiser.img_channels, size, size), torch.ones(2)]
    if label_dim:
        inputs.append(torch.zeros(2, label_dim))
    batch = {0: Dim("batch")}
    program = torch.export.export(denoiser, tuple(inputs), dynamic_shapes=tuple(batch for _ in inputs))
    for part in program.graph_module.modules():
        if isinstance(part, GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)  # where this package lies on the machine
    return program


def clusters_of(denoiser: Denoiser) -> dict[str, list[float]]:
    """`cluster_frequencies` and `cluster_ids` as JSON holds them; empty where there are none."""
    return {name: denoiser.clusters[name].tolist() if name in denoiser.clusters else [] for name in CLUSTERS}


class Format(NamedTuple):
    """How a format is written, and how Python reads it, with {} for the folder."""

    write: Callable[[Denoiser, Path], None]
    read_by: str


FORMATS = {
    "diffusers": Format(
        write_diffusers,
        'diffusers.DiffusionPipeline.from_pretrained("{0}", custom_pipeline="{0}", trust_remote_code=True)',
    ),
    "onnx": Format(write_onnx, 'onnxruntime.InferenceSession("{0}/denoiser.onnx")'),
    "torch_export": Format(write_torch_export, 'torch.export.load("{0}/denoiser.pt2").module()'),
}
