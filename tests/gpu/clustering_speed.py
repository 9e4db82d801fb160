"""How fast images become embeddings, neighbours and clusters."""

import math
import time
from functools import partial

import torch
from bench_embed import BASE, TINY, jpeg_folder, network_alone, save_vit
from bench_temi import flops_of_step, step_seconds
from measuring import matrix_rate, peak_gb, record_kernels, seconds, synchronize
from runner import Check
from torch.utils.flop_counter import FlopCounterMode

from datamodules.backbones.backbone_base import prepare
from datamodules.backbones.backbones import build_backbone
from datamodules.embeddings.neighbours import find_neighbours
from datamodules.embeddings.shards import embed_shards, shards_of
from datamodules.images.images import decode
from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.temi_module import TEMIModule
from storage.cores import available_cores

IMAGENET = 1_281_167


def temi(check: Check) -> None:
    """TEMI with 50 heads and 200 clusters on 50,000 embeddings of 768, 1,024 pairs in a step."""
    num, dim, clusters, heads, pairs = (2000, 32, 20, 2, 64) if check.dry else (50_000, 768, 200, 50, 1024)
    values, neighbours = torch.randn(num, dim), torch.randint(num, (num, 50))
    for precision, short in (("bf16-mixed", "bf16"), ("32-true", "fp32")):
        with check.tried(precision):
            duration = step_seconds(values, neighbours, heads, clusters, pairs, precision)
            rate = flops_of_step(dim, clusters, heads, pairs) / duration
            check.record(
                f"{precision}, under Lightning",
                table="steps",
                ms=round(1e3 * duration, 2),
                TFLOP_per_s=round(rate / 1e12, 1),
                of_matrix_rate=round(rate / matrix_rate(check, short), 3),
                epoch_s=round(duration * (num // pairs), 2),
                peak_GB=peak_gb(check.device),
            )
    with check.tried("kernels"):
        settings = TEMISettings(num_heads=heads, num_clusters=clusters, batch_size=pairs)
        module = TEMIModule(settings, dim, steps_per_epoch=num // pairs).to(check.device)
        embeddings = torch.randn(2 * pairs, dim, device=check.device)

        def step() -> None:
            with torch.autocast(check.device, torch.bfloat16):
                with torch.no_grad():
                    teacher_logits = module.teacher(embeddings)
                loss = module.objective(module.student(embeddings), teacher_logits).mean()
            loss.backward()
            module.zero_grad()

        check.record("bf16, loss and gradients", table="steps", ms=round(1e3 * seconds(step, check), 2))
        record_kernels(check, "TEMI, loss and gradients in bf16", step, rows=10)


def neighbours(check: Check) -> None:
    """The 50 nearest neighbours of each of N embeddings of 768, exactly."""
    taken: dict[int, float] = {}
    for count in (500, 1000) if check.dry else (100_000, 200_000, 400_000):
        with check.tried(f"{count:,}"):
            values = torch.randn(count, 32 if check.dry else 768, device=check.device)
            synchronize(check.device)
            start = time.perf_counter()
            find_neighbours(values, 50, device=check.device)  # whose result lies on the CPU
            taken[count] = time.perf_counter() - start
            check.record(f"{count:,}", table="images", seconds=round(taken[count], 2), peak_GB=peak_gb(check.device))
    if len(taken) > 1:
        (few, short), (many, long) = list(taken.items())[-2:]
        exponent = math.log(long / short) / math.log(many / few)
        minutes = long * (IMAGENET / many) ** 2 / 60
        check.record("N to this power", table="growth", exponent=round(exponent, 2))
        check.record(f"{IMAGENET:,}, by N² from the largest", table="growth", minutes=round(minutes, 1))


def embed(check: Check) -> None:
    """A ViT-B/16 with random weights on JPEGs of 256 pixels: the network alone, and from disk to disk."""
    count, batch, size = (32, 8, TINY) if check.dry else (4096, 256, BASE)
    workers = 0 if check.dry else max(1, len(available_cores()) - 1)
    source = jpeg_folder(check.scratch / "jpegs", count, 256)
    backbone = build_backbone(save_vit(check.scratch / "vit", size), 224, 3).to(check.device)
    images = [decode(source, row, None, 3) for row in range(batch)]
    start = time.perf_counter()
    inputs = prepare(backbone.preparation, images)
    preparing = batch / (time.perf_counter() - start)
    inputs = [part.to(check.device) for part in inputs]
    with FlopCounterMode(display=False) as counter:
        backbone.features_of([part[:1] for part in inputs])
    for precision, short in (("bf16-mixed", "bf16"), ("32-true", "fp32")):
        with check.tried(precision):
            alone = seconds(partial(network_alone, backbone, inputs, 1, precision), check, repeats=3, warm_up=1)
            used = counter.get_total_flops() * batch / alone / matrix_rate(check, short)
            row = {"images_per_s": round(batch / alone), "of_matrix_rate": round(used, 3)}
            check.record(f"the network alone, {precision}", table="rates", **row)
    check.record("preparation alone, on one core", table="rates", images_per_s=round(preparing))
    (check.scratch / "shards").mkdir()
    start = time.perf_counter()
    embed_shards(source, backbone, check.scratch / "shards", shards_of(count), batch, workers, "bf16-mixed")
    rate = round(count / (time.perf_counter() - start))
    check.record(f"from disk to disk, {workers} workers, bf16-mixed", table="rates", images_per_s=rate)
