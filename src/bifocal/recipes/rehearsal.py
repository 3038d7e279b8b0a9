"""Real steps of a recipe, taken in a process of their own: what they add to its memory, and how long they take.

A process takes more than its tensors: gaps of the heap, kernels that are compiled for every new shape, and what every
thread keeps for itself. So the steps are taken as training takes them, with all its threads, in a process that has
done nothing else.
"""

from __future__ import annotations

import json
import pkgutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bifocal.config import from_dict, to_dict
from bifocal.recipes.sketches import sketch
from bifocal.training.memory import added_memory

STEPS = 12  # after which hardly a shape is new
WARM = 2  # of them whose time is not counted
PATIENCE = 180.0  # seconds


@dataclass(frozen=True)
class Rehearsed:
    """Steps of ``size`` samples: bytes that they add at their peak, and the seconds of each once its batch is there.

    Times are the median with its quartiles; ``waited`` is what making the batch takes, the mean of all steps.
    """

    size: int
    memory: int
    seconds: float
    low: float
    high: float
    waited: float


def rehearse(recipe: Any, size: int) -> Rehearsed | None:
    """``take_steps`` in a process of its own; None where that fails or takes too long, and elsewhere than on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    kind = type(recipe)
    told = [f"{kind.__module__}:{kind.__qualname__}", to_dict(recipe), size]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bifocal.recipes.rehearsal"],
            input=json.dumps(told),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return Rehearsed(**json.loads(done.stdout.splitlines()[-1]))


def take_steps(recipe: Any, size: int, *, seconds: float = 0.0, workers: int = 0) -> Rehearsed:
    """Take ``STEPS`` steps, or more until ``seconds`` are over, in this very process."""
    planned = sketch(recipe)
    taken: list[tuple[float, float]] = []

    def before() -> None:
        planned.batch(0, size)  # what the data keep is no part of a step
        next(planned.steps(2))  # nor is what a library loads when it is first needed

    def work() -> None:
        for step in planned.steps(size, workers):
            taken.append(step)
            if len(taken) >= STEPS and sum(whole for whole, _ in taken) >= seconds:
                break

    memory = added_memory(before, work)
    low, middle, high = statistics.quantiles([whole - waited for whole, waited in taken[WARM:]], n=4)
    waited = statistics.mean(waited for _, waited in taken[WARM:])
    return Rehearsed(size, memory, middle, low, high, waited)


def take_steps_on(recipe: Any, size: int, device: torch.device, *, rounds: int = 4) -> Rehearsed:
    """Likewise on an accelerator, ``STEPS`` in each of ``rounds``, with batches that are there already.

    It is told what to do long before it is done, so a step's seconds are those of a round, at the end of which it is
    waited for, divided by its steps. Memory is what torch allocated there at its peak, without what libraries take once
    in every process to work in (60 MiB on an H100).
    """
    planned = sketch(recipe)
    next(planned.steps(2, device=device, repeated=1))
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    coming = planned.steps(size, device=device, repeated=4)
    taken = []
    for _ in range(1 + rounds):  # in the first, kernels are loaded and chosen
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(STEPS):
            next(coming)
        torch.cuda.synchronize(device)
        taken.append((time.perf_counter() - began) / STEPS)
    low, middle, high = statistics.quantiles(taken[1:], n=4)
    return Rehearsed(size, torch.cuda.max_memory_allocated(device) - held, middle, low, high, 0.0)


def main(told: Sequence[Any]) -> None:
    """Print what steps of the recipe that was told took, as JSON."""
    name, settings, size = told
    print(json.dumps(asdict(take_steps(from_dict(pkgutil.resolve_name(name), settings), size))))


if __name__ == "__main__":
    main(json.load(sys.stdin))
