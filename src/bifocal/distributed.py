"""Ranks, reductions, and what carries gradients between ranks; with one process all of it is the identity.

The same script runs alone and under `torchrun`: it calls `init_from_environment` once and never asks whether
there are others.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bifocal.config import UserError

T = TypeVar("T")


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


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Belong to the group that the environment speaks of for as long as the block lasts; alone, nothing happens."""
    before = is_distributed()
    init_from_environment()
    try:
        yield
    finally:
        if not before:
            shutdown()


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


def gather_objects(value: T) -> list[T]:
    """What each rank says, in the order of ranks. Every rank must call it."""
    if world_size() == 1:
        return [value]
    said: list[Any] = [None] * world_size()
    dist.all_gather_object(said, value)
    return said


def object_from_first_rank(value: T) -> T:
    """What the first rank says, on every rank; itself without ranks. Every rank must call it."""
    if world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """(b, ...) on each rank -> all rows on all ranks, in the order of ranks, differentiable; b may differ.

    Backward, every rank's gradient for a slice is summed on the rank that owns it, so what a rank gets is the
    gradient of the *sum* of the losses of all ranks: R ranks that compute the same loss over everything get R
    times its gradient, and averaging gradients over ranks makes that equal to one process. Every rank must call
    it, and go backward through it.

    Raises:
        ValueError: on every rank, if the shapes of their rows differ.
    """
    if world_size() == 1:
        return tensor
    shapes = gather_objects(tuple(tensor.shape))
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(f"every rank must bring rows of the same shape to a gather, got {shapes}")
    gathered: Tensor = _Gather.apply(tensor, [shape[0] for shape in shapes])
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, rows: list[int]) -> Tensor:
        context.rows = rows
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        slices = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(slices, padded)
        return torch.cat([part[:count] for part, count in zip(slices, rows, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(gradient).split(context.rows)[rank()], None


def visits(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The tensors (b, ...) of all ranks, one after the other, each with its rank; one's own first; differentiable.

    Each time every rank hands what it has to the next rank, so that none holds more than one tensor besides its own.
    Backward, gradients go round the other way, and each rank gets the sum of what all ranks made of its tensor. Every
    rank must ask for all of them, and go backward through all. b may differ.
    """
    yield rank(), tensor
    if world_size() == 1:
        return
    rows = gather_objects(len(tensor))
    for step in range(1, world_size()):
        source = (rank() - step) % world_size()
        tensor = _HandOn.apply(tensor, rows[source])
        yield source, tensor


class _HandOn(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, rows: int) -> Tensor:
        context.rows = len(tensor)
        return _exchange(tensor, 1, rows)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradient, -1, context.rows), None


def _exchange(tensor: Tensor, direction: int, rows: int) -> Tensor:
    """Send ``tensor`` to the next rank (direction 1) or the last (-1), and get ``rows`` rows from the other side."""
    got = tensor.new_empty(rows, *tensor.shape[1:])
    to, source = (rank() + direction) % world_size(), (rank() - direction) % world_size()
    both = [(dist.isend, tensor.contiguous(), to), (dist.irecv, got, source)]
    # an empty tensor is not sent, and not waited for
    operations = [dist.P2POp(go, part, peer) for go, part, peer in both if part.numel()]
    for pending in dist.batch_isend_irecv(operations) if operations else ():
        pending.wait()
    return got


@torch.no_grad()
def from_first_rank(tensor: Tensor) -> Tensor:
    """What the first rank holds, on every rank (a random choice that all must share); itself without ranks."""
    if is_distributed():
        torch.distributed.broadcast(tensor, src=0)
    return tensor
