"""What scores are about beside their variant: which model, which data, asked in which words, decoded how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bifocal.config import fingerprint
from bifocal.data.prompts import WORDINGS, inside
from bifocal.data.sample import Dataset, Sample
from bifocal.evaluation.answers import data_fingerprint
from bifocal.evaluation.asking import right_answers
from bifocal.evaluation.results import Stamp


def stamp_of(
    model: Any, dataset: Dataset, task: str, name: str, asked: Mapping[str, Any] | None = None
) -> Stamp:
    """The stamp of the scores of a model, called ``name``, on a data set.

    ``asked`` is what ``asking.ask_all`` says of itself, None for tasks that ask nothing: those have neither a prompt
    nor a decoding (what a CLIP is asked stands in the variant of its scores).
    """
    decoding = None
    if asked is not None:
        settings = asked["settings"]
        decoding = {"temperature": 0.0, **{key: settings[key] for key in ("max_new_tokens", "batch_size")}}
    return {
        "model": name,
        "task": task,
        "split": dataset.split,
        "model_fingerprint": asked["model"] if asked is not None else getattr(model, "fingerprint", None),
        "data": dataset.name,
        "samples": len(dataset.samples),
        "data_fingerprint": asked["data"] if asked is not None else data_fingerprint(dataset),
        "answers_fingerprint": answers_fingerprint(dataset.samples),
        "prompt": None if asked is None else prompt_of(task, dataset.samples),
        "decoding": decoding,
    }


def answers_fingerprint(samples: Sequence[Sample]) -> str:
    """Names what is right: the answers, references and boxes of all samples, which ``data_fingerprint`` leaves out."""
    return fingerprint(
        [
            [sample.id, right_answers(sample), [[float(edge) for edge in box] for box in sample.boxes]]
            for sample in samples
        ]
    )


def prompt_of(task: str, samples: Sequence[Sample]) -> str | None:
    """The words that all are asked in, with ``{}`` for what differs; None where everyone is asked in its own."""
    questions = {sample.question for sample in samples}
    wording = WORDINGS[task][0] if task in WORDINGS else None
    if wording is not None and all(inside(wording, question) is not None for question in questions):
        return wording
    return questions.pop() if len(questions) == 1 else None
