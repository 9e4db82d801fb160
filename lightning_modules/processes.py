"""What the processes of a training do together."""

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(local: Tensor) -> Tensor:
    """Mean of a tensor over the processes of `torch.distributed`; the tensor itself where there are none.

    The value is the global mean, the gradient that of the local tensor: since DDP averages gradients over the
    processes, they come out as the gradients of the global mean. Lightning's own would wait at a barrier first.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size() + (local - local.detach())  # the bracket is 0, and carries the gradient
