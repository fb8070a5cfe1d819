"""Several processes, as `torchrun --nproc_per_node=N` starts them, do what one does.

Each has a GPU of its own, or all share the CPU. They draw the same random numbers; in training each
takes every N-th window of a step, in sampling every N-th batch of windows; sums over the processes
put the parts together. (Dropout differs: each draws it for itself.) What is found once, before the
first step, the first process finds for all. With one process all of this does nothing.
"""

import math

import torch
import torch.distributed as dist
from torch import nn

from .ranks import RANK, WORLD


def summed(x):
    """x, summed in place over all processes."""
    if WORLD > 1:
        dist.all_reduce(x)
    return x


def part():
    """The end of a script: wait for the others, and take leave. A process that just ends may abort,
    or the others hang."""
    if WORLD > 1:
        dist.barrier()
        dist.destroy_process_group()


def from_first(compute, *given):
    """compute(*given), in the first process; the others wait, and get a copy. What is found should
    be on the CPU."""
    found = [compute(*given) if RANK == 0 else None]
    if WORLD > 1:
        dist.broadcast_object_list(found)
    return found[0]


def share(*drawn):
    """Of what all processes drew alike, items of a batch, those of this process."""
    return [items[RANK::WORLD] for items in drawn]


def seed_dropout(seed):
    """A dropout of its own for each process but the first."""
    if RANK > 0:
        torch.manual_seed(seed * WORLD + RANK)


def share_of_mean(losses, count):
    """The mean of this process's losses, scaled so that the mean over processes (which is what
    happens to gradients) is the mean over all `count` of them."""
    return losses.mean() * (len(losses) * WORLD / count)


def in_batches(size, f, *tensors):
    """f(i, *batch) of the i-th batches of the tensors' items, put together; of the shape of the
    first tensor. Each process computes its share of them."""
    size = min(size, math.ceil(len(tensors[0]) / WORLD))
    parts = []
    for i, batch in enumerate(zip(*(tensor.split(size) for tensor in tensors))):
        parts.append(f(i, *batch) if i % WORLD == RANK else torch.zeros_like(batch[0]))
    return summed(torch.cat(parts))


# ---- Training --------------------------------------------------------------------------


class SyncBatchNorm(nn.BatchNorm1d):
    """Batch statistics over the windows of all processes, which may hold different numbers of them
    (nn.SyncBatchNorm: GPUs only). In all_reduce gradients are summed up too, for every process's
    loss depends on all."""

    def forward(self, x):  # [M,c] or [M,c,W]
        if not self.training:
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce  # not in every build of torch

        axes = [i for i in range(x.ndim) if i != 1]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        count = summed(torch.full((), x.numel() / x.shape[1], device=x.device))  # scalar
        mean = all_reduce(x.float().sum(axes)) / count  # [c]
        x = x.float() - mean.view(shape)
        var = all_reduce(x.square().sum(axes)) / count  # [c]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (var + self.eps).rsqrt()  # [c]
        return x * scale.view(shape) + self.bias.view(shape)


class Together(nn.Module):
    """A loss function and the model whose weights it uses, as one module."""

    def __init__(self, loss, model):
        super().__init__()
        self.loss, self.model = loss, model

    def forward(self, *args):
        return self.loss(*args)


def parallel(loss, model):
    """`loss`, whose gradients with respect to the model's weights are averaged over processes."""
    if WORLD == 1:
        return loss
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.__class__ = SyncBatchNorm
    return nn.parallel.DistributedDataParallel(Together(loss, model))
