"""CLEVR: questions with the program that answers them (cs.stanford.edu/people/jcjohns/clevr).

Results are ``[{"question_index": int, "answer": str}]``, as a list or as JSON lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from bifocal.data.records import expect, integer, items, text
from bifocal.data.sample import Sample

_COMPARED_NUMBERS = ("equal_integer", "less_than", "greater_than")


def recognises(document: Document) -> bool:
    """Questions about a picture that is named by its file."""
    return {"image_filename", "question"} <= first_of(document.value, "questions").keys()


def kind_of(program: Sequence[Mapping[str, Any]]) -> str:
    """What a question asks for, by the last step of its program: the five types of the paper, queries by attribute."""
    last = str(program[-1].get("function") or program[-1].get("type") or "") if program else ""
    if last in _COMPARED_NUMBERS:
        return "compare integer"
    if last.startswith("equal_"):
        return "compare attribute"
    return last.replace("_", " ") or "all"


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample a question, in the slices of its type and of its family."""
    found = []
    for document in documents:
        for where, record in numbered(document.path, document.value["questions"], "question"):
            with located(where):
                found.append(_sample(expect(record, dict, "a question")))
    return unique(found, names_of(documents))


def _sample(record: Mapping[str, Any]) -> Sample:
    answers = (
        [text(record, "answer")] if "answer" in record else []
    )  # those of the test split are not published
    program = items(record, "program") if record.get("program") is not None else []
    kind = kind_of([expect(step, dict, 'a step of "program"') for step in program])
    facts: dict[str, Any] = {"benchmark": "clevr"}
    if isinstance(record.get("split"), str):
        facts["split"] = record["split"]
    if "question_family_index" in record:
        facts["slices"] = [kind, f"family {integer(record, 'question_family_index')}"]
    return make_sample(
        str(integer(record, "question_index")),
        "vqa",
        [text(record, "image_filename")],
        text(record, "question"),
        answers,
        slice=kind,
        references=answers,
        facts=facts,
    )


def answers(path: Path, dialect: Dialect) -> list[Given]:
    """Answers by the index of the question."""
    return json_answers(
        read_document(path).entries(),
        lambda record: (str(integer(record, "question_index")), text(record, "answer")),
    )


def results(given: Sequence[Given]) -> str:
    """These answers by the index of the question, as a list."""
    return json_results(given, lambda answer: {"question_index": int(answer.id), "answer": answer.text})


RESULTS = ResultsFile("clevr", ".json", results)


FORMAT = Format("clevr", "vqa", "CLEVR's questions", recognises, samples, answers, RESULTS)
