"""What every reader of a published format has in common: what it takes, what it gives, how its words are put.

A reader turns annotation files into samples, and a file of anyone's answers into ``Given``s. What a benchmark's scorer
needs beside the answer lies in a sample's ``facts``: ``benchmark`` (whose rules), ``split``, ``slices`` (all kinds that
a question belongs to), ``group`` (what is resampled together, if not the pictures) and the benchmark's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bifocal.artifacts import Entry
from bifocal.config import UserError
from bifocal.data.chat import question_messages
from bifocal.data.dialects import Dialect
from bifocal.data.files import Document, located
from bifocal.data.records import expect
from bifocal.data.sample import Box, Message, Part, Sample

PIXEL = 1.0  # by so much an annotated box may leave its picture, as rounding makes some, and is cut


class Given(NamedTuple):
    """One answer of a file of answers, about the sample ``id``; ``pixels`` is a box x1, y1, x2, y2 in pixels."""

    where: str
    id: str
    text: str = ""
    boxes: tuple[Box, ...] = ()
    pixels: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class ResultsFile:
    """How answers are handed in to a benchmark: ``write`` is the inverse of a format's ``answers``.

    ``benchmark`` is what the samples' facts call it, ``ending`` that of the file's name.
    """

    benchmark: str
    ending: str
    write: Callable[[Sequence[Given]], str]


@dataclass(frozen=True)
class Format:
    """A published format: ``recognises`` a file by its content; ``samples`` of all its files together.

    ``answers`` reads its results format (None where there is none) and ``results`` writes it; ``may_miss`` says which
    samples an answer may be missing for, and ``known_as`` puts answers that are told by something else under the ids of
    the samples. ``files`` says in words which files it takes.
    """

    name: str
    task: str
    files: str
    recognises: Callable[[Document], bool]
    samples: Callable[[Sequence[Document]], list[Sample]]
    answers: Callable[[Path, Dialect], list[Given]] | None = None
    results: ResultsFile | None = None
    may_miss: Callable[[Sample], bool] = lambda sample: False
    known_as: Callable[[Sequence[Sample], Sequence[Given]], Sequence[Given]] = lambda samples, given: given


def make_sample(
    identity: str,
    task: str,
    pictures: Sequence[str],
    question: str,
    answer: Sequence[Part],
    *,
    slice: str = "all",
    references: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> Sample:
    """One question about pictures and its answer; the question alone where answers are not published."""
    messages = question_messages(len(pictures), question)
    if answer:
        messages = (*messages, Message("assistant", tuple(answer)))
    return Sample(identity, task, slice, tuple(pictures), messages, tuple(references), facts)


def has_keys(value: Any, *keys: str) -> bool:
    """Whether this is an object with these keys."""
    return isinstance(value, dict) and all(key in value for key in keys)


def first_of(value: Any, key: str) -> dict[str, Any]:
    """The first entry of a list in an object, to recognise a format by; empty where there is none."""
    entries = value.get(key) if isinstance(value, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    return first if isinstance(first, dict) else {}


def pixel_box(box: Sequence[float], width: float, height: float) -> Box:
    """A box x1, y1, x2, y2 in pixels of a picture, normalised; raises UserError for one that is empty or outside."""
    x1, y1, x2, y2 = box
    if width <= 0 or height <= 0:
        raise UserError(f"the picture's size is {width} x {height}")
    if not (x1 < x2 and y1 < y2):
        raise UserError(f"the box {[x1, y1, x2, y2]} is empty or turned inside out; it is x1, y1, x2, y2")
    if min(x1, y1) < -PIXEL or x2 > width + PIXEL or y2 > height + PIXEL:
        raise UserError(f"the box {[x1, y1, x2, y2]} leaves its picture of {width:g} x {height:g} pixels")
    inside = Box(max(0.0, x1 / width), max(0.0, y1 / height), min(1.0, x2 / width), min(1.0, y2 / height))
    if not (inside.x1 < inside.x2 and inside.y1 < inside.y2):
        raise UserError(
            f"the box {[x1, y1, x2, y2]} has nothing of its picture of {width:g} x {height:g} pixels"
        )
    return inside


def unique(samples: Sequence[Sample], where: str) -> list[Sample]:
    """The samples, if no id comes twice."""
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise UserError(f'The id "{sample.id}" comes twice in {where}.')
        seen.add(sample.id)
    if not samples:
        raise UserError(f"There are no samples in {where}.")
    return list(samples)


def gathered(samples: Sequence[Sample], documents: Sequence[Document]) -> list[Sample]:
    """The samples of these files, if no id comes twice; where all were left out, the first reason is told."""
    reasons = [reason for document in documents for reason in document.left_out]
    if not samples and reasons:
        raise UserError(f"There are no samples in {names_of(documents)}: left out is {reasons[0]}.")
    return unique(samples, names_of(documents))


def names_of(documents: Sequence[Document]) -> str:
    """The files' names, for messages."""
    return ", ".join(str(document.path) for document in documents)


def json_answers(
    entries: Sequence[Entry], read: Callable[[Mapping[str, Any]], tuple[str, str]]
) -> list[Given]:
    """Answers from a list of objects; ``read`` takes id and text out of one."""
    given = []
    for where, value in entries:
        with located(where):
            identity, text = read(expect(value, dict, "an answer"))
        given.append(Given(where, identity, text))
    return given


def json_results(given: Sequence[Given], entry: Callable[[Given], Mapping[str, Any]]) -> str:
    """A list of objects as JSON, one a line, the inverse of ``json_answers``."""
    return "[\n" + ",\n".join(json.dumps(entry(answer)) for answer in given) + "\n]\n"
