"""RefCOCO as JSON lines of ``image, sent, bbox, width, height``, bbox x1, y1, x2, y2 in pixels (see ``refcoco``)."""

from __future__ import annotations

from collections.abc import Sequence

from bifocal.data.files import Document, located
from bifocal.data.formats.base import Format, has_keys, names_of, unique
from bifocal.data.formats.refcoco import RESULTS, Identities, answers, expression
from bifocal.data.records import expect, number, numbers, text
from bifocal.data.sample import Sample


def recognises(document: Document) -> bool:
    """Lines with an expression."""
    return has_keys(document.first, "image", "sent")


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample an expression."""
    found: list[Sample] = []
    for document in documents:
        identities = Identities()
        for where, record in document.entries():
            with located(where):
                identity = identities.of(expect(record, dict, "an expression"))
                found.append(
                    expression(
                        identity,
                        text(record, "image"),
                        text(record, "sent"),
                        numbers(record, "bbox", 4),
                        number(record, "width"),
                        number(record, "height"),
                        split=str(record.get("split") or ""),
                    )
                )
    return unique(found, names_of(documents))


FORMAT = Format("refcoco-lines", "grounding", "RefCOCO as JSON lines", recognises, samples, answers, RESULTS)
