"""Ranks, reductions, and what carries gradients between ranks; with one process all of it is the identity.

The same script runs alone and under `torchrun`: it calls `init_from_environment` once and never asks whether
there are others. Every rank must take part in every meeting (a reduction, a gather); one that does not come
ends the others' waiting with `LostRank`, at once if it died and after the group's timeout if it hangs.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bifocal.config import UserError

T = TypeVar("T")
TIMEOUT_SECONDS = 600.0  # how long a rank waits for the others
ROLL_CALL_SECONDS = 3.0  # how long those who are left are given to say so


class LostRank(RuntimeError):
    """A meeting that not every rank came to, by its name."""


class _State:
    """What this process knows of its group; there is one group a process, so there is one of these."""

    alone = False
    meeting = "none yet"
    timeout_seconds = TIMEOUT_SECONDS


def is_distributed() -> bool:
    """Whether this process belongs to a group of processes (of one or more)."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process in 0 .. world_size() - 1; 0 if it is alone."""
    return dist.get_rank() if is_distributed() and not _State.alone else 0


def world_size() -> int:
    """How many processes train together; 1 if this one is alone."""
    return dist.get_world_size() if is_distributed() and not _State.alone else 1


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the user (rank 0)."""
    return not is_distributed() or dist.get_rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For as long as the block lasts, meet nobody: every rank does the same by itself, as one process would."""
    before, _State.alone = _State.alone, True
    try:
        yield
    finally:
        _State.alone = before


def init_from_environment(timeout_seconds: float = TIMEOUT_SECONDS) -> bool:
    """Join the processes that `torchrun` started: gloo on CPU, nccl on a GPU (which LOCAL_RANK chooses).

    Without RANK in the environment, or if the group exists already, nothing happens. Whoever waits for another rank
    longer than `timeout_seconds` gives up.

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
    # tensors on a GPU by nccl, those in main memory by gloo, whatever the model computes on
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    _State.timeout_seconds = timeout_seconds
    return True


def group_apart() -> dist.ProcessGroup:
    """A second group of all ranks, over main memory, for threads that meet while the ranks train.

    Two meetings of one group that begin in another order on another rank would get each other's tensors. It waits as
    long as the first one. Every rank must call it, and `dist.destroy_process_group` at the end.
    """
    with meeting("a group for what is done beside training"):
        group: dist.ProcessGroup = dist.new_group(
            backend="gloo", timeout=timedelta(seconds=_State.timeout_seconds)
        )
    return group


def shutdown() -> None:
    """Leave the group that `init_from_environment` joined; nothing if there is none."""
    if is_distributed():
        dist.destroy_process_group()


@contextlib.contextmanager
def joined(timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """Belong to the group that the environment speaks of for as long as the block lasts; alone, nothing happens."""
    before = is_distributed()
    init_from_environment(timeout_seconds)
    try:
        yield
    finally:
        if not before:
            shutdown()


def last_meeting() -> str:
    """What the ranks met for last, or are waiting for."""
    return _State.meeting


@contextlib.contextmanager
def meeting(name: str) -> Iterator[None]:
    """Name what the ranks meet for; raises `LostRank` where one does not come."""
    _State.meeting = name
    try:
        yield
    except RuntimeError as error:  # gloo and nccl raise nothing more special
        raise LostRank(f"{name}: {str(error).splitlines()[0]}") from error


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error says that a rank did not come: a `LostRank`, or what gloo and nccl raise by themselves.

    What torch exchanges within a model (FSDP) has no name, and its errors no class that tells them from others.
    """
    return isinstance(error, LostRank | dist.DistError) or "/gloo/" in str(error)


def missing_ranks() -> list[int]:
    """After a `LostRank`: the ranks that do not say, in a few seconds, that they are left too."""
    if not is_distributed():
        return []
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"bifocal/left/{dist.get_rank()}", "1")
        others = set(range(dist.get_world_size())) - {dist.get_rank()}
        until = time.monotonic() + ROLL_CALL_SECONDS
        while others and time.monotonic() < until:
            others = {other for other in others if not store.check([f"bifocal/left/{other}"])}
            time.sleep(0.05)
    except RuntimeError:  # the store went with the rank that kept it
        return [0]
    return sorted(others)


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        with meeting("a barrier"):
            dist.barrier()


def all_reduce_sum(tensor: Tensor, what: str = "a sum") -> Tensor:
    """The sum of `tensor` over all ranks, the same on each; it carries no gradient. `what` names it in errors.

    Alone, `tensor` itself is returned, else a new tensor of its shape and dtype. Every rank must call it.
    """
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    with meeting(f"the reduction of {what}"):
        dist.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """What each rank says, in the order of ranks. Every rank must call it."""
    if world_size() == 1:
        return [value]
    said: list[Any] = [None] * world_size()
    with meeting("the gathering of what each rank says"):
        dist.all_gather_object(said, value)
    return said


def object_from_first_rank(value: T) -> T:
    """What the first rank says, on every rank; itself without ranks. Every rank must call it."""
    if world_size() == 1:
        return value
    said = [value]
    with meeting("what the first rank says"):
        dist.broadcast_object_list(said, src=0)
    return said[0]


def first_rank_does(work: Callable[[Callable[[], None]], T]) -> T:
    """Let the first rank alone do something that the others wait for, however long; its result, on every rank.

    `work` is given a function to call now and then, which tells the others that it is still going on. What JSON could
    hold comes back. Every rank must call it.

    Raises:
        UserError: on every rank, if `work` does.
    """
    if world_size() == 1:
        return work(lambda: None)
    if not is_main():
        nothing: tuple[str, Any] = ("", None)
        while (said := object_from_first_rank(nothing))[0] == "going on":
            pass
        if said[0] == "failed":
            raise UserError(said[1])
        result: T = said[1]
        return result
    try:
        with alone():
            made = work(_tell_others)
    except UserError as error:
        object_from_first_rank(("failed", str(error)))
        raise
    object_from_first_rank(("done", made))
    return made


def _tell_others() -> None:
    before, _State.alone = _State.alone, False
    try:
        object_from_first_rank(("going on", None))
    finally:
        _State.alone = before


def share(count: int) -> range:
    """Which of `count` rows of a batch are this rank's: consecutive ones, as many as the others have or one more."""
    ranks = world_size()
    return range(count * rank() // ranks, count * (rank() + 1) // ranks)


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
        with meeting("a gather that carries gradients"):
            dist.all_gather(slices, padded)
        return torch.cat([part[:count] for part, count in zip(slices, rows, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(gradient, "gathered gradients").split(context.rows)[rank()], None


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
    with meeting("an exchange between neighbours"):
        for pending in dist.batch_isend_irecv(operations) if operations else ():
            pending.wait()
    return got


@torch.no_grad()
def from_first_rank(tensor: Tensor) -> Tensor:
    """What the first rank holds, on every rank (a random choice that all must share); itself without ranks."""
    if world_size() > 1:
        with meeting("the first rank's choice"):
            dist.broadcast(tensor, src=0)
    return tensor
