"""What a run logs: the loss and the figures of its steps, of all pieces and ranks together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from bifocal import distributed


@dataclass(frozen=True)
class Done:
    """What a rank's rows of one step gave: whether it was taken, the sum of the loss, how much counts, figures."""

    taken: Tensor
    total: Tensor
    count: int
    metrics: dict[str, float]


def finite(norm: float) -> float:
    """A norm as JSON can hold it: -1 where it is none."""
    return norm if math.isfinite(norm) else -1.0


def merged(parts: Sequence[tuple[Tensor, int, Mapping[str, float]]]) -> dict[str, float]:
    """The figures of several pieces as those of all, each weighted by how much counts in it."""
    whole = sum(count for _, count, _ in parts)
    if len(parts) == 1 or not whole:
        return dict(parts[-1][2])
    names = [name for name in parts[-1][2] if all(name in figures for _, _, figures in parts)]
    return {name: sum(count * figures[name] for _, count, figures in parts) / whole for name in names}


def of_all_ranks(window: Sequence[Done]) -> list[dict[str, float]]:
    """Loss and figures of each step that was taken, those of all ranks together."""
    mine = [(one.total.item(), one.count, one.metrics) for one in window if one.taken]
    return [
        {"loss": sum(total for total, _, _ in ranks) / max(1, sum(count for _, count, _ in ranks))}
        | merged(ranks)
        for ranks in zip(*distributed.gather_objects(mine), strict=True)
    ]


def average(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every figure that all steps have; empty without steps."""
    names = [name for name in steps[-1] if all(name in one for one in steps)] if steps else []
    return {name: sum(one[name] for one in steps) / len(steps) for name in names}
