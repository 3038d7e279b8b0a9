"""VQA and VQAv2: a file of questions, a file of annotations with ten answers each (visualqa.org/vqa_v2).

Results are ``[{"question_id": int, "answer": str}]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bifocal.config import UserError
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


def _is_questions(document: Document) -> bool:
    return {"question_id", "question", "image_id"} <= first_of(document.value, "questions").keys()


def _is_annotations(document: Document) -> bool:
    return "question_id" in first_of(document.value, "annotations")


def recognises(document: Document) -> bool:
    """Questions or annotations."""
    return _is_questions(document) or _is_annotations(document)


def picture_name(value: Mapping[str, Any], image_id: int) -> str:
    """The file of a picture, as COCO and the abstract scenes name it; test-dev asks about a part of test's pictures."""
    subtype = text(value, "data_subtype").replace("test-dev", "test")
    prefix = "abstract_v002" if str(value.get("data_type", "")).startswith("abstract") else "COCO"
    return f"{prefix}_{subtype}_{image_id:012d}.{'png' if prefix != 'COCO' else 'jpg'}"


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample a question. The ten answers are its references, the one most people gave is its answer.

    The file of questions may be missing where only answers are scored: then the questions have no words. Without a file
    of annotations, as of the test splits, they have no answers.
    """
    asked: dict[int, str] = {}
    unanswered = []
    for document in documents:
        with located(str(document.path)):
            if "data_subtype" not in document.value:
                raise UserError(
                    '"data_subtype" is missing, by which the pictures are named, such as "val2014"'
                )
        if _is_questions(document):
            for where, record in numbered(document.path, document.value["questions"], "question"):
                with located(where):
                    record = expect(record, dict, "a question")
                    asked[integer(record, "question_id")] = text(record, "question")
                    unanswered.append(_question(document.value, record))
    found = []
    annotated = [document for document in documents if _is_annotations(document)]
    if not annotated:
        return unique(unanswered, names_of(documents))
    for document in annotated:
        subtype = str(document.value.get("data_subtype") or "")
        for where, record in numbered(document.path, document.value["annotations"], "annotation"):
            with located(where):
                found.append(_sample(document.value, expect(record, dict, "an annotation"), asked, subtype))
    annotations = {sample.id for sample in found}
    alone = [identity for identity in asked if str(identity) not in annotations]
    if alone:
        raise UserError(
            f"{len(alone)} questions of {names_of(documents)} have no annotation, such as the question_id {alone[0]}: "
            "give the questions and the annotations of the same split."
        )
    return unique(found, names_of(annotated))


def _question(whole: Mapping[str, Any], record: Mapping[str, Any]) -> Sample:
    """A question whose answers are not published."""
    return make_sample(
        str(integer(record, "question_id")),
        "vqa",
        [picture_name(whole, integer(record, "image_id"))],
        text(record, "question"),
        [],
        facts={"benchmark": "vqav2", "split": str(whole.get("data_subtype") or "")},
    )


def _sample(
    whole: Mapping[str, Any], record: Mapping[str, Any], asked: Mapping[int, str], subtype: str
) -> Sample:
    identity = integer(record, "question_id")
    if asked and identity not in asked:
        raise UserError(f"the question_id {identity} is not in the file of questions")
    answers: list[str] = []
    for entry in items(record, "answers"):
        if not isinstance(entry, dict) or not isinstance(entry.get("answer"), str):
            raise UserError(f'one of the answers to the question_id {identity} has no text called "answer"')
        answers.append(entry["answer"])
    if not answers:
        raise UserError(f"the question_id {identity} has no answers")
    usual = record.get("multiple_choice_answer")
    facts = {"benchmark": "vqav2", "split": subtype, "question_type": record.get("question_type")}
    return make_sample(
        str(identity),
        "vqa",
        [picture_name(whole, integer(record, "image_id"))],
        asked.get(identity, ""),
        [usual if isinstance(usual, str) else max(answers, key=answers.count)],
        slice=text(record, "answer_type"),
        references=answers,
        facts=facts,
    )


def answers(path: Path, dialect: Dialect) -> list[Given]:
    """The official results."""
    return json_answers(
        read_document(path).entries(),
        lambda record: (str(integer(record, "question_id")), text(record, "answer")),
    )


def results(given: Sequence[Given]) -> str:
    """The official results of these answers."""
    return json_results(given, lambda answer: {"question_id": int(answer.id), "answer": answer.text})


RESULTS = ResultsFile("vqav2", ".json", results)


FORMAT = Format("vqav2", "vqa", "VQA's annotations, and its questions", recognises, samples, answers, RESULTS)
