"""The heap: gaps are filled by what fits best, and what was touched once stays."""

from __future__ import annotations

import random

from bifocal.training.heap import Heap
from bifocal.training.memory import LARGEST_BLOCK_BYTES

KIB = 1024


def test_a_block_goes_into_the_smallest_gap_that_holds_it() -> None:
    heap = Heap()
    for key, size in enumerate((4, 1, 2, 1, 8)):
        heap.take(key, size * KIB)
    heap.give(0)
    heap.give(2)
    heap.take(5, 2 * KIB)
    assert heap.blocks[5] == (5 * KIB, 2 * KIB)  # where the block of two was
    heap.take(6, 3 * KIB)
    assert heap.blocks[6] == (0, 3 * KIB)
    assert heap.peak == 16 * KIB


def test_gaps_that_touch_become_one_and_the_last_one_the_end() -> None:
    heap = Heap()
    for key in range(4):
        heap.take(key, KIB)
    for key in (0, 2, 1):
        heap.give(key)
    assert heap.gaps == [(3 * KIB, 0)]
    heap.give(3)
    assert heap.gaps == [] and heap.end == 0 and heap.peak == 4 * KIB
    heap.take(9, 100)
    assert heap.blocks[9] == (0, 128) and heap.peak == 4 * KIB


def test_large_blocks_lie_outside_and_are_gone_when_freed() -> None:
    heap = Heap()
    heap.take(0, LARGEST_BLOCK_BYTES)
    heap.give(0)
    heap.take(1, KIB)
    assert heap.peak == LARGEST_BLOCK_BYTES and heap.touched == KIB


def test_no_two_blocks_overlap_whatever_comes_and_goes() -> None:
    rng, heap, held = random.Random(0), Heap(), 0
    for key in range(2000):
        heap.take(key, rng.randint(1, 5000))
        if rng.random() < 0.6:
            heap.give(rng.choice(list(heap.blocks)))
        held = max(held, sum(size for _, size in heap.blocks.values()))
    places = sorted(heap.blocks.values())
    assert all(start + size <= behind for (start, size), (behind, _) in zip(places, places[1:]))
    assert held <= heap.peak < 2 * held
    free = sum(size for size, _ in heap.gaps)
    assert heap.end == free + sum(size for _, size in heap.blocks.values())
