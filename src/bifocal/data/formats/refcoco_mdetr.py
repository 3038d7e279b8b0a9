"""RefCOCO as MDETR wrote it: COCO's layout, with one "image" an expression. Results: see ``refcoco``."""

from __future__ import annotations

from collections.abc import Sequence

from bifocal.config import UserError
from bifocal.data.files import Document, located, numbered
from bifocal.data.formats.base import Format, first_of, names_of, unique
from bifocal.data.formats.refcoco import RESULTS, answers, by_words, expression
from bifocal.data.records import expect, integer, number, numbers, text
from bifocal.data.sample import Sample


def recognises(document: Document) -> bool:
    """Images with a caption of their own."""
    return {"caption", "file_name", "width"} <= first_of(document.value, "images").keys()


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample an expression; its slice is the set it is from (refcoco, refcoco+, refcocog)."""
    found: list[Sample] = []
    for document in documents:
        boxes: dict[int, list[float]] = {}
        for where, record in numbered(document.path, document.value.get("annotations"), "annotation"):
            with located(where):
                x, y, width, height = numbers(expect(record, dict, "an annotation"), "bbox", 4)
                image = integer(record, "image_id")
                if image in boxes:
                    raise UserError(f"the image_id {image} has two boxes, and an expression has one")
                boxes[image] = [x, y, x + width, y + height]
        for where, record in numbered(document.path, document.value["images"], "image"):
            with located(where):
                identity = integer(expect(record, dict, "an image"), "id")
                if identity not in boxes:
                    raise UserError(f"the id {identity} has no annotation")
                found.append(
                    expression(
                        str(identity),
                        text(record, "file_name"),
                        text(record, "caption"),
                        boxes[identity],
                        number(record, "width"),
                        number(record, "height"),
                        slice=str(record.get("dataset_name") or "all"),
                    )
                )
    return unique(found, names_of(documents))


FORMAT = Format(
    "refcoco-mdetr",
    "grounding",
    "MDETR's RefCOCO",
    recognises,
    samples,
    answers,
    RESULTS,
    known_as=by_words,
)
