"""What the processes of a training, and a processor and its device, tell each other."""

import torch
import torch.distributed as dist
from torch import Tensor


class OnTheWay:
    """A number that a device computes, on its way to the processor.

    `item()` waits for what a GPU was given to do before this object was made, but not for what it is given after.
    """

    def __init__(self, number: Tensor) -> None:
        self._number = number.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if number.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def item(self) -> float:
        """The number."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._number.item()


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


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
