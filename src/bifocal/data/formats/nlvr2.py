"""NLVR2: statements about pairs of pictures, as JSON lines whatever the file is called (lil.nlp.cornell.edu/nlvr).

Results are a CSV file without a head: ``identifier,prediction``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bifocal.config import UserError
from bifocal.data.dialects import Dialect
from bifocal.data.files import Document, located, read_text
from bifocal.data.formats.base import (
    Format,
    Given,
    ResultsFile,
    has_keys,
    make_sample,
    names_of,
    unique,
)
from bifocal.data.prompts import asked
from bifocal.data.records import expect, text
from bifocal.data.sample import Sample


def recognises(document: Document) -> bool:
    """Lines with an identifier, a sentence and a label."""
    return has_keys(document.first, "identifier", "sentence")


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample a statement about a pair. Those of one set of pictures are resampled together."""
    found = []
    for document in documents:
        for where, record in document.entries():
            with located(where):
                found.append(_sample(expect(record, dict, "a statement")))
    return unique(found, names_of(documents))


def _sample(record: Mapping[str, Any]) -> Sample:
    identifier = text(record, "identifier")
    parts = identifier.split("-")
    if len(parts) != 4:
        raise UserError(f'the identifier "{identifier}" is not SPLIT-SET-PAIR-SENTENCE')
    split, number, pair, sentence = parts
    labels = (
        [text(record, "label").lower()] if "label" in record else []
    )  # those of the hidden test are not published
    if labels not in ([], ["true"], ["false"]):
        raise UserError(f'the label "{labels[0]}" is neither "True" nor "False"')
    return make_sample(
        identifier,
        "reasoning",
        [f"{split}-{number}-{pair}-img{side}.png" for side in (0, 1)],
        asked("reasoning", text(record, "sentence").strip().rstrip(".")),
        labels,
        references=labels,
        facts={
            "benchmark": "nlvr2",
            "split": split,
            "group": f"{split}-{number}",
            "sentence": f"{split}-{number}--{sentence}",
        },
    )


def answers(path: Path, dialect: Dialect) -> list[Given]:
    """The official results. A first row of names is passed over."""
    given = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"Line {number} of {path}"
        try:
            cells = next(csv.reader([line]), [])
        except csv.Error as error:  # a cell without an end
            raise UserError(f"{where} is no row of a table: {error}.") from None
        if not cells or (number == 1 and cells[0].strip() == "identifier"):
            continue
        if len(cells) != 2:
            raise UserError(f"{where} has {len(cells)} cells instead of two: identifier,prediction.")
        given.append(Given(where, cells[0].strip(), cells[1].strip()))
    return given


def results(given: Sequence[Given]) -> str:
    """The official results of these answers.

    The official script divides lines at every comma, so a comma in an answer becomes a semicolon, which makes no answer
    right or wrong in either reading; line ends become spaces.
    """
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerows((answer.id, " ".join(answer.text.replace(",", ";").split())) for answer in given)
    return written.getvalue()


RESULTS = ResultsFile("nlvr2", ".csv", results)


FORMAT = Format("nlvr2", "reasoning", "NLVR2's JSON lines", recognises, samples, answers, RESULTS)
