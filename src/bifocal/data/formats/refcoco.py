"""RefCOCO, RefCOCO+ and RefCOCOg as published: ``refs(unc|google|umd).p`` and ``instances.json``.

There is no official results format. Here it is JSON lines, one expression a line, with the predicted ``bbox`` as
[x1, y1, x2, y2] in pixels of the original picture (null where there is no box), or an ``answer`` that spells a box in
the stated dialect. A line is told by ``id`` or ``sent_id``; without one by ``image`` and ``sent``, the n-th such line
being the n-th of the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from bifocal.data.prompts import asked
from bifocal.data.records import expect, integer, items, number, numbers, text
from bifocal.data.sample import Sample

_IDENTITIES = ("id", "sent_id", "question_id")


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
        name = f"{text(record, 'image')}: {text(record, 'sent')}"
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name} ({self._seen[name]})"


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
        asked("grounding", words.strip().rstrip(".")),
        [pixel_box(box, width, height)],
        slice=slice,
        facts=facts,
    )


# ------------------------------------------------------------ refs(...).p and instances.json


def _is_refs(document: Document) -> bool:
    return has_keys(document.first, "sentences", "ann_id")


def recognises(document: Document) -> bool:
    """References, or the instances they point to."""
    return _is_refs(document) or detection.recognises(document)


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample an expression, of all splits."""
    boxes: dict[int, list[float]] = {}
    sizes: dict[int, tuple[float, float]] = {}
    for document in documents:
        if detection.recognises(document):
            for where, record in numbered(document.path, document.value.get("images"), "image"):
                with located(where):
                    record = expect(record, dict, "an image")
                    sizes[integer(record, "id")] = (number(record, "width"), number(record, "height"))
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
                found += _expressions(expect(record, dict, "a reference"), boxes, sizes)
    return unique(found, names_of(refs))


def _expressions(
    record: Mapping[str, Any],
    boxes: Mapping[int, Sequence[float]],
    sizes: Mapping[int, tuple[float, float]],
) -> list[Sample]:
    annotation, image = integer(record, "ann_id"), integer(record, "image_id")
    if annotation not in boxes or image not in sizes:
        what = f"ann_id {annotation}" if annotation not in boxes else f"image_id {image}"
        raise UserError(f"the {what} is not in the instances")
    x, y, width, height = boxes[annotation]
    # it is called after the annotation too: COCO_train2014_000000000042_7.jpg
    name, _, ending = text(record, "file_name").rpartition(".")
    picture = f"{name.removesuffix(f'_{annotation}')}.{ending}"
    return [
        expression(
            str(integer(sentence, "sent_id")),
            picture,
            text(sentence, "sent"),
            (x, y, x + width, y + height),
            *sizes[image],
            split=text(record, "split"),
        )
        for sentence in (expect(entry, dict, "a sentence") for entry in items(record, "sentences"))
    ]


FORMAT = Format(
    "refcoco", "grounding", "RefCOCO's refs(...).p and instances.json", recognises, samples, answers, RESULTS
)
