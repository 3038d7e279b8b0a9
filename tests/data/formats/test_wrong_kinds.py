"""Every value of every published format, replaced by one of another kind: it does no harm, or it is one sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import published
from bifocal.artifacts import Entry
from bifocal.config import UserError
from bifocal.data.dialects import DIALECTS
from bifocal.data.files import Document
from bifocal.data.formats import FORMATS, open_document

WRONG: tuple[Any, ...] = (None, True, 5, "x", [], [5], {}, {"x": 5})
JSON_FORMATS = [name for name in published.WRITERS if name not in ("voc", "parquet", "webdataset", "csv")]

Place = tuple[str | int, ...]


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    """Where each value stands; of lists the first three entries do for all."""
    yield above
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*above, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:3]):
            yield from places(inner, (*above, number))


def changed(whole: Any, place: Place) -> Iterator[Any]:
    """The whole with another value at a place, in every wrong way, and with none where it is a key's."""
    if not place:
        yield from WRONG
        return
    other = copy.deepcopy(whole)
    holder = other
    for step in place[:-1]:
        holder = holder[step]
    for wrong in WRONG:
        holder[place[-1]] = wrong
        yield other
    if isinstance(holder, dict):
        del holder[place[-1]]
        yield other


def remade(document: Document, whole: Any) -> Document:
    if document.lines is None:
        return Document(document.path, whole)
    lines = whole if isinstance(whole, list) else [whole]
    return Document(
        document.path,
        lines=[Entry(f"Line {n} of {document.path}", value) for n, value in enumerate(lines, 1)],
    )


@pytest.mark.parametrize("name", JSON_FORMATS)
def test_annotations_of_a_wrong_kind_are_one_sentence(name, tmp_path):
    writer, keys = published.WRITERS[name]
    files = writer(tmp_path)
    documents = [open_document(files[key]) for key in keys]
    refused = 0
    for number, document in enumerate(documents):
        whole = document.value if document.lines is None else [line.value for line in document.lines]
        for place in places(whole):
            for other in changed(whole, place):
                some = [*documents]
                some[number] = remade(document, other)
                try:
                    if all(FORMATS[name].recognises(one) for one in some):
                        FORMATS[name].samples(some)
                except UserError as error:
                    assert "\n" not in str(error) and str(error).endswith(".")
                    refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", [name for name in JSON_FORMATS if FORMATS[name].answers and name != "nlvr2"])
def test_answers_of_a_wrong_kind_are_one_sentence(name, tmp_path):
    path: Path = published.WRITERS[name][0](tmp_path)["results"]
    document = open_document(path)
    whole = document.value if document.lines is None else [line.value for line in document.lines]
    answers, refused = FORMATS[name].answers, 0
    assert answers is not None
    for place in places(whole[:1]):
        for other in changed(whole[:1], place):
            path.write_text(json.dumps(other))
            try:
                answers(path, DIALECTS["plain"])
            except UserError as error:
                assert "\n" not in str(error) and str(error).endswith(".")
                refused += 1
    assert refused > 10


def test_a_cell_that_never_ends_is_one_sentence(tmp_path):
    (tmp_path / "preds.csv").write_text('dev-3-0-0,"' + "x" * 200_000)
    answers = FORMATS["nlvr2"].answers
    assert answers is not None
    with pytest.raises(UserError, match=r"Line 1 of .*preds\.csv is no row of a table: field larger than"):
        answers(tmp_path / "preds.csv", DIALECTS["plain"])
