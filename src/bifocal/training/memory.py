"""Keeping freed memory, because the next step takes as much again, but not all of it; and how much a process has."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of mallopt(3)
KEPT_BYTES = 2**31 - 1
LARGEST_BLOCK_BYTES = (
    32 * 2**20
)  # the most that glibc takes; what is larger goes back to the system when freed
MOST_GAPS_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Let the allocator keep up to 2 GiB of what this process frees; whether it can be told to (glibc only).

    By default glibc hands large blocks back at once, and the kernel clears every page of the next one: 45,000 page
    faults in a step of the VQ-VAE with 64 pictures, 12% of its time (benchmarks/vqvae_step.py --no-keep).
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    taken = [set_option(TRIM_THRESHOLD, KEPT_BYTES), set_option(MMAP_THRESHOLD, LARGEST_BLOCK_BYTES)]
    return all(taken)


def trim_heap() -> None:
    """Hand back the free pages of the heap, those between blocks that are held too (glibc only)."""
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


class HeapGaps:
    """Hands the heap's free pages back whenever they have become ``MOST_GAPS_BYTES`` more.

    Steps of many shapes leave gaps that the next ones do not fit into, between small blocks that stay, such as
    compiled products: after 300 steps of the quickstart's continuous VLM 2.4 of 3.2 GiB of the heap were gaps.
    """

    def __init__(self) -> None:
        self._settled: int | None = None  # what the process held once the steps had taken what they take

    def tend(self) -> None:
        """To be called every few steps."""
        holds = process_memory()
        if self._settled is None:
            self._settled = holds
        elif holds > self._settled + MOST_GAPS_BYTES:
            trim_heap()
            self._settled = None


def process_memory(field: str = "VmRSS") -> int:
    """Bytes that this process holds ("VmRSS"), or the most that it has held ("VmHWM"); 0 where Linux does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    return 0


def added_memory(before: Callable[[], object], work: Callable[[], object]) -> int:
    """Bytes that ``work`` adds to this process at its peak, once ``before`` has loaded what it needs (Linux).

    Freed memory is handed back in between, and from then on kept, as in training.
    """
    before()
    gc.collect()
    trim_heap()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    base = process_memory()
    keep_freed_memory()
    work()
    return process_memory("VmHWM") - base
