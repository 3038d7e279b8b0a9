"""A user's own rows: a CSV or TSV file, or an image folder's ``metadata.jsonl``; a column says what its text is.

| column | what becomes of a row |
| --- | --- |
| ``image`` (or ``file_name``), ``image2`` ... (or ``images``, ``file_names``) | its picture or pictures |
| ``question``, ``answer`` | a question; several right answers are divided by ``|`` |
| ``caption`` (or ``text``) | a caption; several are divided by ``|`` |
| ``statement``, ``answer`` | a statement that is true or false |
| ``expression``, ``x1``, ``y1``, ``x2``, ``y2`` | a box, in shares of width and height |
| ``label`` | the name of what the picture shows, for classification |
| ``prompt`` | what the picture is drawn by |
| ``id``, ``slice`` | optional: a name, the kind of question |
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bifocal.config import UserError
from bifocal.data.files import Document, located
from bifocal.data.formats.base import Format, make_sample, names_of, unique
from bifocal.data.prompts import asked
from bifocal.data.records import expect
from bifocal.data.sample import Box, Message, Part, Picture, Sample

PICTURE = re.compile(r"images?\d*|\w*file_names?|pictures?\d*")
TEXTS = ("question", "caption", "text", "statement", "expression", "label", "prompt")
_EDGES = ("x1", "y1", "x2", "y2")
COLUMNS = ("image", *TEXTS, "answer", *_EDGES, "id", "slice")
_BETWEEN = "|"


def recognises(document: Document) -> bool:
    """Rows of any columns: what is missing is said of a line."""
    return isinstance(document.first, dict)


def unused_columns(documents: Sequence[Document]) -> list[str]:
    """Names of columns that nothing becomes of."""
    rows = [document.first for document in documents if isinstance(document.first, dict)]
    names = {str(name) for row in rows for name in row}
    return sorted(name for name in names if name not in COLUMNS and not PICTURE.fullmatch(name))


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample for each text of a row; a row with a caption and a question gives two.

    A row without an ``id`` is called by its number, and by its file too where there are several.
    """
    found: list[Sample] = []
    for document, name in zip(documents, _told_apart(documents), strict=True):
        for number, (where, value) in enumerate(document.entries(), start=1):
            with located(where):
                found += samples_of_row(expect(value, dict, "a row"), f"{name}{number}")
    return unique(found, names_of(documents))


def _told_apart(documents: Sequence[Document]) -> list[str]:
    """What the numbers of each file's rows begin with: nothing where there is one file alone."""
    if len(documents) < 2:
        return ["" for _ in documents]
    paths = [document.path.absolute() for document in documents]
    folder = os.path.commonpath([path.parent for path in paths])
    return [f"{path.relative_to(folder).with_suffix('').as_posix()}/" for path in paths]


class _Row:
    """One row: its pictures, and its cells as text."""

    def __init__(self, record: Mapping[str, Any], called: str) -> None:
        self.record = record
        self.pictures: list[str] = []
        for name, value in record.items():
            if not PICTURE.fullmatch(name) or value in ("", None):
                continue
            for picture in value if isinstance(value, list) else [value]:
                self.pictures.append(str(expect(picture, str, f'"{name}"')).strip())
        if not self.pictures:
            raise UserError('it names no picture: fill the column "image"')
        self.name = self.cell("id") or called
        self.slice = self.cell("slice") or "all"

    def cell(self, name: str) -> str:
        """The text of a column, empty where there is none."""
        value = self.record.get(name)
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int | float):
            return str(value)
        return str(expect(value, str, f'"{name}"')).strip()

    def several(self, name: str) -> list[str]:
        """The texts of a column that are divided by bars, or that are a list."""
        value = self.record.get(name)
        if isinstance(value, list):
            texts = [str(expect(text, str, f'an entry of "{name}"')) for text in value]
        else:
            texts = self.cell(name).split(_BETWEEN)
        return [text.strip() for text in texts if text.strip()]

    def answers(self, to: str) -> list[str]:
        """The right answers to a column that asks for one."""
        found = self.several("answer")
        if not found:
            raise UserError(f'"{to}" has no answer: fill the column "answer"')
        return found

    def sample(
        self, task: str, question: str, answer: Sequence[Part], references: Sequence[str] = ()
    ) -> Sample:
        """A sample about all pictures of the row."""
        return make_sample(
            f"{task}/{self.name}",
            task,
            self.pictures,
            question,
            answer,
            slice=self.slice,
            references=references,
        )


def samples_of_row(record: Mapping[str, Any], name: str) -> list[Sample]:
    """The samples of one row, which is called ``name`` where it has no ``id``."""
    row, found = _Row(record, name), []
    if question := row.cell("question"):
        right = row.answers("question")
        found.append(row.sample("vqa", question, right[:1], right))
    if captions := row.several("caption") or row.several("text"):
        found.append(row.sample("captioning", asked("captioning"), captions[:1], captions))
    if statement := row.cell("statement"):
        (verdict, *more) = [answer.lower() for answer in row.answers("statement")]
        if verdict not in ("true", "false") or more:
            raise UserError(f'the answer to a statement is "true" or "false", not "{row.cell("answer")}"')
        found.append(row.sample("reasoning", asked("reasoning", statement.rstrip(".")), [verdict], [verdict]))
    if words := row.cell("expression"):
        found.append(row.sample("grounding", asked("grounding", words.rstrip(".")), [_box(row)]))
    if label := row.cell("label"):
        found.append(row.sample("zero-shot", "what is this?", [label], [label]))
    if prompt := row.cell("prompt"):
        messages = (Message("user", (prompt,)), Message("assistant", (Picture(0),)))
        name = f"text-to-image/{row.name}"
        found.append(Sample(name, "text-to-image", row.slice, tuple(row.pictures[:1]), messages, (prompt,)))
    if not found:
        raise UserError(f"nothing is said about its picture: fill one of the columns {', '.join(TEXTS)}")
    return found


def _box(row: _Row) -> Box:
    edges = []
    for name in _EDGES:
        try:
            edges.append(float(row.cell(name)))
        except ValueError:
            raise UserError(f'"{name}" is not a number but "{row.cell(name)}"') from None
    box = Box(*edges)
    if not all(0.0 <= edge <= 1.0 for edge in box):
        raise UserError(
            f"the box {edges} leaves the picture: its edges are shares of width and height, between 0 and 1"
        )
    if box.x1 >= box.x2 or box.y1 >= box.y2:
        raise UserError(f"the box {edges} is empty or turned inside out; it is left, top, right, bottom")
    return box


TABLE = Format("csv", "", "a CSV or TSV file with the columns of docs/own-data.md", recognises, samples)
FOLDER = Format("image-folder", "", "a folder with metadata.jsonl or metadata.csv", recognises, samples)
