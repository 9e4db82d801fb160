"""The TEMI objective: maximise the pointwise mutual information of an image's and its neighbour's clusters."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.processes import mean_over_processes


class TEMILoss(nn.Module):
    """TEMI loss of several heads at once (arXiv 2303.17896); `temi_loss_fast` computes the same faster.

    For a pair (x, x′) with student and teacher probabilities q_s and q_t (softmax of the logits over the temperature):

        w(x,x′)   = mean over heads of Σ_c q_t(c|x) q_t(c|x′)
        ℓ_h(x,x′) = −log Σ_c [q_s(c|x) q_t(c|x′)]^β / q̃_t(c)
        L_h       = ½ mean over pairs of w · (ℓ_h(x,x′) + ℓ_h(x′,x))

    q̃_t is an exponential moving average, from the uniform distribution, of the teacher's mean probabilities over all
    images and neighbours of the global batch; it is updated before the loss. w and q_t carry no gradient. β = 1 is
    pointwise mutual information; β < 1 spreads the images over more clusters.

    Under `torch.distributed` each process hands in its equal share of the pairs: q̃_t is averaged over the processes,
    so the mean of their losses (and what DDP makes of their gradients) is that of one process with all pairs.

    Examples:
        >>> loss = TEMILoss(TEMISettings(num_heads=2, num_clusters=2, beta=1.0))
        >>> sure = torch.tensor([[10.0, -10.0], [-10.0, 10.0]]).repeat(2, 2, 1)  # two pairs, sure of one cluster each
        >>> loss(sure, sure)  # −ln 2, as far down as two clusters go
        tensor([-0.6931, -0.6931])
    """

    cluster_probs: Tensor  # q̃_t [H, C]

    def __init__(self, settings: TEMISettings) -> None:
        super().__init__()
        self.beta = settings.beta
        self.student_temperature = settings.student_temperature
        self.teacher_temperature = settings.teacher_temperature
        self.momentum = settings.probs_momentum
        uniform = torch.full((settings.num_heads, settings.num_clusters), 1 / settings.num_clusters)
        self.register_buffer("cluster_probs", uniform)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Loss of each head; their mean is the training loss.

        Args:
            student_logits: [H, 2P, C]; the first P rows are images, the last P their neighbours in the same order.
            teacher_logits: [H, 2P, C], the same rows.

        Returns:
            [H], float32.
        """
        log_q_s = log_probs(student_logits, self.student_temperature)  # [H, 2P, C]
        log_q_t = log_probs(teacher_logits.detach(), self.teacher_temperature)
        q_t = log_q_t.exp()
        self.update_cluster_probs(q_t.mean(dim=1))
        log_u = self.beta * (log_q_s + swap_pairs(log_q_t)) - self.log_cluster_probs()  # [H, 2P, C]
        weights = self.pair_weights(pair_agreement(q_t)).repeat(1, 2)  # [1 or H, 2P]
        return -(weights * log_u.logsumexp(dim=-1)).mean(dim=1)

    def pair_weights(self, agreement: Tensor) -> Tensor:
        """w(x,x′): how sure the teacher heads together are that the two share a cluster. [H, P] → [1, P]."""
        return agreement.mean(dim=0, keepdim=True)

    def update_cluster_probs(self, mean_q_t: Tensor) -> None:
        """Move q̃_t towards this process's mean probabilities [H, C], averaged over all processes."""
        self.cluster_probs.lerp_(mean_over_processes(mean_q_t).to(self.cluster_probs.dtype), 1 - self.momentum)

    def log_cluster_probs(self) -> Tensor:
        """log q̃_t, finite also where it underflows to 0; [H, 1, C]."""
        return self.cluster_probs.clamp_min(torch.finfo(torch.float32).tiny).log()[:, None]


def log_probs(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature), in float32 or better."""
    return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)


def swap_pairs(rows: Tensor) -> Tensor:
    """Each row's partner in its place: [H, 2P, …], images then neighbours → neighbours then images."""
    return rows.roll(rows.shape[1] // 2, dims=1)


def pair_agreement(q_t: Tensor) -> Tensor:
    """Σ_c q_t(c|x) q_t(c|x′): probability that image and neighbour share a cluster. [H, 2P, C] → [H, P]."""
    images, neighbours = q_t.chunk(2, dim=1)
    return (images * neighbours).sum(dim=-1)
