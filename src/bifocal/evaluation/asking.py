"""Putting every sample of a data set to a model, in batches, with its own pictures or with blank ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np

from bifocal.config import UserError
from bifocal.data.fingerprints import asked_fingerprint
from bifocal.data.sample import Dataset, Message, Sample
from bifocal.evaluation.answers import Given
from bifocal.evaluation.batches import Progress, go_through, reason_of
from bifocal.evaluation.kinds import slices_of
from bifocal.evaluation.results import Prediction

# A blank picture is uniform, in about the mean colour of the default data's backgrounds.
BLANK_VALUE = 235

# So many requests that fail one after the other are no accident of single samples: asking on would be in vain.
MOST_IN_A_ROW = 20


# Pictures, and a question about them or messages in which they stand.
Request = tuple[Sequence[np.ndarray], str | Sequence[Message]]


class GivenAnswer(Protocol):
    """What evaluation reads of an answer (see ``bifocal.inference.Answer``)."""

    @property
    def text(self) -> str: ...
    @property
    def boxes(self) -> Sequence[Sequence[float]]: ...
    @property
    def finish_reason(self) -> str: ...


class Answering(Protocol):
    """What evaluation needs of a VLM; ``fingerprint`` names everything that decides its answers."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def answer_batch(
        self, requests: Sequence[Request], *, max_new_tokens: int, batch_size: int
    ) -> Sequence[GivenAnswer]: ...


def look_up(dataset: Dataset, key: str, *, blank: bool = False) -> np.ndarray:
    """The picture of a data set, or a blank one of the same shape: (H,W,3) uint8."""
    picture = dataset.picture(key)
    return np.full_like(picture, BLANK_VALUE) if blank else picture


class Asking(TypedDict, total=False):
    """How a data set is put to a model: what every task that asks takes beside its own.

    ``blank`` shows blank pictures; ``keep`` is the directory in which answers are kept as they are given (see
    ``answers.AnswerStore``), and ``restart`` throws away what is there. ``note`` is told what is asked of whom: model,
    data and settings.
    """

    blank: bool
    progress: Progress | None
    batch_size: int
    keep: Path | None
    restart: bool
    note: Callable[[Mapping[str, Any]], None] | None


def ask_all(
    model: Answering,
    dataset: Dataset,
    *,
    max_new_tokens: int,
    blank: bool = False,
    progress: Progress | None = None,
    batch_size: int = 64,
    keep: Path | None = None,
    restart: bool = False,
    note: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[Prediction]:
    """Greedy answers to all samples, in the data set's order, as predictions without a judgement.

    A prediction has the sample's id, pictures, slice, question and answer, and the model's ``prediction``,
    ``boxes`` (normalised x1,y1,x2,y2) and ``finish_reason``; where there is no answer it has ``failed`` and, as
    ``failure``, the reason. Ranks share the batches, and all get all predictions, the same as one would alone. Raises
    UserError for a conversation of more than one question, and where requests fail one after the other.
    """
    samples = dataset.samples
    for sample in samples:
        if [message.role for message in sample.messages] not in (["user", "assistant"], ["user"]):
            raise UserError(
                f"Sample {sample.id} of {dataset.name} is not one question and one answer, "
                "which is all that evaluation can judge."
            )
    about = None
    if keep is not None or note is not None:
        settings = {"blank": blank, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        about = {"model": model.fingerprint, "data": asked_fingerprint(dataset), "settings": settings}
    if note is not None and about is not None:
        note(about)
    asker = Asker(model, dataset, blank=blank, max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers = go_through(
        samples,
        batch_size,
        lambda chosen, before: asker.ask([samples[i] for i in chosen], before),
        what=f"answers of {model.name}{' to blank pictures' if blank else ''} were given",
        about=about,
        keep=keep,
        restart=restart,
        progress=progress,
    )
    return [_prediction(sample, answer) for sample, answer in zip(samples, answers, strict=True)]


def ask_and_judge(
    model: Answering,
    dataset: Dataset,
    judge: Callable[[Prediction, Sample], None],
    *,
    max_new_tokens: int,
    **asking: Unpack[Asking],
) -> list[Prediction]:
    """The predictions of ``ask_all``, judged; what failed is no answer, and what has no right answer stays as it is."""
    predictions = ask_all(model, dataset, max_new_tokens=max_new_tokens, **asking)
    for prediction, sample in zip(predictions, dataset.samples, strict=True):
        if sample.answer and not prediction.get("failed"):
            judge(prediction, sample)
    return predictions


class Asker:
    """Puts batches to a model. What fails is told from what does not by asking the batch's questions one by one."""

    def __init__(
        self, model: Answering, dataset: Dataset, *, blank: bool, max_new_tokens: int, batch_size: int
    ) -> None:
        self.model, self.dataset, self.blank = model, dataset, blank
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self._in_a_row = 0

    def ask(self, samples: Sequence[Sample], before: Sequence[Given] | None = None) -> list[Given]:
        """The answers to a batch, in its order; of one that was asked ``before``, only what failed is asked again."""
        if before is not None:
            return [
                self._alone(sample) if "failure" in answer else answer
                for sample, answer in zip(samples, before, strict=True)
            ]
        try:
            answers = self._answers(samples)
        except Exception:  # whatever it is, it is said of the question that it comes from
            return [self._alone(sample) for sample in samples]
        self._in_a_row = 0
        return answers

    def _alone(self, sample: Sample) -> Given:
        try:
            (answer,) = self._answers([sample])
        except Exception as error:
            reason = reason_of(error)
            self._in_a_row += 1
            if self._in_a_row == MOST_IN_A_ROW:
                raise UserError(
                    f"{MOST_IN_A_ROW} requests in a row failed, the last about sample {sample.id} of "
                    f"{self.dataset.name} ({reason.rstrip('.')}): when that is put right, the same command goes on"
                ) from error
            return {"id": sample.id, "failure": reason}
        self._in_a_row = 0
        return answer

    def _answers(self, samples: Sequence[Sample]) -> list[Given]:
        requests: list[Request] = [
            ([look_up(self.dataset, key, blank=self.blank) for key in sample.pictures], sample.asked)
            for sample in samples
        ]
        answers = self.model.answer_batch(
            requests, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size
        )
        if len(answers) != len(samples):
            raise RuntimeError(f"{self.model.name} gave {len(answers)} answers to {len(samples)} questions.")
        return [
            {
                "id": sample.id,
                "text": answer.text.strip(),
                "boxes": [[float(edge) for edge in box] for box in answer.boxes],
                "finish_reason": answer.finish_reason,
            }
            for sample, answer in zip(samples, answers, strict=True)
        ]


def _prediction(sample: Sample, answer: Given) -> Prediction:
    if "failure" in answer:
        return {**prediction_of(sample, ""), "failed": True, "failure": answer["failure"]}
    prediction = prediction_of(sample, answer["text"], answer["boxes"])
    prediction["finish_reason"] = answer["finish_reason"]
    return prediction


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
