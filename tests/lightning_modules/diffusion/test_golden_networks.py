"""The networks, the preconditioning, the loss and the sampler against the numbers of the reference implementation."""

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.objective import EDMObjective
from lightning_modules.diffusion.sampler import sample


@pytest.fixture(params=["ddpmpp", "ncsnpp", "adm", "adm_two_heads"])
def golden(request, golden_network):
    return golden_network(request.param)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().abs().max() / expected.abs().max())


def denoise(denoiser, inputs) -> Tensor:
    return denoiser(inputs["noisy"], inputs["sigma"], inputs["class_labels"], inputs.get("augment_labels"))


def test_names_are_the_published_ones(golden):
    denoiser = golden.denoiser()
    assert denoiser.state_dict().keys() == golden.weights.keys()
    assert {name for name, _ in denoiser.named_parameters()} == golden.grad_norms.keys()


def test_denoised(golden):
    denoised = denoise(golden.denoiser(), golden.inputs)
    assert denoised.dtype == torch.float32
    assert relative_error(denoised, golden.outputs["denoised"]) < 1e-5


def test_loss_and_gradients(golden):
    denoiser, inputs = golden.denoiser(), golden.inputs
    arguments = [inputs[key] for key in ("images", "sigma", "noise", "class_labels")]
    per_pixel = EDMObjective()(denoiser, *arguments, inputs.get("augment_labels"))
    assert relative_error(per_pixel, golden.outputs["loss_per_pixel"]) < 1e-5
    per_pixel.sum().backward()
    for parameter_name, parameter in denoiser.named_parameters():
        norm = golden.grad_norms[parameter_name]
        torch.testing.assert_close(parameter.grad.norm(), norm, rtol=1e-4, atol=0, msg=parameter_name)


def test_heun_deterministic(golden):
    images = sample(golden.denoiser(), golden.inputs["latents"], golden.inputs["class_labels"])
    assert images.dtype == torch.float64
    assert relative_error(images, golden.outputs["heun18"]) < 1e-5


def test_heun_with_churn(golden):
    images = sample(
        golden.denoiser(),
        golden.inputs["latents"],
        golden.inputs["class_labels"],
        **{"S_churn": 30, "S_tmin": 0.05, "S_tmax": 50, "S_noise": 1.003},
        churn_noise=lambda step: golden.inputs["churn_noise"][step],
    )
    assert relative_error(images, golden.outputs["heun18_churn30"]) < 1e-5


def test_channels_last_computes_the_same(golden):
    denoiser = golden.denoiser().to(memory_format=torch.channels_last)
    inputs = {**golden.inputs, "noisy": golden.inputs["noisy"].to(memory_format=torch.channels_last)}
    assert relative_error(denoise(denoiser, inputs), golden.outputs["denoised"]) < 1e-5


def test_bfloat16_autocast_stays_close(golden):
    denoiser = golden.denoiser()
    network_dtypes = set()
    denoiser.model.register_forward_hook(lambda module, args, output: network_dtypes.add(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        denoised = denoise(denoiser, golden.inputs)
    assert network_dtypes == {torch.bfloat16}
    assert denoised.dtype == torch.float32
    assert relative_error(denoised, golden.outputs["denoised"]) < 0.05


def test_compiles_into_one_graph(golden):
    torch._dynamo.reset()
    compiled = torch.compile(golden.denoiser(), backend="eager", fullgraph=True)
    assert relative_error(denoise(compiled, golden.inputs), golden.outputs["denoised"]) < 1e-5


def test_no_label_means_zeros(golden):
    denoiser, inputs = golden.denoiser(), golden.inputs
    augment_zeros = torch.zeros(len(inputs["noisy"]), denoiser.augment_dim) if denoiser.augment_dim else None
    with_zeros = denoiser(inputs["noisy"], inputs["sigma"], torch.zeros_like(inputs["class_labels"]), augment_zeros)
    torch.testing.assert_close(denoiser(inputs["noisy"], inputs["sigma"]), with_zeros)
    assert relative_error(with_zeros, golden.outputs["denoised"]) > 1e-3  # the labels do matter
