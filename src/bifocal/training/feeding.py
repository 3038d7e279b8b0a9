"""Getting batches to the step, and how long the step waits for them.

A batch is a pure function of its step, so that whoever makes it, in whatever order, makes the same.
"""

from __future__ import annotations

import ctypes
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

BATCHES_AHEAD = 2  # of each worker process
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
) -> Iterator[Any]:
    """Batches ``first`` to ``last - 1`` in order, on ``device``.

    With ``workers`` so many processes make them ahead of time; they end with this one, however it ends. Without, an
    accelerator gets each from a thread that makes it while the one before is used, and a CPU makes each when it is
    needed: there the thread that makes the next batch takes the interpreter and the cores from the step itself (a CLIP
    step of 0.80 s took 1.11 s that way).
    """
    if workers:
        yield from (to_device(batch, device) for batch in _from_processes(batch_at, first, last, workers))
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


class Steps(Dataset[Any]):
    """The batches of steps ``first`` to ``last - 1``, as torch's loader asks for them."""

    def __init__(self, batch_at: Callable[[int], Any], first: int, last: int) -> None:
        self.batch_at, self.first, self.last = batch_at, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Any:
        return self.batch_at(self.first + index)


def _end_with_parent(worker: int) -> None:
    """Let Linux end this process as soon as the one that trains is gone; elsewhere it looks every few seconds."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, int(signal.SIGKILL))


def _from_processes(batch_at: Callable[[int], Any], first: int, last: int, workers: int) -> Iterator[Any]:
    # forked, because what makes a batch holds open files and a world of drawings, which then need not be sent; with a
    # generator of its own the loader draws nothing from the run's
    return iter(
        DataLoader(
            Steps(batch_at, first, last),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD,
            multiprocessing_context="fork",
            generator=torch.Generator(),
            worker_init_fn=_end_with_parent,
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
