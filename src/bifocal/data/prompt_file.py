"""Prompts of somebody's own to draw: a text, a table in the manner of PartiPrompts (Yu et al. 2022), or JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bifocal.artifacts import Entry
from bifocal.config import UserError
from bifocal.data.files import located, read_document, read_text
from bifocal.data.records import expect, shown
from bifocal.data.sample import Message, Sample

PROMPT, CATEGORY, CHALLENGE, OBJECTS = "prompt", "category", "challenge", "objects"
JSON = (".jsonl", ".json")


class PromptFile:
    """A data set of the task text-to-image whose samples have no true pictures.

    A file is JSON lines by its name, a table where its first line is names of columns with tabs between, of which one
    is "Prompt", and else a text with a prompt a line. Small and large letters of names are alike, and other columns and
    keys are left out. Each sample is of the slices that it has: its challenge and its category. JSON may also list the
    ``objects`` that a prompt wants, which somebody can then be asked for in a drawing. ``where`` says of each sample
    where it stands.

    Raises ``UserError`` naming the line for a prompt that is missing or empty.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name, self.split, self.task = self.path.stem, "prompts", "text-to-image"
        self.samples: list[Sample] = []
        self.where: dict[str, str] = {}
        for line in _json_lines(self.path) if self.path.suffix.lower() in JSON else _text_lines(self.path):
            with located(line.where):
                sample = _sample(f"prompt-{len(self.samples) + 1:04d}", line.value)
            self.samples.append(sample)
            self.where[sample.id] = line.where
        if not self.samples:
            raise UserError(f"{path} holds no prompts: write one a line.")

    def __len__(self) -> int:
        return len(self.samples)

    def picture(self, key: str) -> np.ndarray:
        """There is none of any key."""
        raise KeyError(f"prompts have no pictures, so there is no {key!r}")

    def stamp(self, key: str) -> tuple[str]:
        """As ``picture``."""
        raise KeyError(f"prompts have no pictures, so there is no {key!r}")

    mark = stamp


def _text_lines(path: Path) -> Iterator[Entry]:
    """The lines of a text, or of a table by its columns; cells are as they stand, quotation marks included."""
    names: list[str] | None = None
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        cells = [cell.strip() for cell in line.removesuffix("\r").split("\t")]
        if not any(cells):
            continue
        where = f"Line {number} of {path}"
        if names is None:
            columns = [cell.lower() for cell in cells]
            names = columns if len(columns) > 1 and PROMPT in columns else [PROMPT]
            if names is columns:
                continue
        if len(cells) > len(names):
            raise UserError(
                f"{where} has {len(cells)} cells divided by tabs, and more than the {len(names)} that the first line "
                "names: a table begins with the names of its columns, such as Prompt, Category and Challenge."
            )
        yield Entry(where, dict(zip(names, cells, strict=False)))


def _json_lines(path: Path) -> Iterator[Entry]:
    for line in read_document(path).entries():
        record = {PROMPT: line.value} if isinstance(line.value, str) else line.value
        with located(line.where):
            record = expect(record, dict, "a prompt with what belongs to it")
        yield Entry(line.where, {name.lower(): value for name, value in record.items()})


def _sample(name: str, record: Mapping[str, Any]) -> Sample:
    if PROMPT not in record:
        raise UserError('"prompt" is missing')
    prompt = expect(record[PROMPT], str, '"prompt"').strip()
    if not prompt:
        raise UserError("the prompt is empty")
    slices = []
    for kind in (CHALLENGE, CATEGORY):
        value = record.get(kind)
        if value is not None and (told := expect(value, str, f'"{kind}"').strip()):
            slices.append(told)
    facts: dict[str, Any] = {"slices": list(dict.fromkeys(slices))} if slices else {}
    if (objects := record.get(OBJECTS)) is not None:
        facts[OBJECTS] = dict.fromkeys(_names(objects), 1)
    return Sample(
        name,
        "text-to-image",
        slices[0] if slices else "all",
        (),
        (Message("user", (prompt,)),),
        (prompt,),
        facts or None,
    )


def _names(value: Any) -> list[str]:
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(each, str) and each.strip() for each in value)
    ):
        raise UserError(f'"objects" is not a list of names, such as ["owl", "heart"], but {shown(value)}')
    return [each.strip() for each in value]
