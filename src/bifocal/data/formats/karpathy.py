"""Karpathy's splits of COCO, Flickr30k and Flickr8k: captions, and which split each picture belongs to.

Results are those of COCO, by ``cocoid``, or by ``imgid`` where the set has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bifocal.data.files import Document, located, numbered
from bifocal.data.formats.base import Format, first_of, make_sample, names_of, unique
from bifocal.data.formats.coco_captions import RESULTS, answers
from bifocal.data.prompts import asked
from bifocal.data.records import expect, integer, items, text
from bifocal.data.sample import Sample


def recognises(document: Document) -> bool:
    """Images that hold their own sentences."""
    return {"sentences", "split", "filename"} <= first_of(document.value, "images").keys()


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample a picture; the split "restval" is trained on, so it is called "train"."""
    found = []
    for document in documents:
        for where, record in numbered(document.path, document.value["images"], "image"):
            with located(where):
                found.append(_sample(expect(record, dict, "an image")))
    return unique(found, names_of(documents))


def _sample(record: Mapping[str, Any]) -> Sample:
    captions = [text(expect(entry, dict, "a sentence"), "raw") for entry in items(record, "sentences")]
    folder, split = record.get("filepath"), text(record, "split")
    name = text(record, "filename")
    return make_sample(
        str(integer(record, "cocoid" if "cocoid" in record else "imgid")),
        "captioning",
        [f"{folder}/{name}" if folder else name],
        asked("captioning"),
        captions[:1],
        references=captions,
        facts={"benchmark": "coco", "split": "train" if split == "restval" else split},
    )


FORMAT = Format("karpathy", "captioning", "Karpathy's dataset_*.json", recognises, samples, answers, RESULTS)
