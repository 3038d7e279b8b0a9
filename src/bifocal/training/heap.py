"""How much of its heap a process has touched, which is more than what it holds: between what is held lie gaps."""

from __future__ import annotations

import bisect

from bifocal.training.memory import LARGEST_BLOCK_BYTES

ALIGNMENT = 64  # of torch's blocks on a CPU


class Heap:
    """glibc's heap in outline, as ``memory.keep_freed_memory`` sets it: nothing is handed back.

    A block goes into the smallest gap that holds it, or else to the end; gaps that touch become one. What is larger
    than ``LARGEST_BLOCK_BYTES`` lies outside, and is gone when it is freed. ``peak`` is the most that both took. That
    ``memory.HeapGaps`` hands gaps back in a long run is left out.
    """

    def __init__(self) -> None:
        self.end = self.outside = self.touched = self.peak = 0
        self.blocks: dict[int, tuple[int, int]] = {}  # key -> first byte (-1 outside) and size
        self.gaps: list[tuple[int, int]] = []  # (size, first byte), in order
        self.begins: dict[int, int] = {}  # first byte of a gap -> its size
        self.ends: dict[int, int] = {}  # first byte behind a gap -> its first byte

    def take(self, key: int, size: int) -> None:
        """Allocate a block."""
        size = -(-size // ALIGNMENT) * ALIGNMENT
        if size >= LARGEST_BLOCK_BYTES:
            self.outside += size
            self.blocks[key] = -1, size
        else:
            place = bisect.bisect_left(self.gaps, (size, -1))
            if place < len(self.gaps):
                room, start = self.gaps[place]
                self._fill(start)
                if room > size:
                    self._open(start + size, room - size)
            else:
                start, self.end = self.end, self.end + size
            self.blocks[key] = start, size
        self.touched = max(self.touched, self.end)
        self.peak = max(self.peak, self.touched + self.outside)

    def give(self, key: int) -> None:
        """Free a block."""
        start, size = self.blocks.pop(key)
        if start < 0:
            self.outside -= size
            return
        if start in self.ends:
            before = self.ends[start]
            size += self.begins[before]
            self._fill(before)
            start = before
        if start + size in self.begins:
            behind = start + size
            size += self.begins[behind]
            self._fill(behind)
        if start + size == self.end:
            self.end = start
        else:
            self._open(start, size)

    def _open(self, start: int, size: int) -> None:
        bisect.insort(self.gaps, (size, start))
        self.begins[start] = size
        self.ends[start + size] = start

    def _fill(self, start: int) -> None:
        size = self.begins.pop(start)
        del self.ends[start + size]
        del self.gaps[bisect.bisect_left(self.gaps, (size, start))]
