"""RefCOCO, RefCOCO+ and RefCOCOg as published: ``refs(unc|google|umd).p`` and ``instances.json``.

There is no official results format. Here it is JSON lines, one expression a line, with the predicted ``bbox`` as
[x1, y1, x2, y2] in pixels of the original picture (null where there is no box), or an ``answer`` that spells a box in
the stated dialect. A line is told by ``id`` or ``sent_id``; without one by ``image`` and ``sent``, the n-th such line
being the n-th of the truth. Where the expressions have ids of their own, the picture's name is enough, whatever the
folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from bifocal.artifacts import json_line
from bifocal.config import UserError
from bifocal.data.dialects import Dialect
from bifocal.data.files import Document, located, numbered, read_document
from bifocal.data.formats import detection
from bifocal.data.formats.base import (
    Format,
    Given,
    ResultsFile,
    has_keys,
    make_sample,
    names_of,
    pixel_box,
    unique,
)
from bifocal.data.prompts import FIND, asked, inside
from bifocal.data.records import expect, integer, items, number, numbers, text
from bifocal.data.sample import Sample

_IDENTITIES = ("id", "sent_id", "question_id")
_RUNNING = re.compile(r"(?<=_\d{12})_\d+(?=\.\w+$)")  # COCO_train2014_000000000042_7.jpg


# ------------------------------------------------------------ results, of all three ways to publish the expressions


class Identities:
    """Tells the lines of one file apart."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of(self, record: Mapping[str, Any]) -> str:
        """The identity of the next line; raises UserError where it has nothing to be told by."""
        for key in _IDENTITIES:
            if key in record:
                value = record[key]
                return value if isinstance(value, str) else str(integer(record, key))
        if not {"image", "sent"} <= record.keys():
            raise UserError('it has neither "id" nor "sent_id" nor "image" and "sent" to be told by')
        return self.named(text(record, "image"), text(record, "sent"))

    def named(self, picture: str, words: str) -> str:
        """The identity of the next line, by its picture and words alone."""
        name = f"{picture}: {_plain(words)}"
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name} ({self._seen[name]})"


def _plain(words: str) -> str:
    return words.strip().rstrip(".")


def answers(path: Path, dialect: Dialect) -> list[Given]:
    """Predicted boxes, one a line. One turned inside out is no box; what spells no box in the dialect has none."""
    given, identities = [], Identities()
    for where, value in read_document(path).entries():
        with located(where):
            record = expect(value, dict, "an answer")
            identity = identities.of(record)
            if "bbox" in record and record["bbox"] is None:
                given.append(Given(where, identity))
            elif "bbox" in record:
                x1, y1, x2, y2 = numbers(record, "bbox", 4)
                box = (x1, y1, x2, y2) if x1 <= x2 and y1 <= y2 else None
                given.append(Given(where, identity, pixels=box))
            elif "answer" in record:
                said = text(record, "answer")
                given.append(Given(where, identity, said, dialect.read(said)))
            else:
                raise UserError('it has neither "bbox" nor "answer"')
    return given


def by_words(samples: Sequence[Sample], given: Sequence[Given]) -> list[Given]:
    """Answers that are told by picture and words, under the ids that these expressions have of their own.

    A picture goes by its name without folders; an answer about nothing here stays as it is.
    """
    known, identities = {sample.id for sample in samples}, Identities()
    ids = {
        identities.named(
            PurePosixPath(sample.pictures[0]).name, inside(FIND[0], sample.question) or ""
        ): sample.id
        for sample in samples
    }

    def of(identity: str) -> str:
        picture, _, words = identity.partition(": ")
        return ids.get(f"{PurePosixPath(picture).name}: {words}", identity)

    return [answer if answer.id in known else answer._replace(id=of(answer.id)) for answer in given]


def results(given: Sequence[Given]) -> str:
    """These boxes in pixels, one a line, by ``id``."""
    return "".join(json_line({"id": answer.id, "bbox": answer.pixels}) for answer in given)


RESULTS = ResultsFile("refcoco", ".jsonl", results)


def expression(
    identity: str,
    picture: str,
    words: str,
    box: Sequence[float],
    width: float,
    height: float,
    *,
    split: str = "",
    slice: str = "all",
) -> Sample:
    """One expression and its box x1, y1, x2, y2 in pixels."""
    facts: dict[str, Any] = {"benchmark": "refcoco", "size": [width, height]}
    if split:
        facts["split"] = split
    return make_sample(
        identity,
        "grounding",
        [picture],
        asked("grounding", _plain(words)),
        [pixel_box(box, width, height)],
        slice=slice,
        facts=facts,
    )


# ------------------------------------------------------------ refs(...).p and instances.json


def _is_refs(document: Document) -> bool:
    return has_keys(document.first, "sentences", "ann_id")


class _Picture(NamedTuple):
    """A picture of the instances; without a name where they give none."""

    name: str
    width: float
    height: float


def recognises(document: Document) -> bool:
    """References, or the instances they point to."""
    return _is_refs(document) or detection.recognises(document)


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample an expression, of all splits."""
    boxes: dict[int, list[float]] = {}
    pictures: dict[int, _Picture] = {}
    for document in documents:
        if detection.recognises(document):
            for where, record in numbered(document.path, document.value.get("images"), "image"):
                with located(where):
                    record = expect(record, dict, "an image")
                    name = text(record, "file_name") if "file_name" in record else ""
                    size = number(record, "width"), number(record, "height")
                    pictures[integer(record, "id")] = _Picture(name, *size)
            for where, record in numbered(document.path, document.value["annotations"], "annotation"):
                with located(where):
                    record = expect(record, dict, "an annotation")
                    boxes[integer(record, "id")] = numbers(record, "bbox", 4)
    refs = [document for document in documents if _is_refs(document)]
    if not refs or not boxes:
        missing = "refs(...).p" if not refs else "instances.json"
        raise UserError(f"RefCOCO is refs(...).p and instances.json together: {missing} is missing.")
    found: list[Sample] = []
    for document in refs:
        for where, record in numbered(document.path, document.value, "reference"):
            with located(where):
                found += _expressions(expect(record, dict, "a reference"), boxes, pictures)
    return unique(found, names_of(refs))


def _expressions(
    record: Mapping[str, Any],
    boxes: Mapping[int, Sequence[float]],
    pictures: Mapping[int, _Picture],
) -> list[Sample]:
    annotation, image = integer(record, "ann_id"), integer(record, "image_id")
    if annotation not in boxes or image not in pictures:
        what = f"ann_id {annotation}" if annotation not in boxes else f"image_id {image}"
        raise UserError(f"the {what} is not in the instances")
    x, y, width, height = boxes[annotation]
    picture = pictures[image]
    # a reference's own name of the picture ends in a number: the annotation's in RefCOCOg, any in the others
    name = picture.name or _RUNNING.sub("", text(record, "file_name"))
    return [
        expression(
            str(integer(sentence, "sent_id")),
            name,
            text(sentence, "sent"),
            (x, y, x + width, y + height),
            picture.width,
            picture.height,
            split=text(record, "split"),
        )
        for sentence in (expect(entry, dict, "a sentence") for entry in items(record, "sentences"))
    ]


FORMAT = Format(
    "refcoco",
    "grounding",
    "RefCOCO's refs(...).p and instances.json",
    recognises,
    samples,
    answers,
    RESULTS,
    known_as=by_words,
)
