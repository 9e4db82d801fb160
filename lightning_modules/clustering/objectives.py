"""The objectives that TEMI is compared with, under the same call: (student logits, teacher logits) → loss per head."""

import difflib

import torch
from torch import Tensor, nn

from lightning_modules.clustering.temi_loss import TEMILoss, log_probs, mean_over_processes, swap_pairs

OBJECTIVES = ("temi", "wmi", "pmi", "scan")


class WMILoss(TEMILoss):
    """Weighted mutual information (arXiv 2303.17896): TEMI in which each head weights pairs by its own judgement."""

    def pair_weights(self, agreement: Tensor) -> Tensor:
        return agreement  # [H, P]


class PMILoss(TEMILoss):
    """Pointwise mutual information (arXiv 2303.17896): TEMI in which every pair counts the same."""

    def pair_weights(self, agreement: Tensor) -> Tensor:
        return torch.ones_like(agreement)


class SCANLoss(nn.Module):
    """SCAN (arXiv 2005.12320, equation 2) with a teacher on the neighbour's side.

        ℓ_h(x,x′) = −log Σ_c q_s(c|x) q_t(c|x′)
        L_h       = ½ mean over pairs of (ℓ_h(x,x′) + ℓ_h(x′,x)) + entropy_weight · Σ_c q̄_s(c) log q̄_s(c)

    q̄_s: the student's mean probabilities over all images and neighbours of the global batch. The second term, the
    negative entropy of q̄_s, keeps one cluster from taking everything.
    """

    def __init__(
        self, student_temperature: float = 0.1, teacher_temperature: float = 0.1, entropy_weight: float = 5.0
    ) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.entropy_weight = entropy_weight

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Loss of each head, [H], from logits [H, 2P, C]; see `TEMILoss.forward`."""
        log_q_s = log_probs(student_logits, self.student_temperature)  # [H, 2P, C]
        log_q_t = log_probs(teacher_logits.detach(), self.teacher_temperature)
        consistency = -torch.logsumexp(log_q_s + swap_pairs(log_q_t), dim=-1).mean(dim=-1)  # [H]
        mean_probs = mean_over_processes(log_q_s.exp().mean(dim=1))  # [H, C]
        entropy = torch.special.entr(mean_probs.clamp_min(torch.finfo(torch.float32).tiny)).sum(dim=-1)  # [H]
        return consistency - self.entropy_weight * entropy


def build_objective(
    name: str,
    num_heads: int,
    num_clusters: int,
    beta: float = 0.6,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.1,
    momentum: float = 0.9,
    entropy_weight: float = 5.0,
) -> nn.Module:
    """The objective `temi`, `wmi`, `pmi` or `scan`.

    `beta` is TEMI's: WMI and PMI are defined with β = 1, and SCAN has none. SCAN has no `momentum` either, and
    `entropy_weight` is SCAN's alone.

    Raises:
        ValueError: no objective has this name.
    """
    if name == "scan":
        return SCANLoss(student_temperature, teacher_temperature, entropy_weight)
    if name not in OBJECTIVES:
        nearest = difflib.get_close_matches(name, OBJECTIVES, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"there is no clustering objective {name!r}: choose one of {', '.join(OBJECTIVES)}.{hint}")
    objective = {"temi": TEMILoss, "wmi": WMILoss, "pmi": PMILoss}[name]
    return objective(
        num_heads=num_heads,
        num_clusters=num_clusters,
        beta=beta if name == "temi" else 1.0,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        momentum=momentum,
    )
