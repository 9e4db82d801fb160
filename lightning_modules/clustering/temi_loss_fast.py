"""TEMI's loss with its gradient in closed form, a few heads at a time: the same numbers as `temi_loss`, sooner.

Logits [H, 2P, C] are the largest tensors of TEMI. A few heads at a time, intermediate results stay in the cache of a
CPU and take little of a GPU's memory; only the gradient is kept, in the precision of the logits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_modules.clustering.temi_loss import TEMILoss, log_probs, pair_agreement, swap_pairs

# What one float32 tensor [heads, rows, clusters] may take: a part of a CPU's cache; many kernels' worth on a GPU.
FEW_HEADS_BYTES = {True: 1 << 21, False: 1 << 28}


class FastTEMILoss(TEMILoss):
    """`TEMILoss`, and by inheritance those that weight pairs in another way."""

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """As `TEMILoss.forward`."""
        teacher_logits = teacher_logits.detach()
        agreement, mean_q_t = [], []
        for part in few_heads(teacher_logits):
            q_t = log_probs(teacher_logits[part], self.teacher_temperature).exp_()  # [h, 2P, C]
            agreement.append(pair_agreement(q_t))
            mean_q_t.append(q_t.mean(dim=1))
        self.update_cluster_probs(torch.cat(mean_q_t))
        weights = self.pair_weights(torch.cat(agreement)).expand(len(student_logits), -1)  # [H, P]
        head_losses: Tensor = WeightedPairLosses.apply(student_logits, teacher_logits, weights, self)
        return head_losses


class WeightedPairLosses(torch.autograd.Function):
    """L_h = mean over the 2P rows of w · ℓ_h, with its gradient by the student's logits z in closed form.

    With log u_c = β (log q_s(c|x) + log q_t(c|x′)) − log q̃_t(c):

        ℓ = −log Σ_c u_c        ∂ℓ/∂z = β/τ (q_s − softmax(log u)),   τ the student's temperature
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,  # [H, 2P, C]
        teacher_logits: Tensor,  # [H, 2P, C]
        weights: Tensor,  # [H, P]
        loss: TEMILoss,
    ) -> Tensor:  # [H]
        row_weights = weights.repeat(1, 2) / student_logits.shape[1]  # [H, 2P]
        log_mean_q_t = loss.log_cluster_probs()  # [H, 1, C]
        gradient = torch.empty_like(student_logits)  # of ℓ, [H, 2P, C]
        losses = []
        for part in few_heads(student_logits):
            log_q_s = log_probs(student_logits[part], loss.student_temperature)  # [h, 2P, C]
            log_u = swap_pairs(log_probs(teacher_logits[part], loss.teacher_temperature))
            log_u.add_(log_q_s).mul_(loss.beta).sub_(log_mean_q_t[part])
            log_sum_u = log_u.logsumexp(dim=-1, keepdim=True)  # [h, 2P, 1]
            losses.append(-(row_weights[part] * log_sum_u[..., 0]).sum(dim=-1))
            slope = loss.beta / loss.student_temperature
            gradient[part] = log_q_s.exp_().sub_(log_u.sub_(log_sum_u).exp_()).mul_(slope)
        ctx.save_for_backward(gradient, row_weights)
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        gradient, row_weights = ctx.saved_tensors
        scale = row_weights * grad_losses[:, None]  # [H, 2P]; not part of what is kept, where float16 would underflow
        return gradient * scale.to(gradient.dtype)[..., None], None, None, None


def few_heads(logits: Tensor) -> list[slice]:
    """Heads to work on together: as many as fit FEW_HEADS_BYTES, at least one."""
    num_heads, rows, clusters = logits.shape
    step = max(1, FEW_HEADS_BYTES[logits.device.type == "cpu"] // (4 * rows * clusters))
    return [slice(start, start + step) for start in range(0, num_heads, step)]
