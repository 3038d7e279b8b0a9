"""Keeping answers even: exactly in evaluation sets, and by measured acceptance rates in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from bifocal.data.sample import Part


class Draft(NamedTuple):
    """One possible question about pictures.

    ``group`` names everything in the question that could hint at the answer (its form, its numbers); answers are
    kept even within each group. ``label`` is the answer as counted, ``about`` the names the question turns on.
    ``rationale`` says what in the pictures decides the answer, where more is to be seen than it tells.
    """

    slice: str
    question: str
    answer: tuple[Part, ...]
    group: str
    label: str
    about: tuple[str, ...]
    rationale: str = ""


# The largest share of one answer within a group of questions. True for evaluation sets; training comes near.
SHARES = {
    "object": 0.05,
    "count": 0.25,
    "exists": 0.5,
    "where": 0.16,
    "category": 0.25,
    "size": 0.25,
    "tile": 0.16,
    "relation": 0.05,
    "compare": 0.5,
    "pair-which": 0.25,
    "pair-both": 0.05,
    "pair-count": 0.25,
    "every": 0.5,
    "single": 0.5,
    "pair": 0.5,
}
# No answer takes more than this of a kind with several answers, even in worlds that offer few.
LOOSE_SHARE = 0.38


class Tally:
    """A running count of answers by group, and whether one more of an answer would keep it under its share."""

    def __init__(self) -> None:
        self.labels: dict[tuple[str, str], Counter[str]] = {}
        self.totals: Counter[tuple[str, str]] = Counter()
        self.slices: dict[str, Counter[str]] = {}

    def load(self, draft: Draft) -> int:
        """How often the answer was given in the group and slice so far: less is better."""
        group = self.labels.get((draft.slice, draft.group))
        within = self.slices.get(draft.slice)
        return 4 * (group[draft.label] if group else 0) + (within[draft.label] if within else 0)

    def allows(self, draft: Draft, share: float) -> bool:
        """Whether the answer stands at or under ``share`` in its group and, loosely, in its whole slice."""
        key = (draft.slice, draft.group)
        group = self.labels.get(key)
        if group is not None and group[draft.label] > share * self.totals[key]:
            return False
        within = self.slices.get(draft.slice)
        return within is None or within[draft.label] <= share * within.total()

    def add(self, draft: Draft) -> None:
        key = (draft.slice, draft.group)
        self.labels.setdefault(key, Counter())[draft.label] += 1
        self.totals[key] += 1
        self.slices.setdefault(draft.slice, Counter())[draft.label] += 1


def acceptance(tally: Tally, shares: Mapping[str, float]) -> dict[tuple[str, str, str], float]:
    """How often to keep a random draft so that no answer passes its share: {(slice, group, label): rate}.

    Within a group every count is cut down to one level, the highest at which the most frequent answer keeps to its
    share; answers that never occurred are kept.
    """
    rates: dict[tuple[str, str, str], float] = {}
    for (name, group), counts in tally.labels.items():
        share = shares.get(name, 1.0)
        if share >= 1:
            continue
        share = max(share, 1 / len(counts))
        low, high = 0.0, float(max(counts.values()))
        for _ in range(20):
            level = (low + high) / 2
            if level <= share * sum(min(count, level) for count in counts.values()):
                low = level
            else:
                high = level
        level = max(low, 0.02 * max(counts.values()))
        for label, count in counts.items():
            rates[name, group, label] = min(1.0, level / count)
    return rates
