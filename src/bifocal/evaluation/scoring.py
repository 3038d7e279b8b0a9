"""From predictions to rows: every task says what each sample adds to a score, and this module does the rest.

A task hands over ``Measure``s: sufficient statistics a sample, and the function that turns their sums into
the score. Slices, intervals, baselines, blank pictures and the comparison of two models then need no code of
their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bifocal.config import UserError
from bifocal.evaluation.results import Prediction, Row, number
from bifocal.evaluation.statistics import Combine, Interval, corpus_intervals, ratio, with_count

# A score is withheld when more than this share of the requests failed: what is left may be the easy part.
MOST_FAILURES = 0.01


@dataclass(frozen=True)
class Measure:
    """One metric over n samples: ``statistics`` (n,S) float64, whose sums ``combine`` turns into the score.

    ``baseline`` holds the same statistics for an answer given without looking at the picture.
    ``right_or_wrong`` says that the first statistic is 1 or 0 a sample, so that McNemar's test applies.
    ``resampled`` is False where a bootstrap is biased (codebook usage counts rare codes that a resample
    misses). ``denominator`` (n,) says for how much each sample counts in the number of things scored, where that is
    not the number of samples. ``sliced`` is False for a score that only the whole set has.
    """

    metric: str
    statistics: np.ndarray
    combine: Combine = ratio
    baseline: np.ndarray | None = None
    variant: str = ""
    right_or_wrong: bool = False
    resampled: bool = True
    denominator: np.ndarray | None = None
    sliced: bool = True

    @property
    def name(self) -> tuple[str, str]:
        """What tells this measure from the others of its task."""
        return self.metric, self.variant

    def count(self, chosen: np.ndarray) -> int:
        """How many things the score of the samples at these positions is about."""
        return len(chosen) if self.denominator is None else int(self.denominator[chosen].sum())

    def value(self, chosen: np.ndarray) -> float:
        """The score of the samples at these positions."""
        return float(self.combine(self.statistics[chosen].sum(axis=0)))

    def interval(self, chosen: np.ndarray, groups: Sequence[tuple[str, ...]]) -> Interval:
        """The score of the samples at these positions, with its interval."""
        return intervals([self], chosen, groups)[0]


def intervals(
    measures: Sequence[Measure], chosen: np.ndarray, groups: Sequence[tuple[str, ...]]
) -> list[Interval]:
    """The score of the samples at these positions with its interval, for every measure, on the same draws."""
    drawn = [measure for measure in measures if measure.resampled]
    found = iter(
        corpus_intervals(
            [(measure.statistics[chosen], measure.combine) for measure in drawn], [groups[i] for i in chosen]
        )
    )
    return [
        next(found) if measure.resampled else Interval(measure.value(chosen), np.nan, np.nan)
        for measure in measures
    ]


Measuring = Callable[[Sequence[Prediction]], list[Measure]]


def mean_measure(
    metric: str,
    values: Sequence[float] | np.ndarray,
    *,
    baseline: Sequence[float] | np.ndarray | None = None,
    variant: str = "",
    right_or_wrong: bool = False,
) -> Measure:
    """A metric that is the plain mean of n values, as is its baseline."""
    base = None if baseline is None else with_count(baseline)
    return Measure(metric, with_count(values), baseline=base, variant=variant, right_or_wrong=right_or_wrong)


def majority(
    predictions: Sequence[Prediction], answers: Sequence[str], counted: np.ndarray | None = None
) -> np.ndarray:
    """Whether each sample's answer is the most frequent one of its slice (ties by the alphabet): (n,) bool.

    The mean over a slice is what always giving that answer scores there; over everything it is what knowing
    the kind of question and nothing else scores. Where not all samples are scored, ``counted``, (n,) bool, are.
    """
    by_slice: dict[str, Counter[str]] = {}
    for place, (prediction, answer) in enumerate(zip(predictions, answers, strict=True)):
        if counted is None or counted[place]:
            by_slice.setdefault(prediction["slice"], Counter())[answer] += 1
    best = {name: min(counts, key=lambda a: (-counts[a], a)) for name, counts in by_slice.items()}
    return np.array(
        [best.get(p["slice"]) == a for p, a in zip(predictions, answers, strict=True)], dtype=bool
    )


def parts_of(prediction: Prediction) -> Sequence[str]:
    """The slices that a sample is in: its ``slices`` where it has several, else its ``slice``."""
    parts: Sequence[str] = prediction.get("slices") or (prediction["slice"],)
    return parts


def slices(predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
    """Positions of all samples under "all", then of each slice by the alphabet; one that holds all adds nothing."""
    places: dict[str, list[int]] = {}
    for position, prediction in enumerate(predictions):
        for name in parts_of(prediction):
            places.setdefault(name, []).append(position)
    parts = {
        name: np.array(places[name])
        for name in sorted(places)
        if name != "all" and len(places[name]) < len(predictions)
    }
    return {"all": np.arange(len(predictions)), **parts}


def is_withheld(failed: int, asked: int) -> bool:
    """Whether so many of the requests failed that what was answered gives no score."""
    return failed > MOST_FAILURES * asked


def did_answer(predictions: Sequence[Prediction]) -> np.ndarray:
    """Of each prediction whether it is an answer, and no failed request: (n,) bool."""
    return np.array([not prediction.get("failed") for prediction in predictions], dtype=bool)


def groups_of(predictions: Sequence[Prediction]) -> list[tuple[str, ...]]:
    """What is resampled together: the pictures of each sample, or the ``group`` of samples that it belongs to."""
    return [
        (prediction["group"],) if "group" in prediction else tuple(prediction["pictures"])
        for prediction in predictions
    ]


def same_samples(a: Sequence[Prediction], b: Sequence[Prediction], what: str) -> list[Prediction]:
    """``b`` in the order of ``a``; raises UserError naming some ids where the samples, or their questions, differ."""
    if len({p["id"] for p in a}) != len(a) or len({p["id"] for p in b}) != len(b):
        raise UserError(f"{what} have an id twice, so they cannot be matched.")
    by_id = {prediction["id"]: prediction for prediction in b}
    different = sorted({prediction["id"] for prediction in a} ^ set(by_id))
    if different:
        some = ", ".join(different[:3]) + (", ..." if len(different) > 3 else "")
        raise UserError(
            f"{what} are not about the same samples: {len(different)} ids are in one only ({some})."
        )
    matched = [by_id[prediction["id"]] for prediction in a]
    for one, other in zip(a, matched, strict=True):
        if "question" in one and "question" in other and one["question"] != other["question"]:
            raise UserError(
                f"{what} are not about the same samples: {one['id']} is another question in each."
            )
    return matched


def _count(predictions: Sequence[Prediction], chosen: np.ndarray, key: str, equals: object) -> int | None:
    """How many of the chosen have this value; None if this task's predictions do not speak of it."""
    if not any(key in prediction for prediction in predictions):
        return None
    return sum(predictions[i].get(key) == equals for i in chosen)


def score_rows(
    task: str,
    measuring: Measuring,
    predictions: Sequence[Prediction],
    *,
    model: str,
    split: str,
    blank: Sequence[Prediction] | None = None,
) -> list[Row]:
    """Rows for all samples and for each slice, every metric with interval, baseline and blank column.

    A prediction with ``"failed": True`` is no answer: it is left out of the score and counted, and above 1%
    of them the score is withheld (None), also that of a slice without any answer. An answer that could not be parsed is
    wrong and counted apart. Where a sample was answered and failed with a blank picture, the two do not compare, and
    there is no blank column.
    """
    if not predictions:
        raise UserError(f"There are no predictions to score for {task} on {split}.")
    answered = [p for p in predictions if not p.get("failed")]
    if not answered:
        why = predictions[0].get("failure", "nobody knows why").rstrip(".")
        raise UserError(
            f"Every one of the {len(predictions)} requests for {task} on {split} failed, the first with: {why}."
        )
    measures = measuring(answered)
    blank_measures: list[Measure | None] = [None] * len(measures)
    if blank is not None:
        matched = same_samples(predictions, blank, f"Predictions for {task} with and without pictures")
        kept = [b for p, b in zip(predictions, matched, strict=True) if not p.get("failed")]
        if not any(prediction.get("failed") for prediction in kept):
            by_name = {measure.name: measure for measure in measuring(kept)}
            blank_measures = [by_name.get(measure.name) for measure in measures]
    groups = groups_of(answered)
    rows = []
    is_answer = did_answer(predictions)
    places = np.cumsum(is_answer) - 1  # of an answer among the answers
    for name, members in slices(predictions).items():
        chosen = places[members[is_answer[members]]]
        missing = len(members) - len(chosen)
        withheld = is_withheld(missing, len(members))
        kept_measures = [
            both for both in zip(measures, blank_measures, strict=True) if name == "all" or both[0].sliced
        ]
        bounds = intervals([measure for measure, _ in kept_measures], chosen, groups)
        for (measure, blank_measure), (value, low, high) in zip(kept_measures, bounds, strict=True):
            base = without = np.nan
            if measure.baseline is not None and len(chosen):
                base = float(measure.combine(measure.baseline[chosen].sum(axis=0)))
            if blank_measure is not None and len(chosen):
                without = blank_measure.value(chosen)
            rows.append(
                Row(
                    model=model,
                    task=task,
                    split=split,
                    slice=name,
                    metric=measure.metric,
                    variant=measure.variant,
                    value=None if withheld else number(value),
                    low=None if withheld else number(low),
                    high=None if withheld else number(high),
                    n=measure.count(chosen),
                    baseline=number(base),
                    blank=number(without),
                    unparsed=_count(answered, chosen, "unparsed", True),
                    truncated=_count(answered, chosen, "finish_reason", "length"),
                    failed=missing,
                )
            )
    return rows
