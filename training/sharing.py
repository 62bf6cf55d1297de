"""What processes that train one network share in every step: rows, sums, and the statistics that they normalise by.

Each has its own share of a batch; together they take the step that one process would take on the whole batch.
"""

from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class _Summed(torch.autograd.Function):
    """A sum over processes, and of gradients on the way back: every process's loss may depend on every term. PyTorch
    has the like only where it is deprecated (torch.distributed.nn) or private.
    """

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, differentiable."""
    total: Tensor = _Summed.apply(values)
    return total


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, [processes * B, ...], each of which holds as many; differentiable."""
    every = rows.new_zeros(dist.get_world_size(), *rows.shape)
    every[dist.get_rank()] = rows
    return summed(every).flatten(0, 1)


def total(fabric: "Fabric", values: Tensor) -> Tensor:
    """The sum over all processes; for figures, not for gradients."""
    found = fabric.all_reduce(values.detach(), reduce_op="sum")
    if not isinstance(found, Tensor):
        raise AssertionError("a tensor reduces to a tensor")
    return found


def mean(fabric: "Fabric", value: Tensor) -> float:
    """The mean over all processes of one number, []."""
    return total(fabric, value).item() / fabric.world_size


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes. PyTorch's own synchronised form refuses CPUs; equal to
    nn.BatchNorm2d on the whole batch, for shares of equal size.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> Self:
        """One that stands for `norm`: with the very parameters and statistics that it has."""
        shared = cls(norm.num_features, norm.eps, norm.momentum)
        shared.weight, shared.bias = norm.weight, norm.bias
        shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
        shared.num_batches_tracked = norm.num_batches_tracked
        return shared.train(norm.training)

    def forward(self, maps: Tensor) -> Tensor:
        mean_so_far, variance_so_far, counted = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.training or mean_so_far is None or variance_so_far is None or counted is None:
            return super().forward(maps)
        dimensions, processes = (0, 2, 3), dist.get_world_size()
        precise = maps.float()  # in mixed precision too
        moments = torch.stack([precise.mean(dimensions), precise.square().mean(dimensions)])
        mean, square = summed(moments) / processes
        variance = (square - mean.square()).clamp_min(0)
        with torch.no_grad():
            count = maps.numel() / maps.shape[1] * processes
            mean_so_far.lerp_(mean, self.momentum or 0.0)
            variance_so_far.lerp_(variance * count / (count - 1), self.momentum or 0.0)
            counted.add_(1)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        normalised: Tensor = precise * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
        return normalised.to(maps.dtype)


def share_statistics(network: nn.Module, device: torch.device) -> None:
    """Let every batch normalisation of `network` see the whole batch; its state keeps its names."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SharedBatchNorm.of(child))
