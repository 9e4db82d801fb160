"""TEMI: training steps written the usual way, against all heads at once; and the memory that a step takes."""

import copy
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from timing import seconds, show
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, Dataset

from datamodules.embedding_datamodule import EmbeddingDataModule
from datamodules.embeddings.embeddings import Embeddings
from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.clustering.temi_loss_fast import FEW_HEADS_BYTES
from lightning_modules.temi_module import TEMIModule

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
USUAL_STEPS = 10 if DEVICE == "cuda" else 3  # timed one by one, after one to warm up; the shortest counts
WARM_UP, STEPS = (20, 200) if DEVICE == "cuda" else (4, 4)  # of ours; those timed, together and within one training
BOTTLENECK = 256  # width of what the last layer reads


def bench_temi(
    num_images: int = 50_000, dim: int = 768, clusters: int = 200, heads: int = 50, pairs: int = 1024
) -> None:
    """An epoch of TEMI: head by head from a per-sample loader in float32, against `TEMIModule` under Lightning."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(num_images, dim, generator=generator)
    neighbours = torch.randint(num_images, (num_images, 50), generator=generator)
    steps = num_images // pairs
    usual_steps = usual_way(values, neighbours, heads, clusters, pairs)
    usual = seconds(lambda: next(usual_steps), USUAL_STEPS) * steps
    rates = {}
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        rates[dtype] = matmul_rate(dtype)
        ours = step_seconds(values, neighbours, heads, clusters, pairs, precision) * steps
        where = f"{num_images:,} × {dim}, C = {clusters}, {heads} heads"
        show(f"TEMI epoch, {where}, {precision}", usual, ours)
        share = steps * flops_of_step(dim, clusters, heads, pairs) / ours / rates[dtype]
        print(f"  {share:.0%} of {DEVICE}'s rate of matrix products; from {STEPS} steps of {pairs} pairs, × {steps}")
    gain = rates[torch.bfloat16] / rates[torch.float32]
    print(f"  bf16 products run {gain:.1f} times as fast as float32's on this {DEVICE}, which is what bf16 can gain")
    bench_memory()


def bench_memory(
    clusters: tuple[int, ...] = (4000, 8000), heads: tuple[int, ...] = (4, 8), batches: tuple[int, ...] = (256, 512)
) -> None:
    """What a bf16 step needs, from small ones, and by that for C = 25,000 on a million embeddings with 50 heads."""
    shapes = list(product(clusters, heads, batches))
    peaks = torch.tensor([[peak_of_step(*shape)] for shape in shapes]).double()  # [S, 1]
    sizes = torch.tensor([sizes_of(*shape) for shape in shapes]).double()  # [S, 3]
    # Of peak / peak, so that all steps count alike.
    per_size = torch.linalg.lstsq(sizes / peaks, torch.ones_like(peaks)).solution  # [3, 1]
    error = float((sizes @ per_size / peaks - 1).abs().max())
    per_weight, per_logit, per_logit_of_one = per_size[:, 0].tolist()
    print(
        f"TEMI step in bf16, beside 16 bytes per weight: {per_weight:.1f} bytes per weight of the last layer, "
        f"{per_logit:.1f} per logit, {per_logit_of_one:.1f} per logit of one head; {len(shapes)} steps fit within "
        f"{error:.1%}"
    )
    C, H, N, D = 25_000, 50, 1_000_000, 768
    print(f"  C = {C:,}, {H} heads, {N:,} × {D}, in GB:  batch  last layer  logits  embeddings  all")
    for batch in (512, 1024):
        weights, logits, logits_of_one = sizes_of(C, H, batch)
        # 16 bytes of a weight lie there all the time: student, teacher, and AdamW's two averages.
        parts = [(16 + per_weight) * weights, per_logit * logits + per_logit_of_one * logits_of_one, 4 * N * D]
        layer, all_logits, embeddings, everything = (part / 1e9 for part in (*parts, sum(parts)))
        print(f"{batch:49}{layer:12.1f}{all_logits:8.1f}{embeddings:12.1f}{everything:5.0f}")


def sizes_of(clusters: int, heads: int, batch: int) -> tuple[int, int, int]:
    """Weights of the last layer, logits of a step, and those of one head, whose loss is worked on at a time."""
    return BOTTLENECK * clusters * heads, 2 * batch * clusters * heads, 2 * batch * clusters


@mock.patch.dict(FEW_HEADS_BYTES, {True: 1, False: 1})  # one head at a time, as it is where C is large
def peak_of_step(clusters: int, heads: int, batch: int, dim: int = 64) -> int:
    """Bytes that live at most during a bf16 step, beside weights and optimizer."""
    settings = TEMISettings(num_heads=heads, num_clusters=clusters, batch_size=batch, max_epochs=1)
    module = TEMIModule(settings, dim, steps_per_epoch=1).to(DEVICE)
    optimizer = module.configure_optimizers()["optimizer"]
    embeddings = torch.randn(2 * batch, dim, device=DEVICE)

    def step() -> None:  # in Lightning's order: the gradients of the step before live until after the loss
        with torch.autocast(DEVICE, torch.bfloat16):
            with torch.no_grad():
                teacher_logits = module.teacher(embeddings)
            loss = module.objective(module.student(embeddings), teacher_logits).mean()
        del teacher_logits
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def two_steps() -> None:
        step()  # whose gradients are counted in the second
        step()
        optimizer.zero_grad()  # the profiler takes what outlives it for what later lies at the same address

    two_steps()  # makes AdamW's averages
    return peak_memory(two_steps)


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes of tensors that live at most while `work` runs, beside those from before."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    held = peak = 0
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def usual_way(values: Tensor, neighbours: Tensor, heads: int, clusters: int, pairs: int) -> Iterator[None]:
    """Steps of training as TEMI's published style has them: a module per head, a loss per head, a sample at a time."""
    student = nn.ModuleList(OneHead(values.shape[1], clusters) for _ in range(heads)).to(DEVICE)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    mean_q_t = [torch.full((clusters,), 1 / clusters, device=DEVICE) for _ in range(heads)]
    for images, partners in DataLoader(Pairs(values, neighbours), batch_size=pairs, shuffle=True, drop_last=True):
        embeddings = torch.cat([images, partners]).to(DEVICE)
        with torch.no_grad():
            q_t = [(head(embeddings) / 0.1).softmax(dim=-1).chunk(2) for head in teacher]
        q_s = [(head(embeddings) / 0.1).softmax(dim=-1).chunk(2) for head in student]
        weights = torch.stack([(first * second).sum(dim=-1) for first, second in q_t]).mean(dim=0)
        losses = []
        for head, ((s1, s2), (t1, t2)) in enumerate(zip(q_s, q_t, strict=True)):
            mean_q_t[head] = 0.9 * mean_q_t[head] + 0.1 * torch.cat([t1, t2]).mean(dim=0)
            first = -((s1 * t2) ** 0.6 / mean_q_t[head]).sum(dim=-1).log()
            second = -((s2 * t1) ** 0.6 / mean_q_t[head]).sum(dim=-1).log()
            losses.append(0.5 * (weights * (first + second)).mean())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(0.996).add_(fast, alpha=0.004)
        synchronize()
        yield


class OneHead(nn.Module):
    """MLP, L2 normalisation, weight-normalised linear map."""

    def __init__(self, dim: int, clusters: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, 512), nn.GELU(), nn.Linear(512, 256))
        self.last = weight_norm(nn.Linear(256, clusters, bias=False))

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.last(F.normalize(self.mlp(embeddings), dim=-1))


class Pairs(Dataset):
    """An image's embedding and that of a random neighbour."""

    def __init__(self, values: Tensor, neighbours: Tensor) -> None:
        self.values, self.neighbours = values, neighbours

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        choice = int(torch.randint(self.neighbours.shape[1], ()))
        return self.values[index], self.values[self.neighbours[index, choice]]


class Stopwatch(Callback):
    """Times the steps after those to warm up, without waiting for the device in between."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in (WARM_UP, WARM_UP + STEPS):
            synchronize()
            self.moments.append(time.perf_counter())


def step_seconds(values: Tensor, neighbours: Tensor, heads: int, clusters: int, pairs: int, precision: str) -> float:
    """A step of `TEMIModule` under Lightning's Trainer, the mean of many."""
    mean, std = values.mean(dim=0), values.std(dim=0)
    data = EmbeddingDataModule(Embeddings(values, mean, std, {}), neighbours, pairs, neighbours.shape[1])
    settings = TEMISettings(num_heads=heads, num_clusters=clusters, batch_size=pairs, max_epochs=1)
    module = TEMIModule(settings, data.dim, data.steps_per_epoch)
    stopwatch = Stopwatch()
    Trainer(
        max_steps=WARM_UP + STEPS,
        max_epochs=-1,
        devices=1,
        precision=precision,
        callbacks=[stopwatch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)
    start, end = stopwatch.moments
    return (end - start) / STEPS


def flops_of_step(dim: int, clusters: int, heads: int, pairs: int, hidden: int = 512) -> float:
    """Of the matrix products alone: teacher and student forward, gradients of the weights and of all inputs but one."""
    first, later = dim * hidden, hidden * BOTTLENECK + BOTTLENECK * clusters
    return 2 * heads * 2 * pairs * (3 * first + 4 * later)


def matmul_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of square products, large ones and several at a time on a GPU."""
    size, count = (8192, 10) if DEVICE == "cuda" else (2048, 1)
    left, right = torch.randn(2, size, size, device=DEVICE).to(dtype)

    def products() -> None:
        for _ in range(count):
            left @ right
        synchronize()

    return count * 2 * size**3 / seconds(products)


def synchronize() -> None:
    """Wait until the device has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
