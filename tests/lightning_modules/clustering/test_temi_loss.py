"""The objectives against golden numbers, the formula written out in float64, and two processes."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lightning_modules.clustering import temi_loss_fast
from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.clustering.objectives import OBJECTIVES, PMILoss, WMILoss
from lightning_modules.clustering.temi_loss import TEMILoss
from lightning_modules.clustering.temi_loss_fast import FastTEMILoss

HEADS, PAIRS, CLUSTERS = 3, 8, 7
SETTINGS = TEMISettings(num_heads=HEADS, num_clusters=CLUSTERS)


class PlainPMILoss(TEMILoss):
    pair_weights = PMILoss.pair_weights


class PlainWMILoss(TEMILoss):
    pair_weights = WMILoss.pair_weights


@pytest.mark.parametrize("objective", [TEMILoss, FastTEMILoss])
@pytest.mark.parametrize("name", ["temi_loss_beta06", "temi_loss_beta1"])
def test_three_steps_equal_the_reference(golden_dir: Path, name: str, objective: type[TEMILoss]) -> None:
    golden = load_file(golden_dir / f"{name}.safetensors")
    with safe_open(golden_dir / f"{name}.safetensors", "pt") as file:
        settings = file.metadata()
    heads, clusters, beta = int(settings["heads"]), int(settings["clusters"]), float(settings["beta"])
    loss = objective(TEMISettings(num_heads=heads, num_clusters=clusters, beta=beta))
    for step in range(3):
        student = golden[f"step{step}.student_logits"].requires_grad_()
        head_losses = loss(student, golden[f"step{step}.teacher_logits"])
        head_losses.mean().backward()
        close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-7)
        close(head_losses, golden[f"step{step}.head_losses"])
        close(student.grad, golden[f"step{step}.student_logits_grad"])
        close(loss.cluster_probs, golden[f"step{step}.cluster_probs_ema"])


def written_out(name: str, beta: float, student: Tensor, teacher: Tensor, mean_q_t: Tensor) -> Tensor:
    """The objectives as the papers print them: one head, one pair, one direction at a time, in float64."""
    q_s, q_t = (student.double() / 0.1).softmax(-1), (teacher.double() / 0.1).softmax(-1)
    pairs = student.shape[1] // 2
    agreement = torch.stack([(q_t[:, i] * q_t[:, i + pairs]).sum(-1) for i in range(pairs)], dim=1)  # [H, P]
    head_losses = []
    for head in range(len(student)):
        total = student.new_zeros((), dtype=torch.float64)
        for i in range(pairs):
            w = {"temi": agreement[:, i].mean(), "wmi": agreement[head, i], "pmi": 1.0, "scan": 1.0}[name]
            for x, other in ((i, i + pairs), (i + pairs, i)):
                product = q_s[head, x] * q_t[head, other]
                total = total - w * (product.sum() if name == "scan" else (product**beta / mean_q_t[head]).sum()).log()
        loss = 0.5 * total / pairs
        if name == "scan":
            mean_q_s = q_s[head].mean(0)
            loss = loss + 5 * (mean_q_s * mean_q_s.log()).sum()
        head_losses.append(loss)
    return torch.stack(head_losses)


@pytest.mark.parametrize(("name", "beta"), [("temi", 0.6), ("temi", 0.8), ("wmi", 1.0), ("pmi", 1.0), ("scan", 1.0)])
def test_objectives_equal_their_formulas(name: str, beta: float) -> None:
    student, teacher = random_logits(seed=1)
    objective = OBJECTIVES[name](replace(SETTINGS, beta=0.8 if beta == 0.8 else 0.6))  # only TEMI heeds beta
    mean_q_t = 0.9 / CLUSTERS + 0.1 * (teacher.double() / 0.1).softmax(-1).mean(1)

    ours, oracle = student.clone().requires_grad_(), student.clone().requires_grad_()
    head_losses = objective(ours, teacher)
    expected = written_out(name, beta, oracle, teacher, mean_q_t)
    head_losses.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(head_losses.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, oracle.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["temi", "wmi", "pmi", "scan"])
@pytest.mark.parametrize("scale", [0.0, 1e3, 1e6])
def test_extreme_logits_stay_finite(name: str, scale: float) -> None:
    objective = OBJECTIVES[name](SETTINGS)
    for step in range(3):
        student, teacher = (scale * logits for logits in random_logits(seed=step))
        student.requires_grad_()
        head_losses = objective(student, teacher)
        head_losses.mean().backward()
        assert head_losses.isfinite().all()
        assert student.grad.isfinite().all()


def test_a_cluster_nobody_uses_for_ten_thousand_steps_does_no_harm() -> None:
    """Its running probability underflows to 0 in float32; a logit that comes back must still give a finite loss."""
    student, teacher = random_logits(seed=0)
    loss = FastTEMILoss(SETTINGS)
    loss.cluster_probs[:, 0] = 0.0
    dead = torch.tensor([-1e5] + [0.0] * (CLUSTERS - 1))
    student.requires_grad_()
    head_losses = loss(student, teacher + dead)
    head_losses.mean().backward()
    assert head_losses.isfinite().all()
    assert student.grad.isfinite().all()


def test_bfloat16_logits_are_computed_in_float32() -> None:
    student, teacher = (logits.bfloat16() for logits in random_logits(seed=2))
    in_half = FastTEMILoss(SETTINGS)(student, teacher)
    assert in_half.dtype == torch.float32
    torch.testing.assert_close(in_half, FastTEMILoss(SETTINGS)(student.float(), teacher.float()))


@pytest.mark.parametrize("name", ["temi", "wmi", "pmi"])
def test_gradient_in_closed_form_is_that_of_the_loss(name: str) -> None:
    student, teacher = (logits[:, ::4].double() for logits in random_logits(seed=3))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: OBJECTIVES[name](SETTINGS)(logits, teacher), student)


def test_heads_one_by_one_equal_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, student, teacher = FastTEMILoss(SETTINGS), *random_logits(seed=4)
    one_by_one = FastTEMILoss(SETTINGS)
    expected = at_once(student, teacher)
    monkeypatch.setattr(temi_loss_fast, "FEW_HEADS_BYTES", {True: 1, False: 1})
    assert len(temi_loss_fast.few_heads(student)) == HEADS
    torch.testing.assert_close(one_by_one(student, teacher), expected)
    torch.testing.assert_close(one_by_one.cluster_probs, at_once.cluster_probs)


@pytest.mark.parametrize(
    ("plain", "fast"), [(TEMILoss, FastTEMILoss), (PlainPMILoss, PMILoss), (PlainWMILoss, WMILoss)]
)
def test_the_fast_way_equals_the_plain_one(plain: type[TEMILoss], fast: type[TEMILoss]) -> None:
    settings = replace(SETTINGS, beta=0.6 if plain is TEMILoss else 1.0)
    objectives = plain(settings), fast(settings)
    for step in range(2):
        student, teacher = random_logits(seed=step)
        copies = [student.clone().requires_grad_() for _ in objectives]
        losses = [objective(logits, teacher) for objective, logits in zip(objectives, copies, strict=True)]
        for loss in losses:
            loss.sum().backward()
        torch.testing.assert_close(losses[0], losses[1])
        torch.testing.assert_close(copies[0].grad, copies[1].grad)
        torch.testing.assert_close(objectives[0].cluster_probs, objectives[1].cluster_probs)


@pytest.mark.parametrize("name", ["temi", "scan"])
def test_two_processes_equal_one(name: str, tmp_path: Path) -> None:
    mp.start_processes(run_share, args=(name, tmp_path), nprocs=2, start_method="fork")
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    objective = OBJECTIVES[name](SETTINGS)
    for step in range(2):
        student, teacher = random_logits(seed=step)
        student.requires_grad_()
        head_losses = objective(student, teacher)
        head_losses.mean().backward()
        losses = torch.stack([share[step]["losses"] for share in shares]).mean(0)
        torch.testing.assert_close(losses, head_losses)
        for rank, share in enumerate(shares):  # DDP divides the sum of the gradients by the number of processes
            torch.testing.assert_close(share[step]["grad"] / 2, student.grad[:, rows_of(rank)])
            if name == "temi":
                torch.testing.assert_close(share[step]["cluster_probs"], objective.cluster_probs)
    if name == "temi":
        assert torch.equal(shares[0][1]["cluster_probs"], shares[1][1]["cluster_probs"])


def run_share(rank: int, name: str, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    objective = OBJECTIVES[name](SETTINGS)
    steps = []
    for step in range(2):
        student, teacher = (logits[:, rows_of(rank)].clone() for logits in random_logits(seed=step))
        student.requires_grad_()
        head_losses = objective(student, teacher)
        head_losses.mean().backward()
        probs = getattr(objective, "cluster_probs", torch.zeros(())).clone()
        steps.append({"losses": head_losses.detach(), "grad": student.grad, "cluster_probs": probs})
    torch.save(steps, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def random_logits(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, HEADS, 2 * PAIRS, CLUSTERS, generator=generator) * 0.2
    return student, teacher


def rows_of(rank: int) -> Tensor:
    """Rows of a process: its half of the images, and their neighbours."""
    mine = torch.arange(PAIRS).chunk(2)[rank]
    return torch.cat([mine, mine + PAIRS])
