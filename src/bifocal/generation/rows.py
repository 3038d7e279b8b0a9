"""Whose the rows of a cache are and what they hold, so that what is there already is not computed again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bifocal.generation.prompt import Prompt, common_prefix
from bifocal.models.blocks import KeyValueCache

LEAST_REUSED = 8  # fewer positions are computed again faster than they are found and copied


@dataclass(eq=False)
class Lane:
    """A sequence's way through one row of the cache: what it begins with, and the token that is fed next."""

    prompt: Prompt
    keys: list[Hashable]  # of the whole prompt (``position_keys``)
    encoded: Tensor | None = None
    row: int = -1
    embedded: Tensor | None = None  # what is prefilled, from the position ``first`` on
    first: int = 0
    token: int = -1
    logits: Tensor | None = None  # (V,) of the next token, until it is chosen


@dataclass(eq=False)
class Row:
    """What a row of the cache holds, position by position, and whose it is."""

    keys: list[Hashable] = field(default_factory=list)
    lane: Lane | None = None
    used: int = 0


class CacheRows:
    """The rows of a cache. The first ``decoding`` of them hold the lanes whose prompt is through.

    So a step reads them where they lie. Rows change places for that, once when a lane begins to decode and once when it
    ends.
    """

    def __init__(self, cache: KeyValueCache, count: int, *, reuse: bool) -> None:
        self.cache, self.reuse = cache, reuse
        self.rows = [Row() for _ in range(count)]
        self.decoding = 0
        self._clock = 0

    @property
    def free(self) -> int:
        """How many are nobody's."""
        return sum(row.lane is None for row in self.rows)

    def held(self, lane: Lane) -> list[Hashable]:
        """What a lane's row holds; whoever writes to the row appends to it."""
        return self.rows[lane.row].keys

    def take(self, lane: Lane) -> Lane:
        """Give a lane the free row whose content it continues, or else the one that was not used for longest."""
        free = [index for index, row in enumerate(self.rows) if row.lane is None]
        best = min(free, key=lambda index: self.rows[index].used)
        for index in free:
            keys = self.rows[index].keys
            if keys and self.reuse and common_prefix(lane.keys, keys, LEAST_REUSED) == len(keys):
                best = index
        lane.row = best
        self.rows[best].lane = lane
        return lane

    def adopt(self, lane: Lane, ahead: Sequence[Lane]) -> bool:
        """Let a lane's row hold what is cached of its prompt, wherever that is.

        False, with nothing done, if more of it will be cached once the lanes ahead are through.
        """
        wanted = lane.keys[:-1]  # the last position is computed in any case: its logits are needed
        found = [0] * len(self.rows)
        if self.reuse:
            found = [common_prefix(wanted, row.keys, LEAST_REUSED) for row in self.rows]
        best = max(range(len(found)), key=found.__getitem__)
        coming = max((common_prefix(wanted, other.keys, LEAST_REUSED) for other in ahead), default=0)
        if self.reuse and coming >= found[best] + LEAST_REUSED:
            return False
        if found[best] > found[lane.row]:
            self.cache.copy(best, lane.row, found[lane.row], found[best])
        self.rows[lane.row].keys = lane.keys[: found[best]]
        return True

    def enter(self, lane: Lane) -> None:
        """The lane decodes from now on."""
        self._swap(lane.row, self.decoding)
        self.decoding += 1

    def leave(self, lane: Lane) -> None:
        """The lane does not decode any more, or did not yet; it keeps its row."""
        lane.logits = None
        if lane.row < self.decoding:
            self.decoding -= 1
            self._swap(lane.row, self.decoding)

    def release(self, lane: Lane) -> None:
        """The lane has ended. What its row holds stays there until the row is given away."""
        self.leave(lane)
        self._clock += 1
        row = self.rows[lane.row]
        row.lane, row.used = None, self._clock

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        rows = self.rows
        length = max(len(rows[one].keys), len(rows[other].keys))
        if length:
            self.cache.swap(one, other, length)
        rows[one], rows[other] = rows[other], rows[one]
        for index in (one, other):
            lane = rows[index].lane
            if lane is not None:
                lane.row = index
