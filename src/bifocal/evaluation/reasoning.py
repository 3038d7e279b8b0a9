"""Visual reasoning: is this statement about one picture, or about a pair, true?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from bifocal.data.sample import Dataset, Sample
from bifocal.evaluation.asking import Answering, Asking, ask_and_judge
from bifocal.evaluation.benchmarks import official_measuring
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, majority, mean_measure, score_rows
from bifocal.measures import verdict

TASK = "reasoning"
MAX_NEW_TOKENS = 48  # a short answer, and room for what is said before it


def predict(
    model: Answering, dataset: Dataset, *, max_new_tokens: int = MAX_NEW_TOKENS, **asking: Unpack[Asking]
) -> list[Prediction]:
    """Greedy answers, each with ``correct`` and ``unparsed`` (neither true nor false)."""
    return ask_and_judge(model, dataset, judge, max_new_tokens=max_new_tokens, **asking)


def judge(prediction: Prediction, sample: Sample) -> None:
    """Add ``correct``, and ``unparsed`` where the answer is neither true nor false."""
    said = verdict(prediction["prediction"])
    prediction["correct"] = said is not None and said == verdict(prediction["answer"])
    prediction["unparsed"] = said is None


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Accuracy, what is neither true nor false being wrong; the baseline is each slice's majority.

    Statements of a benchmark are scored by its own rules (see ``evaluation.benchmarks``).
    """
    official = official_measuring(predictions)
    if official is not None:
        return official(predictions)
    truth = [verdict(p["answer"]) or "" for p in predictions]
    said = [verdict(p["prediction"]) for p in predictions]
    correct = [s is not None and s == t for s, t in zip(said, truth, strict=True)]
    return [mean_measure("accuracy", correct, baseline=majority(predictions, truth), right_or_wrong=True)]


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for all statements, and for those about one picture and about a pair apart."""
    return score_rows(TASK, measure, predictions, model=model, split=split, blank=blank)
