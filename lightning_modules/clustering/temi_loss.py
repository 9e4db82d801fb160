"""The TEMI objective: maximise the pointwise mutual information of an image's and its neighbour's clusters."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# What one float32 tensor [heads, rows, clusters] may take: a part of a CPU's cache; many kernels' worth on a GPU.
FEW_HEADS_BYTES = {True: 1 << 21, False: 1 << 28}


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
        teacher_logits = teacher_logits.detach()
        agreement, mean_q_t = self._ask_teacher(teacher_logits)  # [H, P], [H, C]
        self.cluster_probs.lerp_(mean_over_processes(mean_q_t).to(self.cluster_probs.dtype), 1 - self.momentum)
        head_losses: Tensor = WeightedPairLosses.apply(
            student_logits,
            teacher_logits,
            self.pair_weights(agreement).expand_as(agreement),
            self.cluster_probs,
            self.beta,
            self.student_temperature,
            self.teacher_temperature,
        )
        return head_losses

    def pair_weights(self, agreement: Tensor) -> Tensor:
        """w(x,x′): how sure the teacher heads together are that the two share a cluster. [H, P] → [1, P]."""
        return agreement.mean(dim=0, keepdim=True)

    def _ask_teacher(self, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Each head's agreement on each pair, [H, P], and its mean probabilities over all rows, [H, C]."""
        agreement, mean_q_t = [], []
        for part in few_heads(teacher_logits):
            q_t = log_probs(teacher_logits[part], self.teacher_temperature).exp_()  # [h, 2P, C]
            agreement.append(pair_agreement(q_t))
            mean_q_t.append(q_t.mean(dim=1))
        return torch.cat(agreement), torch.cat(mean_q_t)


class WeightedPairLosses(torch.autograd.Function):
    """L_h = mean over the 2P rows of w · ℓ_h, with its gradient by the student's logits z in closed form.

    With log u_c = β (log q_s(c|x) + log q_t(c|x′)) − log q̃_t(c):

        ℓ = −log Σ_c u_c        ∂ℓ/∂z = β/τ (q_s − softmax(log u)),   τ the student's temperature

    Logits [H, 2P, C] are the largest tensors of TEMI. A few heads at a time, intermediate results stay in the cache of
    a CPU and take little of a GPU's memory; only the gradient is kept, in the precision of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,  # [H, 2P, C]
        teacher_logits: Tensor,  # [H, 2P, C]
        weights: Tensor,  # [H, P]
        cluster_probs: Tensor,  # [H, C]
        beta: float,
        student_temperature: float,
        teacher_temperature: float,
    ) -> Tensor:  # [H]
        row_weights = weights.repeat(1, 2) / student_logits.shape[1]  # [H, 2P]
        log_mean_q_t = cluster_probs.clamp_min(torch.finfo(torch.float32).tiny).log()[:, None]  # [H, 1, C]
        gradient = torch.empty_like(student_logits)  # of ℓ, [H, 2P, C]
        losses = []
        for part in few_heads(student_logits):
            log_q_s = log_probs(student_logits[part], student_temperature)  # [h, 2P, C]
            log_u = swap_pairs(log_probs(teacher_logits[part], teacher_temperature))
            log_u.add_(log_q_s).mul_(beta).sub_(log_mean_q_t[part])
            log_sum_u = log_u.logsumexp(dim=-1, keepdim=True)  # [h, 2P, 1]
            losses.append(-(row_weights[part] * log_sum_u[..., 0]).sum(dim=-1))
            gradient[part] = log_q_s.exp_().sub_(log_u.sub_(log_sum_u).exp_()).mul_(beta / student_temperature)
        ctx.save_for_backward(gradient, row_weights)
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        gradient, row_weights = ctx.saved_tensors
        scale = row_weights * grad_losses[:, None]  # [H, 2P]; not part of what is kept, where float16 would underflow
        return gradient * scale.to(gradient.dtype)[..., None], None, None, None, None, None, None


def few_heads(logits: Tensor) -> list[slice]:
    """Heads to work on together: as many as fit FEW_HEADS_BYTES, at least one."""
    num_heads, rows, clusters = logits.shape
    step = max(1, FEW_HEADS_BYTES[logits.device.type == "cpu"] // (4 * rows * clusters))
    return [slice(start, start + step) for start in range(0, num_heads, step)]


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
