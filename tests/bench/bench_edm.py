"""EDM: a training step and sampling of the CIFAR network, and what all else adds to a step."""

import tempfile
import time
from functools import partial

import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from timing import seconds, show
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from datamodules.image_datamodule import ImageBatch
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.sampler import sample
from lightning_modules.edm_module import EDMModule
from lightning_modules.training_settings import TrainingSettings

CIFAR_NETWORK = NetworkSettings()
TINY_NETWORK = NetworkSettings(model_channels=4, channel_mult=[1], num_blocks=1, attn_resolutions=[])


def bench_edm() -> None:
    """On a GPU at full size; else against plain PyTorch with what this CPU can do."""
    if torch.cuda.is_available():
        bench_gpu()
        return
    bench_cpu(batch=16)


def cifar_denoiser(network: NetworkSettings = CIFAR_NETWORK) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(network, 32, 3, label_dim=10, augment_dim=9)


def image_batch(size: int, device: str = "cpu") -> ImageBatch:
    positions = torch.arange(size, device=device)
    pixels = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, device=device)
    return ImageBatch(pixels, positions % 10, positions)


def bench_cpu(batch: int) -> None:
    """Plain float32 eager channels-first PyTorch against channels last, and bf16."""
    images = image_batch(batch)
    x, sigma, labels = torch.randn(batch, 3, 32, 32), torch.ones(batch), torch.eye(10)[images.labels]
    plain = EDMModule(cifar_denoiser(), TrainingSettings(batch_size=batch))
    ours = EDMModule(cifar_denoiser().to(memory_format=torch.channels_last), TrainingSettings(batch_size=batch))

    def step(module: EDMModule, bf16: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            module.loss_of(images).mean().backward()
        module.zero_grad(set_to_none=True)

    @torch.no_grad()
    def denoise(module: EDMModule, bf16: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            module.denoiser(x, sigma, labels)

    bf16_rate = convolution_rate(torch.bfloat16)
    print(f"3×3 convolutions: {convolution_rate(torch.float32):.0f} GFLOP/s in float32, {bf16_rate:.0f} in bf16")
    for what, work in {"step": step, "denoising": denoise}.items():
        usual = seconds(partial(work, plain), repeats=2)
        with FlopCounterMode(display=False) as flops:
            work(plain)
        for name, bf16 in {"ours": False, "ours in bf16": True}.items():
            duration = seconds(partial(work, ours, bf16), repeats=2)
            show(f"EDM {what}, DDPM++ 55.7 M, batch {batch}: plain | {name}", usual, duration)
        bound = usual * bf16_rate * 1e9 / flops.get_total_flops()
        print(f"  with all products at the rate of bf16 convolutions, and all else in no time: {bound:.2f} ×")
        if what == "step":
            bench_overhead(usual)
        plain.eval()
        ours.eval()


def convolution_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a convolution of the network's kind, all by itself."""
    x, weight = torch.randn(16, 256, 32, 32).to(dtype), torch.randn(256, 256, 3, 3).to(dtype)
    x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
    return 2 * x.numel() * weight[:, 0].numel() / seconds(lambda: F.conv2d(x, weight, padding=1), repeats=10) / 1e9


def bench_overhead(step: float) -> None:
    """What Adam, the EMA, and Lightning with its logs add to a step."""
    module = EDMModule(cifar_denoiser(), TrainingSettings(batch_size=16))
    optimizer = module.configure_optimizers()["optimizer"]
    for parameter in module.denoiser.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        optimizer.step()
        module.emas[0].update(module.denoiser, nimg=10_000, batch_size=1024)

    added = seconds(update) + lightning_overhead()
    what = "EDM: Adam, EMA and logs, as a share of the plain step"
    print(f"{what:<58} {'':9} {added:9.3f} s    {added / step:6.1%}")


def lightning_overhead(steps: int = 50) -> float:
    """Seconds that Lightning and its logs add to a step: a tiny network with it, less one without."""
    module, batch = EDMModule(cifar_denoiser(TINY_NETWORK), TrainingSettings(batch_size=1)), image_batch(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=TensorBoardLogger(folder),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader([batch] * steps, batch_size=None)
        start = time.perf_counter()
        trainer.fit(module, loader)
        with_lightning = (time.perf_counter() - start) / steps
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        module.loss_of(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        module.emas[0].update(module.denoiser, nimg=10_000, batch_size=1)

    return with_lightning - seconds(step)


def bench_gpu(batch: int = 512) -> None:
    """Training and sampling in bf16, compiled; utilization is of the matrix-product rate measured here."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    peak = 2 * 8192**3 / seconds(lambda: finished(matrix @ matrix), repeats=5)
    print(f"{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s in bf16 matrix products of 8192³")

    module = EDMModule(cifar_denoiser(), TrainingSettings(batch_size=batch))
    module.to("cuda", memory_format=torch.channels_last)
    images = image_batch(batch, "cuda")
    with FlopCounterMode(display=False) as training_flops:
        module.loss_of(image_batch(1, "cuda")).sum().backward()
    with FlopCounterMode(display=False) as denoising_flops, torch.no_grad():
        module.denoiser(torch.randn(1, 3, 32, 32, device="cuda"), 1.0)
    optimizer = module.configure_optimizers()["optimizer"]
    module.denoiser.compile()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = module.loss_of(images).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        module.emas[0].update(module.denoiser, nimg=10**6, batch_size=batch)
        finished(loss)

    step()  # compiles
    report("training", batch, seconds(step, repeats=10), training_flops.get_total_flops(), peak)

    denoiser, start = module.averaged_denoiser, torch.randn(batch, 3, 32, 32, device="cuda")
    denoiser.compile()
    labels = torch.eye(10, device="cuda")[images.labels]

    def make_images() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            finished(sample(denoiser, start, labels, num_steps=18))

    make_images()
    report("sampling, 18 steps", batch, seconds(make_images, repeats=2), 35 * denoising_flops.get_total_flops(), peak)


def finished(result: torch.Tensor) -> None:
    torch.cuda.synchronize(result.device)


def report(what: str, batch: int, duration: float, flops_per_image: int, peak: float) -> None:
    """One row: rate, utilization, memory."""
    utilization = batch * flops_per_image / duration / peak
    memory = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    print(
        f"{f'EDM {what}, DDPM++ 55.7 M, batch {batch}, bf16, compiled':<58} {batch / duration:9,.0f} images/s, "
        f"{utilization:.0%} of that rate, {memory:.1f} GB",
        flush=True,
    )
