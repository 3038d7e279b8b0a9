"""`bifocal score`: anyone's answers against the annotations of a benchmark, without a model."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bifocal.config import UserError
from bifocal.data.dialects import DIALECTS
from bifocal.data.formats import FORMATS, open_document, open_documents, recognise
from bifocal.data.formats.base import Format, Given
from bifocal.data.sample import Box, Sample
from bifocal.data.splits import split_of
from bifocal.evaluation import captioning, grounding, reasoning, vqa
from bifocal.evaluation.asking import prediction_of
from bifocal.evaluation.java import Also, Tokenizer
from bifocal.evaluation.results import Prediction, Row

TASKS = {module.TASK: module for module in (captioning, vqa, grounding, reasoning)}
_SHOWN = 3  # ids that a message names

# What to do about a metric that has no value.
_MISSING = {
    "consistency": "it needs answers to all questions that the balanced ones entail, and some of those right",
    "validity": "give GQA's file of choices with the questions, as they are scored or imported",
    "plausibility": "give GQA's file of choices with the questions, as they are scored or imported",
    "distribution": "the questions have no groups",
}


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No search for cycles: what is read are millions of plain objects without any, and it would take half the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True)
class ScoreSettings:
    """How answers are read: the split scored, whose answers they are, how boxes and captions are spelt."""

    split: str | None = None
    model: str | None = None
    dialect: str = "plain"
    tokenizer: Tokenizer = "simple"
    also: tuple[Also, ...] = ()


@without_collection()
def score_command(
    predictions: Path, task: str, annotations: Sequence[Path], settings: ScoreSettings | None = None
) -> list[Row]:
    """Rows for a file of answers in the results format that belongs to these annotations.

    Splits that the annotations hold and that no answer is about are left out; of the others every sample needs exactly
    one answer. Raises ``UserError`` for answers that are missing, come twice or are about nothing, naming them.
    """
    settings = settings or ScoreSettings()
    if not annotations:
        raise UserError("--annotations needs at least one file")
    if task in TASKS:
        documents = [open_document(path) for path in annotations]
        form = recognise(documents, task)
    else:
        if task not in FORMATS or FORMATS[task].answers is None:
            raise UserError(f"There is no task {task!r} to score; there are {', '.join(TASKS)}.")
        documents = open_documents(task, annotations)
        form = FORMATS[task]
    samples = [sample for sample in form.samples(documents) if sample.task == (form.task or task)]
    if not samples:
        raise UserError(f"There are no samples of the task {task} in {annotations[0]}.")
    if not all(sample.answer for sample in samples):
        raise UserError(
            f"There are questions without an answer in {annotations[0]}, so nothing can be scored by it."
        )
    if settings.dialect != ScoreSettings.dialect and (form.task or task) != grounding.TASK:
        raise UserError(f"--dialect is for boxes in words, and the task is {form.task or task}")
    assert form.answers is not None
    given = form.answers(predictions, DIALECTS[settings.dialect])
    where = ", ".join(str(path) for path in annotations)
    rows: list[Row] = []
    for split, matched in match(samples, given, form, settings.split, str(predictions), where).items():
        judged = [judge(sample, answer) for sample, answer in matched]
        rows += _rows(
            form.task or task,
            judged,
            settings,
            model=settings.model or predictions.stem,
            split=split or settings.split or annotations[0].stem,
        )
    say_what_is_missing(rows)
    return rows


def match(
    samples: Sequence[Sample],
    given: Sequence[Given],
    form: Format,
    wanted: str | None,
    answers: str,
    annotations: str,
) -> dict[str, list[tuple[Sample, Given]]]:
    """Every sample of a split with its answer; the split is "" where the annotations name none."""
    if not given:
        raise UserError(f"There are no answers in {answers}.")
    splits: dict[str, list[Sample]] = {}
    for sample in samples:
        splits.setdefault(split_of(sample), []).append(sample)
    if wanted is not None and set(splits) != {""}:
        if wanted not in splits:
            raise UserError(
                f"There is no split {wanted} in {annotations}; there are {', '.join(sorted(splits))}."
            )
        splits = {wanted: splits[wanted]}
    asked = [sample for sample in samples if split_of(sample) in splits]
    given = form.known_as(asked, given)
    by_id: dict[str, Given] = {}
    for answer in given:
        if answer.id in by_id:
            raise UserError(
                f"{answer.where} answers {answer.id} again, which {by_id[answer.id].where} did before."
            )
        by_id[answer.id] = answer
    known = {sample.id for sample in asked}
    extra = [answer for answer in given if answer.id not in known]
    if extra:
        more = f" (and {len(extra) - 1} more answers)" if len(extra) > 1 else ""
        part = f" of the split {wanted}" if wanted is not None and "" not in splits else ""
        raise UserError(
            f"{extra[0].where} answers {extra[0].id}, which is no id{part} in {annotations}{more}."
        )
    matched: dict[str, list[tuple[Sample, Given]]] = {}
    for split, group in splits.items():
        if not any(sample.id in by_id for sample in group):
            continue
        missing = [sample.id for sample in group if sample.id not in by_id and not form.may_miss(sample)]
        if missing:
            some = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            of = f" of the split {split}" if split else ""
            raise UserError(
                f"{answers} has no answer to {len(missing)} of the {len(group)} samples{of} in {annotations}: {some}."
            )
        matched[split] = [(sample, by_id[sample.id]) for sample in group if sample.id in by_id]
    return matched


def judge(sample: Sample, given: Given) -> Prediction:
    """An answer as a prediction of its task."""
    boxes = given.boxes
    if given.pixels is not None:
        width, height = (sample.facts or {})["size"]
        x1, y1, x2, y2 = given.pixels
        boxes = (Box(x1 / width, y1 / height, x2 / width, y2 / height),)
    prediction = prediction_of(sample, given.text, boxes)
    TASKS[sample.task].judge(prediction, sample)
    return prediction


def _rows(
    task: str, predictions: Sequence[Prediction], settings: ScoreSettings, *, model: str, split: str
) -> list[Row]:
    options = caption_options(task, settings.tokenizer, settings.also)
    if task == captioning.TASK and len(predictions) == 1:
        print("bifocal: CIDEr-D of one picture alone is 0, whatever its caption", file=sys.stderr)
    rows: list[Row] = TASKS[task].score(predictions, model=model, split=split, **options)
    return rows


def caption_options(task: str, tokenizer: Tokenizer, also: Sequence[Also]) -> dict[str, Any]:
    """How captions are to be scored, as options of their task's ``score``; raises UserError for another task."""
    if task == captioning.TASK:
        return {"tokenizer": tokenizer, "also": also}
    if also or tokenizer != "simple":
        raise UserError(f"--tokenizer and --also are for captions, and the task is {task}")
    return {}


def say_what_is_missing(rows: Sequence[Row]) -> None:
    """Say of each metric that has no value, though nothing failed, what it lacks."""
    missing = (row for row in rows if row.value is None and row.n == 0 and not row.failed)
    for metric in dict.fromkeys(row.metric for row in missing):
        print(
            f"bifocal: {metric} is not computed: {_MISSING.get(metric, 'nothing counts for it')}",
            file=sys.stderr,
        )
