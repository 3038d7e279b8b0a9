"""Real steps of a recipe, taken in a process of their own: what they add to its memory.

A process takes more than its tensors: gaps of the heap, kernels that are compiled for every new shape, and what every
thread keeps for itself. So the steps are taken as training takes them, with all its threads, in a process that has
done nothing else.
"""

from __future__ import annotations

import itertools
import json
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bifocal.config import from_dict, to_dict
from bifocal.recipes.sketches import sketch
from bifocal.training.memory import added_memory

STEPS = 12  # after which hardly a shape is new
PATIENCE = 180.0  # seconds


def rehearse(recipe: Any, sizes: Sequence[int]) -> list[int] | None:
    """Bytes that steps of each of these numbers of samples, in rising order, add to a process at its peak.

    None where that cannot be told: on another system than Linux, or where the steps fail or take too long.
    """
    if not sys.platform.startswith("linux"):
        return None
    kind = type(recipe)
    told = [f"{kind.__module__}:{kind.__qualname__}", to_dict(recipe), list(sizes)]
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
    return list(json.loads(done.stdout.splitlines()[-1]))


def take_steps(recipe: Any, sizes: Sequence[int]) -> list[int]:
    """``rehearse`` in this very process."""
    planned = sketch(recipe)

    def before() -> None:
        planned.batch(0, sizes[-1])  # what the data keep is no part of a step
        next(planned.steps(2))  # nor is what a library loads when it is first needed

    def steps(size: int) -> None:
        for _ in itertools.islice(planned.steps(size), STEPS):
            pass

    return added_memory(before, *(lambda size=size: steps(size) for size in sizes))


if __name__ == "__main__":
    name, settings, wanted = json.load(sys.stdin)
    print(json.dumps(take_steps(from_dict(pkgutil.resolve_name(name), settings), wanted)))
