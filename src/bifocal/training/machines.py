"""How long a traced step takes: on this machine by making its operations again, on others by their data sheets.

Figures of data sheets are those of dense products with float32 sums. No program reaches them; ``PRODUCT_SHARE`` and
``MEMORY_SHARE`` say what part is assumed, ``KERNEL_SECONDS`` what every operation costs an accelerator at least. It is
told what to do by a program that takes ``CALL_SECONDS`` for each, while it works: a step takes the longer of the two.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bifocal.config import UserError
from bifocal.training.trace import Operation

PRODUCT_SHARE = 0.4
MEMORY_SHARE = 0.7
KERNEL_SECONDS = 3e-6
CALL_SECONDS = (
    25e-6  # of PyTorch without compiling, on the machine of an H100 that benchmarks/plan_check.py ran on
)
NODE = 8  # accelerators that share a machine
NETWORK_BYTES = 50e9  # a second between machines, each way: 400 Gbit/s
ETHERNET_BYTES = 1.25e9  # between machines without accelerators: 10 Gbit/s


@dataclass(frozen=True)
class Machine:
    """Products in float operations a second, memory in bytes and bytes a second, the link to its neighbours likewise.

    ``link`` is one way, between two accelerators of one machine. ``source`` is what the figures were read in.
    """

    name: str
    memory: float
    bf16: float
    float32: float
    bandwidth: float
    link: float
    source: str

    def seconds(self, operations: Sequence[Operation]) -> float:
        """Each operation takes what its products take or what moving its bytes takes, whichever is longer."""
        total = 0.0
        for operation in operations:
            rate = self.bf16 if operation.dtype == torch.bfloat16 else self.float32
            computing = operation.flops / (PRODUCT_SHARE * rate)
            moving = operation.bytes / (MEMORY_SHARE * self.bandwidth)
            total += operation.count * max(computing, moving, KERNEL_SECONDS)
        return total


def telling(operations: Sequence[Operation]) -> float:
    """Seconds that a program needs to tell an accelerator to do all of these."""
    return CALL_SECONDS * sum(operation.count for operation in operations)


SHEETS = {
    sheet.name: sheet
    for sheet in (
        Machine("a100", 80e9, 312e12, 19.5e12, 2039e9, 300e9, "NVIDIA A100 80GB SXM data sheet"),
        Machine("h100", 80e9, 989e12, 67e12, 3350e9, 450e9, "NVIDIA H100 SXM data sheet, dense"),
        Machine("h200", 141e9, 989e12, 67e12, 4800e9, 450e9, "NVIDIA H200 data sheet, dense"),
        Machine("l4", 24e9, 121e12, 30.3e12, 300e9, 32e9, "NVIDIA L4 data sheet, dense"),
        Machine("rtx4090", 24e9, 165e12, 82.6e12, 1008e9, 32e9, "NVIDIA Ada architecture paper, dense"),
    )
}
CACHE_BYTES, MOST_COPIES = 64 * 2**20, 7  # of a call's arguments, so that none finds them in a cache
CPU = "cpu"  # what this machine is called


@dataclass(frozen=True)
class Fleet:
    """So many ranks on machines of one kind, at so much an hour for each rank."""

    count: int
    machine: str
    price: float | None = None

    @property
    def name(self) -> str:
        return self.machine if self.count == 1 else f"{self.count}x{self.machine}"


def read_fleet(text: str) -> Fleet:
    """``[COUNTx]MACHINE[@PRICE]``, such as cpu, 8xh100 or 8xh100@2.5; raises ``UserError`` for anything else."""
    found = re.fullmatch(r"(?:(\d+)x)?([a-z0-9]+?)(?:@(\d+(?:\.\d+)?))?", text.strip().lower())
    if found is None or int(found.group(1) or 1) < 1:
        raise UserError(f"--machines {text!r} is not of the form [COUNTx]MACHINE[@PRICE], as in 8xh100@2.5")
    count, machine, price = found.groups()
    if machine != CPU and machine not in SHEETS:
        raise UserError(f"--machines {text!r}: choose {CPU} (this machine) or one of {', '.join(SHEETS)}")
    return Fleet(int(count or 1), machine, None if price is None else float(price))


def link_of(fleet: Fleet) -> float:
    """Bytes a second, one way, of the slowest link that ranks of this fleet talk over."""
    if fleet.machine == CPU:
        return ETHERNET_BYTES
    link = SHEETS[fleet.machine].link
    return link if fleet.count <= NODE else min(link, NETWORK_BYTES)


# ------------------------------------------------------------ this machine


@dataclass(frozen=True)
class Calibration:
    """What this machine did in the few seconds that it was measured.

    ``seconds`` is the time of all operations once over; ``bf16`` and ``float32`` are the rates of the products among
    them (0 where there are none). ``measured`` is the share of the time that was measured and not taken from
    ``bandwidth``.
    """

    seconds: float
    optimizer_seconds: float
    bf16: float
    float32: float
    bandwidth: float
    measured: float


def calibrate(
    operations: Sequence[Operation], optimizer: Sequence[Operation], *, budget: float = 10.0
) -> Calibration:
    """Time the operations of a step at their own shapes, the costliest first, for about ``budget`` seconds.

    What is left then, or takes an eighth of the memory, is taken to move its bytes as fast as a copy does.
    """
    bandwidth = copy_rate()
    products: dict[torch.dtype, list[float]] = {}
    totals = {"step": 0.0, "optimizer": 0.0}
    measured = 0.0
    until = time.perf_counter() + budget
    tagged = [("step", each) for each in operations] + [("optimizer", each) for each in optimizer]
    for part, operation in sorted(tagged, key=lambda pair: -guess(pair[1], bandwidth)):
        taken = guess(operation, bandwidth) / operation.count
        if time.perf_counter() < until and operation.bytes < this_memory() / 8:
            copies = 1 + min(MOST_COPIES, CACHE_BYTES // max(1, operation.bytes))
            taken = seconds_of([operation.call() for _ in range(copies)])
            measured += taken * operation.count
            if operation.flops:
                flops, seconds = products.setdefault(operation.dtype, [0.0, 0.0])
                products[operation.dtype] = [
                    flops + operation.flops * operation.count,
                    seconds + taken * operation.count,
                ]
        totals[part] += taken * operation.count
    rates = {dtype: flops / seconds for dtype, (flops, seconds) in products.items()}
    return Calibration(
        seconds=totals["step"],
        optimizer_seconds=totals["optimizer"],
        bf16=rates.get(torch.bfloat16, 0.0),
        float32=rates.get(torch.float32, 0.0),
        bandwidth=bandwidth,
        measured=measured / max(1e-12, sum(totals.values())),
    )


def guess(operation: Operation, bandwidth: float) -> float:
    """Seconds that all calls of an operation take, before anything was measured of it: 200 GFLOP/s."""
    return operation.count * max(operation.flops / 2e11, operation.bytes / bandwidth, 2e-6)


@torch.no_grad()
def seconds_of(calls: Sequence[Callable[[], object]], *, least: float = 0.006, most: int = 24) -> float:
    """The median time of a call, of which there are several that do the same with memory of their own.

    They take turns, and what they make is kept for a round: in a step neither arguments nor results lie in a cache
    that was filled for them.
    """
    made: deque[object] = deque(maxlen=len(calls))
    for call in calls:
        made.append(call())
    taken: list[float] = []
    for call in itertools.cycle(calls):
        began = time.perf_counter()
        made.append(call())
        taken.append(time.perf_counter() - began)
        if len(taken) >= most or (len(taken) > 1 and sum(taken) > least):
            break
    return sorted(taken)[len(taken) // 2]


def copy_rate(size: int = 2**27) -> float:
    """Bytes a second that are read and written together while memory is copied."""
    one, other = torch.ones(size // 4), torch.ones(size // 4)
    return 2 * size / min(seconds_of([lambda: other.copy_(one)]) for _ in range(3))


def this_memory() -> float:
    """The memory of this machine in bytes."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
