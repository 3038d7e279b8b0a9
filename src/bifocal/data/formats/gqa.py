"""GQA: questions by id, in one file or several chunks, and the choices that validity and plausibility need.

Results are ``[{"questionId": str, "prediction": str}]`` (cs.stanford.edu/people/dorarad/gqa).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bifocal.config import UserError
from bifocal.data.dialects import Dialect
from bifocal.data.files import Document, located, read_document
from bifocal.data.formats.base import (
    Format,
    Given,
    ResultsFile,
    json_answers,
    json_results,
    make_sample,
    names_of,
    unique,
)
from bifocal.data.records import expect, optional_part, required, text, texts
from bifocal.data.sample import Sample


def _first(document: Document) -> dict[str, Any]:
    value = next(iter(document.value.values()), None) if isinstance(document.value, dict) else None
    return value if isinstance(value, dict) else {}


def _is_choices(document: Document) -> bool:
    return {"valid", "plausible"} <= _first(document).keys()


def recognises(document: Document) -> bool:
    """Questions or choices."""
    return {"question", "imageId"} <= _first(document).keys() or _is_choices(document)


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample a question, the unbalanced ones too: consistency asks about them."""
    choices: dict[str, Any] = {}
    for document in documents:
        if _is_choices(document):
            choices.update(document.value)
    asked = [document for document in documents if not _is_choices(document)]
    if not asked:
        raise UserError(f"{names_of(documents)} has choices only: give the file of questions too.")
    found = []
    for document in asked:
        for identity, record in document.value.items():
            with located(f"Question {identity} of {document.path}"):
                found.append(_sample(identity, expect(record, dict, "a question"), choices.get(identity)))
    return unique(found, names_of(asked))


def _sample(identity: str, record: Mapping[str, Any], choices: Any) -> Sample:
    types = optional_part(record, "types")
    kinds = {
        name: text(types, name) if types.get(name) else "" for name in ("structural", "semantic", "detailed")
    }
    parts = [f"{name}: {kinds[name]}" for name in ("structural", "semantic") if kinds[name]]
    if kinds["structural"]:  # as the official script tells them apart
        parts.append("open" if kinds["structural"] == "query" else "binary")
    facts = {
        "benchmark": "gqa",
        "balanced": bool(expect(required(record, "isBalanced"), bool, '"isBalanced"')),
        "entailed": texts(record, "entailed") if record.get("entailed") else [],
        "answer_group": optional_part(record, "groups").get("global"),
        "detailed": kinds["detailed"],
    }
    if parts:
        facts["slices"] = parts
    if choices is not None:
        possible = expect(choices, dict, "its entry among the choices")
        facts |= {key: texts(possible, key) for key in ("valid", "plausible")}
    answers = (
        [text(record, "answer")] if "answer" in record else []
    )  # those of the test splits are not published
    return make_sample(
        identity,
        "vqa",
        [f"{text(record, 'imageId')}.jpg"],
        text(record, "question"),
        answers,
        slice=parts[0] if parts else "all",
        references=answers,
        facts=facts,
    )


def answers(path: Path, dialect: Dialect) -> list[Given]:
    """The official results."""
    return json_answers(
        read_document(path).entries(), lambda record: (text(record, "questionId"), text(record, "prediction"))
    )


def may_miss(sample: Sample) -> bool:
    """Accuracy is about balanced questions; only consistency needs the others."""
    return not (sample.facts or {})["balanced"]


def results(given: Sequence[Given]) -> str:
    """The official results of these answers."""
    return json_results(given, lambda answer: {"questionId": answer.id, "prediction": answer.text})


RESULTS = ResultsFile("gqa", ".json", results)


FORMAT = Format(
    "gqa", "vqa", "GQA's questions, and its choices", recognises, samples, answers, RESULTS, may_miss
)
