"""Our own layout: ``samples.jsonl``, and predictions as ``bifocal evaluate`` keeps them.

Predictions are JSON lines ``{"id": str, "prediction": str}``, with normalised ``boxes`` for grounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bifocal.data.dialects import Dialect
from bifocal.data.files import Document, located, read_document
from bifocal.data.formats.base import Format, Given, has_keys, names_of, unique
from bifocal.data.records import expect, items, numbers, text
from bifocal.data.sample import Box, Sample


def recognises(document: Document) -> bool:
    """Lines that are samples."""
    return has_keys(document.first, "id", "task", "messages")


def samples(documents: Sequence[Document]) -> list[Sample]:
    """The samples as they are."""
    found = []
    for document in documents:
        for where, value in document.entries():
            with located(where):
                found.append(Sample.from_json(value))
    return unique(found, names_of(documents))


def answers(path: Path, dialect: Dialect) -> list[Given]:
    """Answers with their boxes; where none are given they are read from the text in the stated dialect."""
    given = []
    for where, value in read_document(path).entries():
        with located(where):
            record = expect(value, dict, "a prediction")
            said = text(record, "prediction")
            boxes = dialect.read(said)
            if "boxes" in record:
                boxes = tuple(Box(*numbers({"box": box}, "box", 4)) for box in items(record, "boxes"))
            given.append(Given(where, text(record, "id"), said, boxes))
    return given


FORMAT = Format("samples", "", "samples.jsonl", recognises, samples, answers)
