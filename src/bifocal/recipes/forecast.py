"""What training a recipe will take: parameters, memory, operations, time, communication and cost, before it begins.

A step is traced at two batch sizes (``training.trace``); other sizes lie on the line through them. Times of this
machine are those of its own operations, measured; times of others follow from data sheets (``training.machines``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bifocal.models.precision import fast_dtype
from bifocal.recipes.rehearsal import STEPS, Rehearsed, rehearse
from bifocal.recipes.runs import parts_of
from bifocal.recipes.sketches import Sketch, sketch
from bifocal.training.machines import (
    CPU,
    SHEETS,
    Calibration,
    Fleet,
    calibrate,
    link_of,
    telling,
    this_memory,
)
from bifocal.training.memory import process_memory
from bifocal.training.trace import Place, StepCost, stand_ins, trace_step

MOST_TRACED = 256  # samples: beyond that the line is straight
FREE_SHARE = 0.1  # of the memory that is left to the system, the libraries and what fragments
MOST_FLOPS = 6e12  # of all steps that are rehearsed: some twenty seconds
KINDS = ("weights", "frozen", "masters", "optimizer", "gradients", "activations")


@dataclass(frozen=True)
class Line:
    """Steps of two batch sizes, and what lies between and beyond them.

    ``rehearsed`` are real steps of two sizes.
    """

    sizes: tuple[int, int]
    costs: tuple[StepCost, StepCost]
    rehearsed: tuple[Rehearsed, Rehearsed] | None = None

    def at(self, batch: float, values: tuple[float, float]) -> float:
        """Where a figure that was ``values`` at the two sizes is for ``batch`` samples."""
        return straight(self.sizes, values, batch)

    def memory(self, batch: int, ranks: int = 1, *, sharded: bool = False) -> dict[str, float]:
        """Bytes of a rank by kind, and "peak", the most at one moment.

        ``sharded`` divides masters, optimizer state and gradients among the ranks (as FSDP does); the weights of the
        products are counted whole, although a rank has those of one layer at a time.
        """
        cost = self.costs[1]
        part = 1 / ranks if sharded else 1.0
        kinds = {
            "weights": float(cost.weights),
            "frozen": float(cost.frozen),
            "masters": cost.masters * part,
            "optimizer": cost.optimizer * part,
            "gradients": cost.gradients * part,
            "activations": self.at(batch, (self.costs[0].activations, cost.activations)),
        }
        if self.rehearsed is None:
            working = self.at(
                batch, (self.costs[0].peak - self.costs[0].persistent, cost.peak - cost.persistent)
            )
        else:
            working = self.rehearsal(batch, "memory") - cost.persistent
        held = kinds["weights"] + kinds["frozen"] + kinds["masters"] + kinds["optimizer"]
        return kinds | {"peak": held + max(0.0, working - cost.gradients * (1 - part))}

    def largest_batch(self, memory: float, ranks: int = 1, *, sharded: bool = False) -> int:
        """How many samples fit into ``memory`` bytes of a rank; 0 if not even one does."""
        room = memory * (1 - FREE_SHARE)
        one, two = (self.memory(size, ranks, sharded=sharded)["peak"] for size in (1, 1025))
        each = max(1.0, (two - one) / 1024)
        return 0 if one > room else 1 + int((room - one) / each)

    def rehearsal(self, batch: float, what: str) -> float:
        """Where a figure of the rehearsed steps is for ``batch`` samples."""
        assert self.rehearsed is not None
        low, high = self.rehearsed
        return straight((low.size, high.size), (getattr(low, what), getattr(high, what)), batch)

    def flops(self) -> float:
        """Of one sample, forward and backward."""
        return self.costs[1].flops / self.sizes[1]


def straight(sizes: tuple[int, int], values: tuple[float, float], batch: float) -> float:
    """Where a line through two points is at ``batch``, never below 0; with one size alone, in proportion."""
    (small, large), (low, high) = sizes, values
    if small == large:
        return high * batch / large
    return max(0.0, high + (high - low) * (batch - large) / (large - small))


@dataclass(frozen=True)
class Row:
    """The forecast for one fleet. Times are in seconds, memory in bytes; ``note`` says what stands in the way."""

    name: str
    ranks: int
    batch: int  # of a rank
    memory: dict[str, float]
    has: float
    largest_batch: int
    compute: float
    data: float
    communicated: float
    communication: float
    step: float
    samples_per_second: float
    total: float
    cost: float | None
    note: str = ""


@dataclass(frozen=True)
class Forecast:
    """Everything that is known of a recipe before it is trained.

    ``calibration`` is there where steps on this machine are forecast and were not rehearsed. ``data_seconds`` is what
    making a sample takes here, in one process; ``besides`` are the bytes that Python, its
    libraries and the data take in each.
    """

    sketch: Sketch
    dtype: torch.dtype
    parts: dict[str, tuple[int, int]]  # trained and frozen parameters by name
    here: Line
    elsewhere: Line | None
    calibration: Calibration | None
    data_seconds: float
    besides: int
    rows: tuple[Row, ...] = ()

    @property
    def parameters(self) -> int:
        """Those that are trained."""
        return sum(trained for trained, _ in self.parts.values())


def forecast(recipe: Any, fleets: Sequence[Fleet]) -> Forecast:
    """What training ``recipe`` will take on each of ``fleets``."""
    sharded = recipe.train.parallel == "shard"
    planned = sketch(recipe)
    dtype = fast_dtype(torch.device("cpu"), recipe.train.dtype)
    with stand_ins("cpu"):
        parts = parts_of(planned.outline())
    high = min(planned.size, MOST_TRACED)
    sizes = (max(1, high // 2), high)
    began = time.perf_counter()
    batches = tuple(planned.batch(0, size) for size in sizes)
    data_seconds = (time.perf_counter() - began) / sum(sizes)
    besides = process_memory()
    here = traced(planned, sizes, batches, dtype, "cpu")
    if any(fleet.machine == CPU for fleet in fleets):
        here = replace(here, rehearsed=rehearsed(recipe, here))
    elsewhere = None
    if any(fleet.machine != CPU for fleet in fleets):
        there = torch.float32 if recipe.train.dtype == "float32" else torch.bfloat16
        elsewhere = traced(planned, sizes, batches, there, "accelerator")
    measured = None
    if any(fleet.machine == CPU for fleet in fleets) and here.rehearsed is None:
        measured = calibrate(here.costs[1].operations, here.costs[1].optimizer_operations)
    known = Forecast(planned, dtype, parts, here, elsewhere, measured, data_seconds, besides)
    return replace(known, rows=tuple(row_of(known, fleet, sharded=sharded) for fleet in fleets))


def traced(
    planned: Sketch, sizes: tuple[int, int], batches: Sequence[Any], dtype: torch.dtype, place: Place
) -> Line:
    """The two steps that a line goes through."""

    def build() -> nn.Module:
        return planned.outline()

    low, high = (trace_step(build, batch, planned.train.optimizer, dtype, place=place) for batch in batches)
    return Line(sizes, (low, high))


def rehearsed(recipe: Any, line: Line) -> tuple[Rehearsed, Rehearsed] | None:
    """Real steps of a quarter of the batch and of all of it; None where they would take too much."""
    small, large = max(1, line.sizes[1] // 4), line.sizes[1]
    if small == large or line.memory(large)["peak"] > this_memory() / 4:
        return None
    if STEPS * (small + large) * line.flops() > MOST_FLOPS:
        return None
    low, high = (rehearse(recipe, size) for size in (small, large))
    return None if low is None or high is None else (low, high)


def communicated_bytes(known: Forecast, ranks: int, *, sharded: bool) -> float:
    """What each rank sends in a step of the whole batch: gradients in float32, and embeddings both ways.

    A ring sends 2 (n - 1) / n times what is added up over n ranks. ``sharded`` ranks get the weights before either
    pass, and send each gradient to the one that keeps it.
    """
    around = (ranks - 1) / ranks
    embeddings = 2 * 4 * known.sketch.embedding_width * known.sketch.size
    weights = known.here.costs[1].weights
    gradients = 4 * known.parameters
    return around * ((2 * weights + gradients if sharded else 2 * gradients) + embeddings)


def row_of(known: Forecast, fleet: Fleet, *, sharded: bool) -> Row:
    """The forecast for one fleet: the batch of the recipe is shared out among its ranks."""
    planned, ranks = known.sketch, fleet.count
    batch = math.ceil(planned.size / ranks)
    data = batch * known.data_seconds
    notes = []
    if fleet.machine == CPU:
        line, has = known.here, this_memory()
        if line.rehearsed is not None:
            compute, data = line.rehearsal(batch, "seconds"), line.rehearsal(batch, "waited")
        else:
            assert known.calibration is not None
            compute = known.calibration.seconds * batch / line.sizes[1] + known.calibration.optimizer_seconds
        busy = compute + data
    else:
        assert known.elsewhere is not None
        machine = SHEETS[fleet.machine]
        line, has = known.elsewhere, machine.memory
        low, high = (machine.seconds(cost.operations) for cost in line.costs)
        optimizer = line.costs[1].optimizer_operations
        computing = line.at(batch, (low, high)) + machine.seconds(optimizer)
        compute = max(computing, telling([*line.costs[1].operations, *optimizer]))
        busy = compute  # batches are made ahead of time
        if data > compute:
            notes.append(f"needs train.workers {math.ceil(data / compute)} a rank")
    pieces = planned.train.accumulate
    memory = line.memory(math.ceil(batch / pieces), ranks, sharded=sharded)
    largest = pieces * line.largest_batch(has, ranks, sharded=sharded)
    sent = communicated_bytes(known, ranks, sharded=sharded)
    communication = sent / link_of(fleet) if ranks > 1 else 0.0
    if ranks > planned.size:
        notes.append(f"a batch of {planned.size} is too small for {ranks} ranks")
    if batch > largest:
        notes.append("does not fit")
    step = busy + communication
    total = step * planned.train.steps
    return Row(
        name=fleet.name,
        ranks=ranks,
        batch=batch,
        memory=memory,
        has=has,
        largest_batch=largest,
        compute=compute,
        data=data,
        communicated=sent,
        communication=communication,
        step=step,
        samples_per_second=planned.size / step,
        total=total,
        cost=None if fleet.price is None else fleet.price * ranks * total / 3600,
        note="; ".join(notes),
    )
