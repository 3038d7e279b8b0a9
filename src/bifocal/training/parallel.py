"""How several ranks train one model: who takes which rows, and how gradients become those of the whole batch.

A batch is made as if for one process; each rank takes its rows of it. Whatever the number of ranks, a step then sees
the same samples, and a run may go on with another number than it was begun with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bifocal import distributed
from bifocal.config import UserError

BUCKET_NUMBERS = 2**24  # gradients that are sent at once: 64 MiB


class ByRows:
    """A batch that is made row by row, so that a rank makes its own rows alone."""

    def __init__(self, make: Callable[[range], Any]) -> None:
        self.part = make


def pieces(batch: Any, size: int, count: int = 1) -> Iterator[Any]:
    """This rank's rows of a batch of ``size``, in ``count`` pieces one after the other.

    A batch is a tensor, or something whose ``part(rows)`` gives the same with those rows alone.
    """
    mine = distributed.share(size)
    if len(mine) < count:
        raise UserError(
            f"a batch of {size} rows is too small for {distributed.world_size()} ranks and train.accumulate {count}: "
            "each of them needs a row"
        )
    for number in range(count):
        rows = mine[len(mine) * number // count : len(mine) * (number + 1) // count]
        if isinstance(batch, Tensor):
            yield batch[rows.start : rows.stop]
        elif hasattr(batch, "part"):
            yield batch.part(rows)
        else:
            assert len(rows) == size, "a batch that cannot be divided"
            yield batch


@torch.no_grad()
def same_start(model: nn.Module) -> None:
    """Let every rank begin with what the first has drawn."""
    if distributed.world_size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            shared = tensor.detach().contiguous()
            tensor.copy_(distributed.from_first_rank(shared))


@torch.no_grad()
def sum_over_ranks(gradients: list[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
    """Add up the gradients of all ranks, in float32. None stays None only where no rank has a gradient."""
    if distributed.world_size() == 1 or not gradients:
        return gradients
    here = torch.tensor([gradient is not None for gradient in gradients], dtype=torch.int32)
    somewhere = distributed.all_reduce_sum(here.to(like[0].device), "which gradients there are").tolist()
    summed: list[Tensor | None] = [
        None if not ranks else torch.zeros_like(tensor) if gradient is None else gradient
        for ranks, gradient, tensor in zip(somewhere, gradients, like, strict=True)
    ]
    for bucket in _buckets([gradient for gradient in summed if gradient is not None]):
        # row by row, because ranks may keep a gradient in different layouts
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        flat = distributed.all_reduce_sum(flat, "the gradients")
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view(gradient.shape))
    return summed


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    held = 0
    for gradient in gradients:
        if bucket and held + gradient.numel() > BUCKET_NUMBERS:
            yield bucket
            bucket, held = [], 0
        bucket.append(gradient)
        held += gradient.numel()
    if bucket:
        yield bucket


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that a model is stacked of: what stands in its outermost lists and trains.

    Parts that change themselves after a step (a codebook) are left out.
    """
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        if hasattr(module, "after_step") and module is not model:
            return
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(one for one in child if any(w.requires_grad for w in one.parameters()))
            else:
                look(child)

    look(model)
    return found


def checkpoint_activations(model: nn.Module) -> Callable[[], None]:
    """Let every layer be computed anew on the way back instead of being kept; what is returned undoes that."""
    layers = blocks(model)
    for layer in layers:
        layer.forward = functools.partial(_again, layer.forward)

    def undo() -> None:
        for layer in layers:
            del layer.forward

    return undo


def _again(forward: Callable[..., Any], *values: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*values, **named)
    return checkpoint(forward, *values, use_reentrant=False, **named)
