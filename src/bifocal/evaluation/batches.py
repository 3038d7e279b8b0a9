"""Going through a data set batch by batch: what was done before stands, ranks share the rest, and all get everything.

A batch is done as a whole, and in reduced precision the company that a sample is in can decide the last bit of what is
said of it. So the batches are the same however often an evaluation is interrupted and however many ranks share it, and
a batch that is not whole is done again as a whole: the result is that of a run without interruption.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bifocal import distributed
from bifocal.config import UserError
from bifocal.data.sample import Sample
from bifocal.evaluation.answers import AnswerStore, Given, is_whole

Progress = Callable[[int, int], None]  # (samples done, samples in all)
# Positions of a batch's samples, and what was given for them before where not all of it failed -> what is given now.
Do = Callable[[list[int], Sequence[Given] | None], list[Given]]


def plan(samples: Sequence[Sample], size: int) -> list[list[int]]:
    """Positions of samples, ``size`` at a time, those with equally many pictures together to save padding."""
    order = sorted(
        range(len(samples)), key=lambda i: len(samples[i].pictures)
    )  # stable: neighbours stay neighbours
    return [order[start : start + size] for start in range(0, len(order), size)]


def batches(samples: Sequence[Sample], size: int, progress: Progress | None) -> Iterator[list[int]]:
    """The batches of ``plan`` one after the other, with progress."""
    done = 0
    for chosen in plan(samples, size):
        yield chosen
        done += len(chosen)
        if progress is not None:
            progress(done, len(samples))


def go_through(
    samples: Sequence[Sample],
    size: int,
    do: Do,
    *,
    what: str,
    about: Mapping[str, Any] | None = None,
    keep: Path | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> list[Given]:
    """What ``do`` gives for each sample, in the samples' order, ``size`` of them at a time.

    With a directory to ``keep`` it in, everything is written down as it is given, under ``about`` (see ``AnswerStore``,
    also for ``restart``), and what is there already is not done again; ``what`` says in a message what that is. Ranks
    share the batches, and all get all of it, the same as one would alone.
    """
    numbered = plan(samples, size)
    store = None
    given: dict[int, list[Given]] = {}
    if keep is not None:
        store = AnswerStore(keep, about or {}, len(numbered), restart=restart)
        given = dict(store.given)
    waiting = [number for number in range(len(numbered)) if not is_whole(given.get(number))]
    before = len(samples) - sum(len(numbered[number]) for number in waiting)
    if before and distributed.is_main():
        print(f"bifocal: {before} of the {len(samples)} {what} before", file=sys.stderr)
    mine: dict[int, list[Given]] = {}
    done = 0
    for number in waiting[distributed.rank() :: distributed.world_size()]:
        mine[number] = do(numbered[number], given.get(number))
        if store is not None:
            store.keep(number, mine[number])
        done += len(mine[number])
        if progress is not None:
            progress(min(len(samples), before + done * distributed.world_size()), len(samples))
    for share in distributed.gather_objects(mine):
        given.update(share)
    found: list[Given] = [{} for _ in samples]
    for number, chosen in enumerate(numbered):
        for position, one in zip(chosen, given[number], strict=True):
            found[position] = one
    return found


def reason_of(error: Exception) -> str:
    """Why a request failed, as its prediction says it."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
