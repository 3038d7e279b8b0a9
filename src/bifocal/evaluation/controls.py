"""What a score is worth beside what it should not come from: the pictures of other samples, and the training data.

The third control, blank pictures, is a column of every row (``scoring.score_rows``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bifocal.config import fingerprint
from bifocal.data.overlap import Match
from bifocal.data.sample import Dataset, Sample
from bifocal.evaluation.results import Row, number
from bifocal.evaluation.scoring import groups_of, intervals, mean_measure

SHUFFLED = "pictures=shuffled"

# ------------------------------------------------------------ shuffled pictures


class ShuffledPictures:
    """A data set whose samples are shown the pictures of others; ids, questions and answers stay.

    Every picture is exchanged for the next in an order that hangs on nothing but the keys, so none keeps its own place
    unless there is only one. A model that looks falls to what the words alone give it, or below: other than a blank
    picture, a wrong one is like those it learnt from.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.name, self.split = f"{dataset.name}, pictures shuffled", dataset.split
        self.samples: Sequence[Sample] = dataset.samples
        self.world = getattr(dataset, "world", None)  # by which captions of scenes are read
        keys = sorted({key for sample in dataset.samples for key in sample.pictures}, key=fingerprint)
        self._others = dict(zip(keys, [*keys[1:], *keys[:1]], strict=True))

    def picture(self, key: str) -> np.ndarray:
        """Another picture than that of this key: (H, W, 3) uint8 RGB."""
        return self._dataset.picture(self._others[key])

    def stamp(self, key: str) -> Sequence[int | str]:
        """What changes when the picture shown for this key does."""
        return [self._others[key], *self._dataset.stamp(self._others[key])]

    def mark(self, key: str) -> Sequence[int | str]:
        """What tells the picture shown for this key from another of its name."""
        return [self._others[key], *self._dataset.mark(self._others[key])]


def as_shuffled(rows: Sequence[Row]) -> list[Row]:
    """Scores with shuffled pictures, told from the others by their variant; baseline and blank are not repeated."""
    return [
        replace(row, variant=", ".join(filter(None, (row.variant, SHUFFLED))), baseline=None, blank=None)
        for row in rows
    ]


# ------------------------------------------------------------ contamination

# metric -> the field of a Match
_PARTS = {
    "pictures_in_training": "picture",
    "texts_in_training": "text",
    "samples_in_training": "both",
}


def contamination_rows(dataset: Dataset, matches: Sequence[Match], *, model: str, task: str) -> list[Row]:
    """The share of a test's samples whose picture, text, or both together were trained on, each with its interval.

    The variant says how alike they are: "exact", or "near", which counts what is exact too.
    """
    groups = groups_of([{"pictures": sample.pictures} for sample in dataset.samples])
    chosen = np.arange(len(matches))
    rows = []
    for metric, part in _PARTS.items():
        found: list[Any] = [getattr(match, part) for match in matches]
        if any(one is None for one in found):
            continue
        for variant in ("exact", "near"):
            measure = mean_measure(metric, [getattr(one, variant) for one in found], variant=variant)
            ((value, low, high),) = intervals([measure], chosen, groups)
            rows.append(
                Row(
                    model, task, dataset.split, "all", metric, variant,
                    number(value), number(low), number(high), len(matches),
                )
            )  # fmt: skip
    return rows
