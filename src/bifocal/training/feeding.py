"""Getting batches to the step, and how long the step waits for them.

A batch is a pure function of its step, so that whoever makes it, in whatever order, makes the same.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

BATCHES_AHEAD = 2  # of each worker process beside an accelerator
PARENT_DEATH_SIGNAL = 1  # name of prctl(2)


class Waiting:
    """Hands on what comes, and counts the seconds that were spent waiting for it."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = iter(batches)
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self.seconds += time.perf_counter() - began

    def share_of(self, seconds: float) -> float:
        """Of so many seconds, the share that was waited since the last call."""
        waited, self.seconds = self.seconds, 0.0
        return min(1.0, waited / seconds) if seconds > 0 else 0.0


def feed(
    batch_at: Callable[[int], Any], first: int, last: int, device: torch.device, workers: int = 0
) -> Generator[Any, None, None]:
    """Batches ``first`` to ``last - 1`` in order, on ``device``.

    With ``workers`` so many processes make them too; they end with this one, however it ends. For an accelerator they
    make all batches ahead of time. On a CPU whoever makes a batch beside a step takes its cores (a process beside a
    CLIP step made it a sixth longer, a thread 40%): there they work while this process makes a batch itself, each at
    one of the next, and wait while it computes. Without workers an accelerator gets each from a thread that makes it
    while the one before is used, and a CPU makes each when it is needed.
    """
    if workers and device.type == "cpu":
        yield from _in_turn(batch_at, first, last, workers)
        return
    if workers:
        made = _from_processes(lambda index: batch_at(first + index), last - first, workers)
        yield from (to_device(batch, device) for batch in made)
        return
    if device.type == "cpu":
        yield from map(batch_at, range(first, last))
        return
    with ThreadPoolExecutor(max_workers=1) as worker:

        def make(step: int) -> Any:
            return to_device(batch_at(step), device)

        coming = worker.submit(make, first)
        for step in range(first, last):
            batch = coming.result()
            if step + 1 < last:
                coming = worker.submit(make, step + 1)
            yield batch


def _in_turn(batch_at: Callable[[int], Any], first: int, last: int, workers: int) -> Iterator[Any]:
    """Of every ``workers`` + 1 batches this process makes the first, and meanwhile each of the others makes one."""
    gates = [multiprocessing.get_context("fork").Semaphore(0) for _ in range(workers)]

    def theirs(index: int) -> Any:
        turn, worker = divmod(index, workers)  # the loader asks its workers one after the other
        gates[worker].acquire()
        return batch_at(first + turn * (workers + 1) + 1 + worker)

    turns, over = divmod(last - first, workers + 1)
    coming = _from_processes(theirs, turns * workers + max(0, over - 1), workers, ahead=1)
    try:
        for start in range(first, last, workers + 1):
            asked = min(workers, last - start - 1)
            for gate in gates[:asked]:
                gate.release()
            yield batch_at(start)
            for _ in range(asked):
                yield next(coming)
    finally:
        for gate in gates:  # nobody is to be found waiting when the loader ends them
            gate.release()


class Numbered(Dataset[Any]):
    """``count`` things by number, as torch's loader asks for them."""

    def __init__(self, make: Callable[[int], Any], count: int) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def _end_with_parent(parent: int, worker: int) -> None:
    """Let Linux end this process as soon as the one that trains is gone; elsewhere it looks every few seconds."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
        if os.getppid() != parent:  # gone before it was asked for: nobody would tell
            os._exit(1)


def _from_processes(
    make: Callable[[int], Any], count: int, workers: int, *, ahead: int = BATCHES_AHEAD
) -> Iterator[Any]:
    # forked, because what makes a batch holds open files and a world of drawings, which then need not be sent; with a
    # generator of its own the loader draws nothing from the run's
    return iter(
        DataLoader(
            Numbered(make, count),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead,
            multiprocessing_context="fork",
            generator=torch.Generator(),
            worker_init_fn=functools.partial(_end_with_parent, os.getpid()),
        )
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with all of its tensors on ``device``: a tensor, or a dataclass, a tuple, a list of such."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = {
            item.name: to_device(getattr(batch, item.name), device) for item in dataclasses.fields(batch)
        }
        return dataclasses.replace(batch, **moved)
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(part, device) for part in batch)
    return batch


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All tensors of a batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for item in dataclasses.fields(batch):
            yield from tensors_in(getattr(batch, item.name))
    elif isinstance(batch, tuple | list):
        for part in batch:
            yield from tensors_in(part)
