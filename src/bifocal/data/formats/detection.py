"""COCO detection, turned into grounding: "find the dog." wherever a picture has exactly one dog."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bifocal.config import UserError
from bifocal.data.files import Document, located, numbered
from bifocal.data.formats.base import Format, first_of, gathered, make_sample, pixel_box
from bifocal.data.prompts import asked
from bifocal.data.records import expect, integer, number, numbers, text
from bifocal.data.sample import Sample


class Thing(NamedTuple):
    """An annotated object: its name, its box x1, y1, x2, y2 in pixels, and where it stands, for messages."""

    name: str
    box: tuple[float, float, float, float]
    where: str


def expressions(
    picture: str, width: float, height: float, things: Sequence[Thing], left_out: list[str]
) -> list[Sample]:
    """A sample for each thing that is the only one of its name in its picture, so that the name points to it.

    A thing whose box is empty or leaves the picture gets none, and stands in ``left_out`` instead.
    """
    names = Counter(thing.name for thing in things)
    found = []
    for thing in things:
        if names[thing.name] > 1:
            continue
        identity = f"{picture}/{thing.name}"
        try:
            box = pixel_box(thing.box, width, height)
        except UserError as error:
            left_out.append(f"{identity} ({thing.where}: {error})")
            continue
        words, facts = asked("grounding", f"the {thing.name}"), {"size": [width, height]}
        found.append(make_sample(identity, "grounding", [picture], words, [box], facts=facts))
    return found


def recognises(document: Document) -> bool:
    """Annotations with a box of a category; MDETR's RefCOCO has them too, and a caption for each image."""
    boxes = {"bbox", "category_id"} <= first_of(document.value, "annotations").keys()
    return boxes and "caption" not in first_of(document.value, "images")


def samples(documents: Sequence[Document]) -> list[Sample]:
    """Grounding of what a picture has one of; a crowd of a category is more than one."""
    found: list[Sample] = []
    for document in documents:
        found += _of_document(document)
    return gathered(found, documents)


def _of_document(document: Document) -> list[Sample]:
    categories: dict[int, str] = {}
    for where, record in numbered(document.path, document.value.get("categories"), "category"):
        with located(where):
            record = expect(record, dict, "a category")
            categories[integer(record, "id")] = text(record, "name")
    things: dict[int, list[Thing]] = {}
    crowded: set[tuple[int, str]] = set()
    for where, record in numbered(document.path, document.value["annotations"], "annotation"):
        with located(where):
            image = integer(expect(record, dict, "an annotation"), "image_id")
            name = _name(categories, integer(record, "category_id"))
            x, y, width, height = numbers(record, "bbox", 4)
            things.setdefault(image, []).append(Thing(name, (x, y, x + width, y + height), where))
            if record.get("iscrowd"):
                crowded.add((image, name))
    found = []
    for where, record in numbered(document.path, document.value.get("images"), "image"):
        with located(where):
            image = integer(expect(record, dict, "an image"), "id")
            size = number(record, "width"), number(record, "height")
            clear = [thing for thing in things.get(image, []) if (image, thing.name) not in crowded]
            found += expressions(text(record, "file_name"), *size, clear, document.left_out)
    return found


def _name(categories: Mapping[int, str], identity: int) -> str:
    if identity not in categories:
        raise UserError(f"the category_id {identity} is not among the categories")
    return categories[identity]


FORMAT = Format("coco-detection", "grounding", "COCO's instances_*.json", recognises, samples)
