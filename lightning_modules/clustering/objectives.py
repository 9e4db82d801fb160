"""TEMI and the objectives it is compared with, under one call: (student logits, teacher logits) → loss per head."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.clustering.temi_loss import log_probs, swap_pairs
from lightning_modules.clustering.temi_loss_fast import FastTEMILoss
from lightning_modules.processes import mean_over_processes


class PMILoss(FastTEMILoss):
    """Pointwise mutual information (arXiv 2303.17896): TEMI with β = 1 in which every pair counts the same."""

    def __init__(self, settings: TEMISettings) -> None:
        super().__init__(replace(settings, beta=1.0))

    def pair_weights(self, agreement: Tensor) -> Tensor:
        return torch.ones_like(agreement)


class WMILoss(PMILoss):
    """Weighted mutual information (arXiv 2303.17896): PMI in which each head weights pairs by its own judgement."""

    def pair_weights(self, agreement: Tensor) -> Tensor:
        return agreement  # [H, P]


class SCANLoss(nn.Module):
    """SCAN (arXiv 2005.12320, equation 2) with a teacher on the neighbour's side.

        ℓ_h(x,x′) = −log Σ_c q_s(c|x) q_t(c|x′)
        L_h       = ½ mean over pairs of (ℓ_h(x,x′) + ℓ_h(x′,x)) + entropy_weight · Σ_c q̄_s(c) log q̄_s(c)

    q̄_s: the student's mean probabilities over all images and neighbours of the global batch. The second term, the
    negative entropy of q̄_s, keeps one cluster from taking everything.

    Examples:
        >>> loss = SCANLoss(TEMISettings(entropy_weight=5.0))
        >>> sure = torch.tensor([[10.0, -10.0], [-10.0, 10.0]]).repeat(1, 2, 1)  # two pairs, sure of one cluster each
        >>> loss(sure, sure)  # 0 − 5 ln 2
        tensor([-3.4657])
    """

    def __init__(self, settings: TEMISettings) -> None:
        super().__init__()
        self.student_temperature = settings.student_temperature
        self.teacher_temperature = settings.teacher_temperature
        self.entropy_weight = settings.entropy_weight

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Loss of each head, [H], from logits [H, 2P, C]; see `TEMILoss.forward`."""
        log_q_s = log_probs(student_logits, self.student_temperature)  # [H, 2P, C]
        log_q_t = log_probs(teacher_logits.detach(), self.teacher_temperature)
        consistency = -torch.logsumexp(log_q_s + swap_pairs(log_q_t), dim=-1).mean(dim=-1)  # [H]
        mean_probs = mean_over_processes(log_q_s.exp().mean(dim=1))  # [H, C]
        entropy = torch.special.entr(mean_probs.clamp_min(torch.finfo(torch.float32).tiny)).sum(dim=-1)  # [H]
        return consistency - self.entropy_weight * entropy


OBJECTIVES: dict[str, type[FastTEMILoss] | type[SCANLoss]] = {
    "temi": FastTEMILoss,
    "wmi": WMILoss,
    "pmi": PMILoss,
    "scan": SCANLoss,
}
