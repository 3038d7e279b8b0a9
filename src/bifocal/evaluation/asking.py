"""Putting every sample of a data set to a model, in batches, with its own pictures or with blank ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from bifocal.config import UserError
from bifocal.data.sample import Dataset, Sample
from bifocal.evaluation.kinds import slices_of
from bifocal.evaluation.results import Prediction

Progress = Callable[[int, int], None]  # (samples done, samples in all)

# A blank picture is uniform, in about the mean colour of the default data's backgrounds.
BLANK_VALUE = 235


class GivenAnswer(Protocol):
    """What evaluation reads of an answer (see ``bifocal.inference.Answer``)."""

    @property
    def text(self) -> str: ...
    @property
    def boxes(self) -> Sequence[Sequence[float]]: ...
    @property
    def finish_reason(self) -> str: ...


class Answering(Protocol):
    """What evaluation needs of a VLM."""

    name: str

    def answer_batch(
        self, requests: Sequence[tuple[Sequence[np.ndarray], str]], *, max_new_tokens: int, batch_size: int
    ) -> Sequence[GivenAnswer]: ...


def look_up(dataset: Dataset, key: str, *, blank: bool = False) -> np.ndarray:
    """The picture of a data set, or a blank one of the same shape: (H,W,3) uint8."""
    picture = dataset.picture(key)
    return np.full_like(picture, BLANK_VALUE) if blank else picture


def batches(samples: Sequence[Sample], size: int, progress: Progress | None) -> Iterator[list[int]]:
    """Positions of samples, ``size`` at a time, those with equally many pictures together to save padding."""
    order = sorted(
        range(len(samples)), key=lambda i: len(samples[i].pictures)
    )  # stable: neighbours stay neighbours
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen
        if progress is not None:
            progress(start + len(chosen), len(order))


def ask_all(
    model: Answering,
    dataset: Dataset,
    *,
    max_new_tokens: int,
    blank: bool = False,
    progress: Progress | None = None,
    batch_size: int = 64,
) -> list[Prediction]:
    """Greedy answers to all samples, in the data set's order, as predictions without a judgement.

    A prediction has the sample's id, pictures, slice, question and answer, and the model's ``prediction``,
    ``boxes`` (normalised x1,y1,x2,y2) and ``finish_reason``. Raises UserError for a conversation of more than
    one question.
    """
    predictions: list[Prediction] = [{} for _ in dataset.samples]
    for chosen in batches(dataset.samples, batch_size, progress):
        samples = [dataset.samples[i] for i in chosen]
        for sample in samples:
            if [message.role for message in sample.messages] != ["user", "assistant"]:
                raise UserError(
                    f"Sample {sample.id} of {dataset.name} is not one question and one answer, "
                    "which is all that evaluation can judge."
                )
        requests = [([look_up(dataset, k, blank=blank) for k in s.pictures], s.question) for s in samples]
        answers = model.answer_batch(requests, max_new_tokens=max_new_tokens, batch_size=batch_size)
        if len(answers) != len(samples):
            raise RuntimeError(f"{model.name} gave {len(answers)} answers to {len(samples)} questions.")
        for position, sample, answer in zip(chosen, samples, answers, strict=True):
            predictions[position] = prediction_of(sample, answer.text.strip(), answer.boxes)
            predictions[position]["finish_reason"] = answer.finish_reason
    return predictions


def right_answers(sample: Sample) -> list[str]:
    """All right answers as text: the references, or else the text of the conversation's last turn."""
    return list(sample.references) or [sample.answer_text]


def prediction_of(sample: Sample, text: str, boxes: Sequence[Sequence[float]] = ()) -> Prediction:
    """An answer beside what it is an answer to. What a benchmark's own rules need travels along as ``facts``."""
    facts: dict[str, Any] = dict(sample.facts or {})
    prediction: Prediction = {
        "id": sample.id,
        "pictures": list(sample.pictures),
        "slice": sample.slice,
        "question": sample.question,
        "prediction": text,
        "answer": sample.answer_text or right_answers(sample)[0],
        "boxes": [[float(edge) for edge in box] for box in boxes],
    }
    if "benchmark" in facts:
        prediction["facts"] = facts
    slices = slices_of(sample)
    if slices != [sample.slice]:
        prediction["slices"] = slices
    if "group" in facts:
        prediction["group"] = facts["group"]
    return prediction
