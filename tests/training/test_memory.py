"""Keeping freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from bifocal.training.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * 2**24
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

by_default = faults()
assert keep_freed_memory()
faults()
print(by_default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_memory_that_was_freed_is_not_cleared_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    by_default, kept = map(int, done.stdout.split())
    assert by_default > 2**24 // 4096  # a page has 4 KiB, and blocks of 16 MiB are cleared anew
    assert kept < 100


ADDED = """
from bifocal.training.memory import added_memory

def hold():
    bytearray(b"x") * 2**25  # gone at once

print(added_memory(lambda: None, hold))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process has held")
def test_what_work_adds_is_told_at_its_peak() -> None:
    done = subprocess.run([sys.executable, "-c", ADDED], check=True, capture_output=True, text=True)
    # beside the bytes themselves: pages of the interpreter, some of which Linux counts late
    assert int(done.stdout) == pytest.approx(2**25, abs=2**22)


GAPS = """
from bifocal.training import memory

memory.MOST_GAPS_BYTES = 2**27
memory.keep_freed_memory()
gaps = memory.HeapGaps()
gaps.tend()
blocks = [(bytearray(b"x") * 2**18, bytearray(b"x") * 64) for _ in range(2**10)]
held = [small for _, small in blocks]
full = memory.process_memory()
del blocks
freed = memory.process_memory()
gaps.tend()
print(full - freed, freed - memory.process_memory())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_gaps_of_the_heap_are_handed_back_once_they_have_grown() -> None:
    done = subprocess.run([sys.executable, "-c", GAPS], check=True, capture_output=True, text=True)
    by_freeing, by_tending = map(int, done.stdout.split())
    assert by_freeing < 2**24  # kept for the next step
    assert by_tending > 2**27  # of the quarter of a gibibyte between the small blocks
