"""VQAv2, GQA, CLEVR and NLVR2 by their own rules: ``official`` as the published script has it, ``sane`` beside it.

A prediction belongs to a benchmark when its ``facts`` name one, which the readers of ``data.formats`` write into every
sample; a folder that was imported from a benchmark is scored by the same rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bifocal.config import UserError
from bifocal.evaluation.results import Prediction
from bifocal.evaluation.scoring import Measure, Measuring, majority, mean_measure
from bifocal.measures import concluded, normalize_answer, official_vqa_accuracy, sane_vqa_accuracy, verdict
from bifocal.measures.gqa import belongs, consistency, distribution

OFFICIAL, SANE = "official", "sane"


def official_measuring(predictions: Sequence[Prediction]) -> Measuring | None:
    """The rules of the benchmark that these predictions are from, or None; UserError where they are from several."""
    names = {p.get("facts", {}).get("benchmark") for p in predictions}
    if len(names) > 1:
        found = ", ".join(sorted(str(name or "no benchmark") for name in names))
        raise UserError(
            f"The samples are from {found}, which are scored by different rules: score them apart."
        )
    return BENCHMARKS.get(names.pop()) if names else None


# ------------------------------------------------------------ VQAv2


def vqav2(predictions: Sequence[Prediction]) -> list[Measure]:
    """Accuracy against ten people. The baseline gives each answer type its most frequent answer."""
    measures = []
    counts: dict[str, Counter[str]] = {}
    for p in predictions:
        counts.setdefault(p["slice"], Counter())[p["answer"]] += 1
    usual = {name: min(some, key=lambda a: (-some[a], a)) for name, some in counts.items()}
    for variant, accuracy in ((OFFICIAL, official_vqa_accuracy), (SANE, sane_vqa_accuracy)):
        values = [accuracy(p["prediction"], p["references"]) for p in predictions]
        base = [accuracy(usual[p["slice"]], p["references"]) for p in predictions]
        measures.append(mean_measure("accuracy", values, baseline=base, variant=variant))
    return measures


# ------------------------------------------------------------ one right answer: CLEVR, GQA


def exact(predictions: Sequence[Prediction], counted: np.ndarray | None = None) -> list[Measure]:
    """Accuracy by equality of strings, and after normalisation. The baseline gives each slice its usual answer.

    That is the usual one of the ``counted`` samples, (n,) bool, where not all are.
    """
    measures = []
    readings: tuple[tuple[str, Callable[[str], str], Callable[[str], str]], ...] = (
        (OFFICIAL, str, str),
        (SANE, normalize_answer, concluded),
    )
    for variant, form, answer_of in readings:
        truth = [form(p["answer"]) for p in predictions]
        said = [form(answer_of(p["prediction"])) for p in predictions]
        correct = [answer == t != "" for answer, t in zip(said, truth, strict=True)]
        baseline = majority(predictions, truth, counted)
        measures.append(
            mean_measure("accuracy", correct, baseline=baseline, variant=variant, right_or_wrong=True)
        )
    return measures


def gqa(predictions: Sequence[Prediction]) -> list[Measure]:
    """Accuracy on balanced questions, consistency, validity, plausibility and distribution.

    Consistency has no value (None) where an entailed question is not among those asked; validity and plausibility have
    none without the choices of every balanced question. No value is not zero: it was not computed. Raises UserError
    for samples of an import that called the group of answers as others call what is resampled together.
    """
    facts: list[Mapping[str, Any]] = [p["facts"] for p in predictions]
    if not all("answer_group" in f for f in facts):
        raise UserError(
            "These questions of GQA were imported by an earlier version, whose intervals were wrong: import them again."
        )
    balanced = np.array([f["balanced"] for f in facts], dtype=np.float64)
    measures = [
        Measure(
            measure.metric,
            measure.statistics * balanced[:, None],
            baseline=None if measure.baseline is None else measure.baseline * balanced[:, None],
            variant=measure.variant,
            right_or_wrong=measure.right_or_wrong,
            denominator=balanced,
        )
        for measure in exact(predictions, balanced > 0)
    ]
    correct = {p["id"]: p["prediction"] == p["answer"] for p in predictions}
    chosen: list[int] = np.flatnonzero(balanced).tolist()
    measures.append(_mean_of("consistency", len(predictions), _consistencies(predictions, chosen, correct)))
    for metric, key in (("validity", "valid"), ("plausibility", "plausible")):
        values: dict[int, float] | None = None
        if all(key in facts[i] for i in chosen):
            values = {
                i: belongs(predictions[i]["prediction"], facts[i][key], facts[i]["detailed"]) for i in chosen
            }
        measures.append(_mean_of(metric, len(predictions), values))
    grouped = [i for i in chosen if facts[i]["answer_group"] is not None]
    value = distribution(
        [facts[i]["answer_group"] for i in grouped],
        [predictions[i]["answer"] for i in grouped],
        [predictions[i]["prediction"] for i in grouped],
    )
    # It belongs to the whole set: every question of a group is given the same value, whose mean it is. It is not
    # resampled, because a resample repeats questions and so is always further from the truth.
    whole = _mean_of(
        "distribution", len(predictions), None if value is None else dict.fromkeys(grouped, value)
    )
    measures.append(replace(whole, resampled=False))
    return measures


def _consistencies(
    predictions: Sequence[Prediction], chosen: Sequence[int], correct: Mapping[str, bool]
) -> dict[int, float] | None:
    """Of each balanced question that has one; None where an entailed question was not asked."""
    values = {}
    for i in chosen:
        entailed = predictions[i]["facts"]["entailed"]
        if any(other not in correct for other in entailed):
            return None
        value = consistency(predictions[i]["id"], entailed, correct)
        if value is not None:
            values[i] = value
    return values


def _mean_of(metric: str, samples: int, values: Mapping[int, float] | None) -> Measure:
    """The mean over those samples that have a value; without any value, or with None, there is no score."""
    statistics = np.zeros((samples, 2))
    for place, value in (values or {}).items():
        statistics[place] = (value, 1.0)
    return Measure(metric, statistics, variant=OFFICIAL, denominator=statistics[:, 1], sliced=False)


# ------------------------------------------------------------ NLVR2


def nlvr2(predictions: Sequence[Prediction]) -> list[Measure]:
    """Accuracy, and the share of sentences that are judged rightly about every pair of their set.

    The official script takes "True" and "False" in any case; the sane reading also takes "yes" and "no", and the first
    word of a longer answer.
    """
    measures = []
    truth = [p["answer"].lower() for p in predictions]
    readings: tuple[tuple[str, Callable[[str], str | None]], ...] = ((OFFICIAL, str.lower), (SANE, verdict))
    for variant, read in readings:
        correct = np.array([read(p["prediction"]) == t for p, t in zip(predictions, truth, strict=True)])
        baseline = majority(predictions, truth)
        measures.append(
            mean_measure("accuracy", correct, baseline=baseline, variant=variant, right_or_wrong=True)
        )
        # a sentence counts once, at its first pair
        members: dict[str, list[int]] = {}
        for place, p in enumerate(predictions):
            members.setdefault(p["facts"]["sentence"], []).append(place)
        statistics = np.zeros((len(predictions), 2))
        for places in members.values():
            statistics[places[0]] = (correct[places].all(), 1.0)
        measures.append(
            Measure("consistency", statistics, variant=variant, denominator=statistics[:, 1], sliced=False)
        )
    return measures


BENCHMARKS: dict[str | None, Measuring] = {"vqav2": vqav2, "gqa": gqa, "clevr": exact, "nlvr2": nlvr2}
