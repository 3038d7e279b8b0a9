"""COCO captions: pictures, and five captions of each (cocodataset.org). Results are ``[{"image_id", "caption"}]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bifocal.data.dialects import Dialect
from bifocal.data.files import Document, located, numbered, read_document
from bifocal.data.formats.base import (
    Format,
    Given,
    ResultsFile,
    first_of,
    json_answers,
    json_results,
    make_sample,
    names_of,
    unique,
)
from bifocal.data.prompts import asked
from bifocal.data.records import expect, integer, text
from bifocal.data.sample import Sample


def recognises(document: Document) -> bool:
    """Annotations with a caption of an image (those of MDETR have theirs at the images), or images alone."""
    if _is_test(document):
        return True
    return {"caption", "image_id"} <= first_of(document.value, "annotations").keys()


def _is_test(document: Document) -> bool:
    """Images of a test split (image_info_*.json), whose captions are not published."""
    first = first_of(document.value, "images")
    return (
        {"id", "file_name"} <= first.keys()
        and "sentences" not in first
        and "annotations" not in document.value
    )


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample a picture, all its captions as references, in the order of the annotations; a test split has none."""
    files: dict[int, str] = {}
    captions: dict[int, list[str]] = {}
    for document in documents:
        if "images" in document.value:
            for where, record in numbered(document.path, document.value["images"], "image"):
                with located(where):
                    image = integer(expect(record, dict, "an image"), "id")
                    files[image] = text(record, "file_name")
                    if _is_test(document):
                        captions[image] = []
        for where, record in numbered(document.path, document.value.get("annotations", []), "annotation"):
            with located(where):
                image = integer(expect(record, dict, "an annotation"), "image_id")
                captions.setdefault(image, []).append(text(record, "caption"))
    found = [
        make_sample(
            str(image),
            "captioning",
            [files.get(image, f"{image:012d}.jpg")],
            asked("captioning"),
            group[:1],
            references=group,
            facts={"benchmark": "coco"},
        )
        for image, group in captions.items()
    ]
    return unique(found, names_of(documents))


def answers(path: Path, dialect: Dialect) -> list[Given]:
    """The official results."""
    return json_answers(
        read_document(path).entries(),
        lambda record: (str(integer(record, "image_id")), text(record, "caption")),
    )


def results(given: Sequence[Given]) -> str:
    """The official results of these captions."""
    return json_results(given, lambda answer: {"image_id": int(answer.id), "caption": answer.text})


RESULTS = ResultsFile("coco", ".json", results)


FORMAT = Format("coco-captions", "captioning", "COCO's captions", recognises, samples, answers, RESULTS)
