"""Visual question answering: short answers, right if equal to a reference after normalisation.

Where reasons come first ("two, one: three"), what is behind the last colon counts, but for the official scores of
benchmarks, which take an answer as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from bifocal.data.sample import Dataset, Sample
from bifocal.evaluation.asking import Answering, Asking, ask_and_judge, right_answers
from bifocal.evaluation.benchmarks import official_measuring
from bifocal.evaluation.reasoning import MAX_NEW_TOKENS
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, majority, mean_measure, score_rows
from bifocal.measures import exact_match, normalize_answer

TASK = "vqa"


def predict(
    model: Answering, dataset: Dataset, *, max_new_tokens: int = MAX_NEW_TOKENS, **asking: Unpack[Asking]
) -> list[Prediction]:
    """Greedy answers, each with ``references``, ``correct`` and ``unparsed`` (an empty answer)."""
    return ask_and_judge(model, dataset, judge, max_new_tokens=max_new_tokens, **asking)


def judge(prediction: Prediction, sample: Sample) -> None:
    """Add ``references``, ``unparsed`` (an empty answer) and ``correct`` (equal to a reference after normalisation)."""
    prediction["references"] = right_answers(sample)
    prediction["correct"] = exact_match(prediction["prediction"], prediction["references"])
    prediction["unparsed"] = not prediction["prediction"].strip()


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Accuracy; the baseline gives each kind of question its most frequent answer among those asked here.

    Questions of a benchmark are scored by its own rules (see ``evaluation.benchmarks``).
    """
    official = official_measuring(predictions)
    if official is not None:
        return official(predictions)
    correct = [exact_match(p["prediction"], p["references"]) for p in predictions]
    baseline = majority(predictions, [normalize_answer(p["answer"]) for p in predictions])
    return [
        mean_measure(
            "accuracy", correct, baseline=baseline, variant="answers=normalized", right_or_wrong=True
        )
    ]


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for all questions and for each kind of question."""
    return score_rows(TASK, measure, predictions, model=model, split=split, blank=blank)
