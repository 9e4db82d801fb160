"""Whether the device computes what the CPU and the reference implementations compute."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import arithmetic
from models import SMALL, follow
from runner import Check
from safetensors import safe_open
from torch import Tensor

from datamodules.embeddings.neighbours import find_neighbours
from datamodules.image_datamodule import ImageBatch, ImageDataModule
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.sources import open_source
from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.clustering.objectives import OBJECTIVES
from lightning_modules.diffusion import augment
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.interop import PublishedNetwork, denoiser_from_edm
from lightning_modules.diffusion.objective import EDMObjective
from lightning_modules.diffusion.sampler import sample
from lightning_modules.edm_module import EDMModule
from lightning_modules.training_settings import TrainingSettings
from metrics.frechet import FeatureStatistics
from storage import philox
from storage.philox import Stream

GOLDEN = Path(__file__).parents[1] / "golden"
FLOAT32 = 1e-4  # of the largest value: other sums in another order; TF32 would be ten times that
HALF = {"tf32": 0.01, "bf16": 0.05, "fp16": 0.01}


def golden(check: Check) -> None:
    """Networks, loss, gradients, sampler, augmentation and TEMI's loss against numbers of reference implementations."""
    for path in sorted(GOLDEN.glob("edm_*.safetensors")):
        with check.tried(path.stem):
            golden_network(check, path)
    with check.tried("augmentation"), arithmetic("fp32", check.device):
        tensors, _ = load(GOLDEN / "augment.safetensors", check.device)
        images, labels = augment.apply(tensors["input.images"], tensors["input.parameters"])
        check.expect("augmentation: images", distance(images, tensors["output.images"]), 1e-4)
        check.expect("augmentation: labels", distance(labels, tensors["output.augment_labels"]), 1e-5)
    for path in sorted(GOLDEN.glob("temi_loss_*.safetensors")):
        with check.tried(path.stem):
            golden_temi(check, path)


def golden_network(check: Check, path: Path) -> None:
    """A published network: every output within a part of its largest value that is stated."""
    tensors, meta = load(path, check.device)
    weights, inputs, outputs, norms = (group(tensors, name) for name in ("weights", "input", "output", "grad_norm"))
    sizes = {key: int(meta[key]) for key in ("img_resolution", "img_channels", "label_dim", "augment_dim")}

    def fresh() -> Denoiser:
        on_cpu = {name: value.cpu() for name, value in weights.items()}
        published = PublishedNetwork(on_cpu, **sizes, network=json.loads(meta["config"]))
        return denoiser_from_edm(published).to(check.device)

    def denoised(denoiser: Denoiser) -> Tensor:
        with torch.no_grad():
            return denoiser(inputs["noisy"], inputs["sigma"], inputs["class_labels"], inputs.get("augment_labels"))

    def expect(what: str, actual: Tensor, name: str, at_most: float) -> None:
        check.expect(f"{path.stem}: {what}", relative(actual, outputs[name]), at_most)

    with arithmetic("fp32", check.device):
        denoiser = fresh()
        expect("denoised", denoised(denoiser), "denoised", FLOAT32)
        last = denoised(fresh().to(memory_format=torch.channels_last))
        expect("denoised, channels last", last, "denoised", FLOAT32)
        images = sample(denoiser, inputs["latents"], inputs["class_labels"])
        expect("18 steps of Heun", images, "heun18", FLOAT32)
        arguments = [inputs[key] for key in ("images", "sigma", "noise", "class_labels")]
        per_pixel = EDMObjective()(denoiser, *arguments, inputs.get("augment_labels"))
        expect("loss", per_pixel, "loss_per_pixel", FLOAT32)
        per_pixel.sum().backward()
        found = ((p.grad.norm(), norms[name]) for name, p in denoiser.named_parameters() if p.grad is not None)
        worst = max(float((norm - wanted).abs() / wanted) for norm, wanted in found if wanted > 0)
        check.expect(f"{path.stem}: norms of all gradients", worst, 10 * FLOAT32)
    for precision, at_most in HALF.items():
        with arithmetic(precision, check.device):
            expect(f"denoised, {precision}", denoised(denoiser), "denoised", at_most)


def golden_temi(check: Check, path: Path) -> None:
    tensors, meta = load(path, check.device)
    heads, clusters, beta = int(meta["heads"]), int(meta["clusters"]), float(meta["beta"])
    objective = OBJECTIVES["temi"](TEMISettings(num_heads=heads, num_clusters=clusters, beta=beta)).to(check.device)
    for step in range(3):
        here = group(tensors, f"step{step}")
        student = here["student_logits"].requires_grad_()
        losses = objective(student, here["teacher_logits"])
        losses.mean().backward()
        assert student.grad is not None
        check.expect(f"{path.stem}, step {step}: losses", relative(losses, here["head_losses"]), 1e-5)
        gradient = relative(student.grad, here["student_logits_grad"])
        check.expect(f"{path.stem}, step {step}: gradient", gradient, 1e-5)


def same(check: Check) -> None:
    """Random numbers, transforms, neighbours and feature statistics: the device against the CPU."""
    devices = ("cpu", check.device)
    positions = torch.arange(10**9, 10**9 + 64)
    uniform, normal = (
        [draw(3, Stream.NOISE, positions.to(device), (3, 32, 32)).cpu() for device in devices]
        for draw in (philox.uniform, philox.normal)
    )
    check.expect("uniform random numbers, which are the CPU's bits", distance(*uniform), 0)
    check.expect("normal random numbers", distance(*normal), 1e-6)
    differing = int((normal[0] != normal[1]).sum())
    check.record("normal random numbers whose bits are not the CPU's", table="bits", count=differing)
    drawn = [augment.draw_parameters(0, positions.to(device), 0.5, 32) for device in devices]
    check.expect("parameters of the augmentation", distance(*drawn), 1e-4)
    with check.tried("neighbours"), arithmetic("fp32", check.device):
        values = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
        a, b = (find_neighbours(values, 20, device=device) for device in devices)
        check.expect("similarities of neighbours", distance(a.similarities, b.similarities), 1e-5)
        check.expect("share of other neighbours", float((a.indices != b.indices).double().mean()), 1e-3)
    with check.tried("feature statistics"):
        statistics = []
        for device in devices:
            metric = FeatureStatistics(64).to(device)
            metric.update(values.to(device))
            statistics.append(metric.statistics())
        check.expect("covariance of features", distance(*(found.cov for found in statistics)), 1e-10)


def parity(check: Check) -> None:
    """50 steps on the digits: losses and averaged weights against the CPU's in float32."""
    steps, size = (10, 16) if check.dry else (50, 128)
    losses, weights = trained("cpu", "fp32", steps, size)
    for what, of_losses, of_weights in (
        ("fp32", 1e-3, 1e-3),
        ("fp32, channels last", 1e-3, 1e-3),
        ("tf32", 0.05, 0.02),
        ("bf16", 0.2, 0.05),  # a CPU's bf16 is 0.08 and 0.02 away
    ):
        with check.tried(what):
            found, found_weights = trained(check.device, what, steps, size)
            curve = float(((found - losses).abs() / losses).max())
            check.expect(f"loss of {steps} steps, {what}", curve, of_losses)
            difference = float((found_weights - weights).norm() / weights.norm())
            check.expect(f"averaged weights, {what}", difference, of_weights)
    first, last = float(losses[:5].mean()), float(losses[-5:].mean())
    check.record("loss of the first and the last five steps", table="it learns", first=first, last=last)


def trained(device: str, how: str, steps: int, size: int) -> tuple[Tensor, Tensor]:
    """Losses [steps] and averaged weights of a short training without dropout, in float64 on the CPU."""
    source = open_source(DatasetSettings())
    data = ImageDataModule(source, None, resolution=8, channels=1, batch_size=size)
    settings = TrainingSettings(batch_size=size, lr=2e-3, lr_rampup_kimg=steps * size / 2000, ema_halflife_kimg=10)
    torch.manual_seed(0)
    denoiser = Denoiser(replace(SMALL, dropout=0.0), 8, 1, augment_dim=augment.AUGMENT_DIM)
    module = EDMModule(denoiser, settings).to(device).train()
    if "channels last" in how:
        module.to(memory_format=torch.channels_last)
    configured: Any = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    curve = []
    for step, batch in zip(range(steps), data.train_dataloader(), strict=False):
        with arithmetic(how.partition(",")[0], device):
            loss = module.loss_of(ImageBatch(*(field.to(device) for field in batch))).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        follow(module, step * size, size)
        curve.append(loss.detach())
    averages = [weight.flatten() for weight in module.averaged_denoiser.parameters()]
    return torch.stack(curve).cpu().double(), torch.cat(averages).cpu().double()


def load(path: Path, device: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of golden numbers."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).to(device) for key in file.keys()}, file.metadata()  # noqa: SIM118


def group(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors `name.…`, by the rest of their names."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def distance(actual: Tensor, expected: Tensor) -> float:
    """The largest difference."""
    return float((actual.detach().cpu().double() - expected.detach().cpu().double()).abs().max())


def relative(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return distance(actual, expected) / float(expected.detach().abs().max())
