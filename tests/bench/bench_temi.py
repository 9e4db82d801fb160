"""TEMI: training steps written the usual way, against all heads at once; and the memory that a step takes."""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from lightning import Trainer
from timing import seconds, show
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, Dataset

from datamodules.embedding_datamodule import EmbeddingDataModule
from datamodules.embeddings import Embeddings
from lightning_modules.clustering.temi_loss import TEMILoss
from lightning_modules.temi_module import TEMIModule

STEPS = 3  # timed, after one to warm up; the shortest counts


def bench_temi(
    num_images: int = 50_000, dim: int = 768, clusters: int = 200, heads: int = 50, pairs: int = 1024
) -> None:
    """An epoch of TEMI: head by head from a per-sample loader in float32, against `TEMIModule` under Lightning."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(num_images, dim, generator=generator)
    neighbours = torch.randint(num_images, (num_images, 50), generator=generator)
    steps = num_images // pairs
    usual_steps = usual_way(values, neighbours, heads, clusters, pairs)
    usual = seconds(lambda: next(usual_steps), STEPS) * steps
    on_gpu = torch.cuda.is_available()
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        ours = step_seconds(values, neighbours, heads, clusters, pairs, precision) * steps
        where = f"{num_images:,} × {dim}, C = {clusters}, {heads} heads"
        show(f"TEMI epoch, {where}, {precision}", usual, ours)
        share = (
            steps * flops_of_step(dim, clusters, heads, pairs) / ours / matmul_rate(dtype, "cuda" if on_gpu else "cpu")
        )
        print(
            f"  {share:.0%} of this machine's rate of matrix products; from {STEPS} steps of {pairs} pairs, × {steps}"
        )
    bench_memory()


def bench_memory() -> None:
    """Bytes that live at most during a step, beside the weights, per logit: the loss of many clusters, in bf16."""
    for clusters in (1000, 4000):
        heads, rows = 4, 512
        logits = torch.randn(heads, rows, clusters).bfloat16().requires_grad_()
        with torch.profiler.profile(profile_memory=True) as profile:
            TEMILoss(heads, clusters)(logits, logits.detach()).mean().backward()
        held = peak = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        print(f"TEMI loss, C = {clusters:,}: {peak / logits.numel():.1f} bytes per logit, beside the two bf16 logits")


def usual_way(values: Tensor, neighbours: Tensor, heads: int, clusters: int, pairs: int) -> Iterator[None]:
    """Steps of training as TEMI's published style has them: a module per head, a loss per head, a sample at a time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = nn.ModuleList(OneHead(values.shape[1], clusters) for _ in range(heads)).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    mean_q_t = [torch.full((clusters,), 1 / clusters, device=device) for _ in range(heads)]
    for images, partners in DataLoader(Pairs(values, neighbours), batch_size=pairs, shuffle=True, drop_last=True):
        embeddings = torch.cat([images, partners]).to(device)
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
        if device == "cuda":
            torch.cuda.synchronize()
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


def step_seconds(values: Tensor, neighbours: Tensor, heads: int, clusters: int, pairs: int, precision: str) -> float:
    """A step of `TEMIModule` under Lightning's Trainer: the difference between runs of different length."""
    mean, std = values.mean(dim=0), values.std(dim=0)
    data = EmbeddingDataModule(Embeddings(values, mean, std, {}), neighbours, pairs, neighbours.shape[1])

    def train(steps: int) -> None:
        module = TEMIModule(heads, values.shape[1], clusters, pairs, data.steps_per_epoch, max_epochs=1)
        Trainer(
            max_steps=steps,
            max_epochs=-1,
            devices=1,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, data)

    short = seconds(lambda: train(1), repeats=1)
    return (seconds(lambda: train(1 + STEPS), repeats=1, warm_up=False) - short) / STEPS


def flops_of_step(dim: int, clusters: int, heads: int, pairs: int, hidden: int = 512, bottleneck: int = 256) -> float:
    """Of the matrix products alone: teacher and student forward, gradients of the weights and of all inputs but one."""
    first, later = dim * hidden, hidden * bottleneck + bottleneck * clusters
    return 2 * heads * 2 * pairs * (3 * first + 4 * later)


def matmul_rate(dtype: torch.dtype, device: str, size: int = 2048) -> float:
    """Floating-point operations per second of a square product."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)

    def product() -> None:
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / seconds(product)
