"""Ranks, reductions, and the gather that carries gradients; with one process all of it is the identity.

The same script runs alone and under `torchrun`: it calls `init_from_environment` once and never asks whether
there are others.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bifocal.config import UserError


def is_distributed() -> bool:
    """Whether this process belongs to a group of processes (of one or more)."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process in 0 .. world_size() - 1; 0 if it is alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes train together; 1 if this one is alone."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the user (rank 0)."""
    return rank() == 0


def init_from_environment() -> bool:
    """Join the processes that `torchrun` started: gloo on CPU, nccl on a GPU (which LOCAL_RANK chooses).

    Without RANK in the environment, or if the group exists already, nothing happens.

    Returns:
        whether this process belongs to a group now.

    Raises:
        UserError: if RANK is set without what else a group needs.
    """
    if is_distributed():
        return True
    if "RANK" not in os.environ:
        return False
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"RANK is set, and {', '.join(missing)} is not: start with torchrun, or unset RANK")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    return True


def shutdown() -> None:
    """Leave the group that `init_from_environment` joined; nothing if there is none."""
    if is_distributed():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, the same on each; it carries no gradient.

    Alone, `tensor` itself is returned, else a new tensor of its shape and dtype. Every rank must call it.
    """
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """(b, ...) on each of R ranks -> (R * b, ...) on all, in the order of ranks, differentiable.

    Backward, every rank's gradient for a slice is summed on the rank that owns it, so what a rank gets is the
    gradient of the *sum* of the losses of all ranks: R ranks that compute the same loss over everything get R
    times its gradient, and averaging gradients over ranks makes that equal to one process.

    Raises:
        ValueError: on every rank, if their shapes differ.
    """
    if world_size() == 1:
        return tensor
    shapes: list[Any] = [None] * world_size()
    dist.all_gather_object(shapes, tuple(tensor.shape))
    if len(set(shapes)) > 1:
        raise ValueError(f"every rank must bring the same shape to a gather, got {shapes}")
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        slices = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())
        ]
        dist.all_gather(slices, tensor.contiguous())
        return torch.cat(slices)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = all_reduce_sum(gradient)
        return total.chunk(world_size())[rank()]


@torch.no_grad()
def from_first_rank(tensor: Tensor) -> Tensor:
    """What the first rank holds, on every rank (a random choice that all must share); itself without ranks."""
    if is_distributed():
        torch.distributed.broadcast(tensor, src=0)
    return tensor
