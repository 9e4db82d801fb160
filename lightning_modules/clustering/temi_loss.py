"""The TEMI objective: maximise the pointwise mutual information of an image's and its neighbour's clusters."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class TEMILoss(nn.Module):
    """TEMI loss of several heads at once (arXiv 2303.17896).

    For a pair (x, x′) with student and teacher probabilities q_s and q_t (softmax of the logits over the temperature):

        w(x,x′)   = mean over heads of Σ_c q_t(c|x) q_t(c|x′)
        ℓ_h(x,x′) = −log Σ_c [q_s(c|x) q_t(c|x′)]^β / q̃_t(c)
        L_h       = ½ mean over pairs of w · (ℓ_h(x,x′) + ℓ_h(x′,x))

    q̃_t is an exponential moving average, from the uniform distribution, of the teacher's mean probabilities over all
    images and neighbours of the global batch; it is updated before the loss. w and q_t carry no gradient. β = 1 is
    pointwise mutual information; β < 1 spreads the images over more clusters.

    Under `torch.distributed` each process hands in its equal share of the pairs: q̃_t is averaged over the processes,
    so the mean of their losses (and what DDP makes of their gradients) is that of one process with all pairs.

    Args:
        num_heads: H.
        num_clusters: C.
        beta: exponent β.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's logits.
        momentum: share of q̃_t that each step keeps.
    """

    cluster_probs: Tensor  # q̃_t [H, C]

    def __init__(
        self,
        num_heads: int,
        num_clusters: int,
        beta: float = 0.6,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.1,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.momentum = momentum
        self.register_buffer("cluster_probs", torch.full((num_heads, num_clusters), 1 / num_clusters))

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Loss of each head; their mean is the training loss.

        Args:
            student_logits: [H, 2P, C]; the first P rows are images, the last P their neighbours in the same order.
            teacher_logits: [H, 2P, C], the same rows.

        Returns:
            [H], float32.
        """
        log_q_s = F.log_softmax(student_logits.float() / self.student_temperature, dim=-1)  # [H, 2P, C]
        log_q_t = F.log_softmax(teacher_logits.detach().float() / self.teacher_temperature, dim=-1)  # [H, 2P, C]
        q_t = log_q_t.exp()
        self._update_cluster_probs(q_t)

        partner_log_q_t = swap_pairs(log_q_t)
        log_mean_q_t = self.cluster_probs.clamp_min(torch.finfo(torch.float32).tiny).log()[:, None]  # [H, 1, C]
        ratio = self.beta * (log_q_s + partner_log_q_t) - log_mean_q_t  # [H, 2P, C]
        pair_losses = -torch.logsumexp(ratio, dim=-1)  # [H, 2P]: ℓ_h(x,x′), then ℓ_h(x′,x)
        return (self.pair_weights(q_t).repeat(1, 2) * pair_losses).mean(dim=-1)  # [H]

    def pair_weights(self, q_t: Tensor) -> Tensor:
        """w(x,x′): how sure the teacher heads together are that the two share a cluster. [H, 2P, C] → [1, P]."""
        return pair_agreement(q_t).mean(dim=0, keepdim=True)

    @torch.no_grad()
    def _update_cluster_probs(self, q_t: Tensor) -> None:
        self.cluster_probs.lerp_(mean_over_processes(q_t.mean(dim=1)), 1 - self.momentum)


def swap_pairs(rows: Tensor) -> Tensor:
    """Each row's partner in its place: [H, 2P, …], images then neighbours → neighbours then images."""
    return rows.roll(rows.shape[1] // 2, dims=1)


def pair_agreement(q_t: Tensor) -> Tensor:
    """Σ_c q_t(c|x) q_t(c|x′): probability that image and neighbour share a cluster. [H, 2P, C] → [H, P]."""
    images, neighbours = q_t.chunk(2, dim=1)
    return (images * neighbours).sum(dim=-1)


def mean_over_processes(local: Tensor) -> Tensor:
    """Mean of a tensor over the processes of `torch.distributed`; the tensor itself where there are none.

    The value is the global mean, the gradient that of the local tensor: since DDP averages gradients over the
    processes, they come out as the gradients of the global mean.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size() + (local - local.detach())  # the bracket is 0, and carries the gradient
