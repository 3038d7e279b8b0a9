"""The one unit of data, whatever the source: pictures and a conversation about them, boxes included."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from bifocal.artifacts import Entry, atomic_file, json_line, lines_of, parsed
from bifocal.config import UserError
from bifocal.data.records import expect, items, text, texts


class Box(NamedTuple):
    """A rectangle in [0, 1] of the original picture: left, top, right, bottom."""

    x1: float
    y1: float
    x2: float
    y2: float


class Picture(NamedTuple):
    """The place in a message where ``sample.pictures[index]`` stands."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody looks for in one number


Part = str | Picture | Box


_CLOSING = tuple(".,;:!?)")  # signs that stand at the word before them


def words_of(parts: Iterable[Part]) -> str:
    """The words of some parts; where a picture or a box is left out between two words, a space divides them."""
    said, divided = "", False
    for part in parts:
        if not isinstance(part, str):
            divided = True
        elif part:
            together = said[-1:].isspace() or part[0].isspace() or part.startswith(_CLOSING)
            said += f" {part}" if said and divided and not together else part
            divided = False
    return said.strip()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: ``role`` is "system", "user" or "assistant"; parts are text, pictures and boxes in order."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Pictures, a conversation that ends with the assistant's turn, and what a scorer needs to judge it.

    ``pictures`` are keys that the data set turns into pixels; ``slice`` is the kind of question or flavour of
    expression ("all" where there is none); ``references`` are the right answers as text.
    """

    id: str
    task: str
    slice: str
    pictures: tuple[str, ...]
    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None

    @property
    def prompt(self) -> tuple[Part, ...]:
        """The parts of all messages before the last answer, in order."""
        return tuple(part for message in self.messages[: self._answer_at()] for part in message.parts)

    @property
    def answer(self) -> tuple[Part, ...]:
        """The parts of the last answer; none where the conversation waits for one."""
        return tuple(part for message in self.messages[self._answer_at() :] for part in message.parts)

    @property
    def answer_text(self) -> str:
        """The words of the answer; pictures and boxes are left out."""
        return words_of(self.answer)

    @property
    def question(self) -> str:
        """The text of the user's last message; pictures and boxes are left out."""
        asked = [message for message in self.messages if message.role == "user"]
        return words_of(asked[-1].parts) if asked else ""

    @property
    def asked(self) -> str | tuple[Message, ...]:
        """The question, before which the pictures stand in their order; or all before the answer, as it stands, where
        there are earlier turns, or a box, or a picture elsewhere, so that nothing is moved or left out.
        """
        before = self.messages[: self._answer_at()]
        parts = self.prompt
        words = next((place for place, part in enumerate(parts) if isinstance(part, str)), len(parts))
        usual = all(part == Picture(place) for place, part in enumerate(parts[:words]))
        usual = usual and all(isinstance(part, str) for part in parts[words:]) and len(before) == 1
        return self.question if usual else before

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes of the answer."""
        return tuple(part for part in self.answer if isinstance(part, Box))

    def _answer_at(self) -> int:
        answered = bool(self.messages) and self.messages[-1].role == "assistant"
        return len(self.messages) - 1 if answered else len(self.messages)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON in the message convention of chat services; ``from_json`` is the exact inverse."""
        return {
            "id": self.id,
            "task": self.task,
            "slice": self.slice,
            "pictures": list(self.pictures),
            "messages": [
                {"role": message.role, "content": [_part_to_json(part) for part in message.parts]}
                for message in self.messages
            ],
            "references": list(self.references),
            "facts": None if self.facts is None else dict(self.facts),
        }

    @staticmethod
    def from_json(data: Any) -> Sample:
        """A sample from what ``to_json`` gives, or from a like thing written by hand.

        ``slice``, ``references`` and ``facts`` may be left out, a message's content may be plain text, and an
        image without an index is the next picture. Raises ``UserError`` that says what is missing or wrong.
        """
        record = expect(data, dict, "a sample")
        unknown = record.keys() - _SAMPLE_KEYS
        if unknown:
            raise UserError(f"a sample has no {', '.join(sorted(unknown))}; it has {', '.join(_SAMPLE_KEYS)}")
        pictures = tuple(texts(record, "pictures")) if "pictures" in record else ()
        reader = _MessageReader(len(pictures))
        messages = tuple(reader.message(message) for message in items(record, "messages"))
        if not messages:
            raise UserError('"messages" is empty; a sample has at least one message')
        facts = record.get("facts")
        return Sample(
            id=text(record, "id"),
            task=text(record, "task"),
            slice=text(record, "slice") if "slice" in record else "all",
            pictures=pictures,
            messages=messages,
            references=tuple(texts(record, "references")) if "references" in record else (),
            facts=None if facts is None else expect(facts, dict, '"facts"'),
        )


def picture_keys_of(samples: Iterable[Sample]) -> list[str]:
    """The pictures of samples, each once, in their order."""
    return list(dict.fromkeys(key for sample in samples for key in sample.pictures))


class Dataset(Protocol):
    """What training and evaluation see of any source of samples."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    @property
    def split(self) -> str:
        """Which part of the data it is."""
        ...

    @property
    def samples(self) -> Sequence[Sample]:
        """All its samples, in a fixed order."""
        ...

    def picture(self, key: str) -> np.ndarray:
        """The pixels of one picture: (H, W, 3) uint8 RGB."""
        ...

    def stamp(self, key: str) -> Sequence[int | str]:
        """What changes when the picture does, without looking at its pixels: also what is so on this machine alone."""
        ...

    def mark(self, key: str) -> Sequence[int | str]:
        """What tells a picture from another of its name wherever it lies, without looking at its pixels."""
        ...


def read_samples(path: str | Path) -> list[Sample]:
    """The samples of a JSON-lines file, one per line; empty lines are passed over.

    Raises ``UserError`` naming the file and the line for one that is no sample.
    """
    return [sample_of(line) for line in lines_of(path)]


def sample_of(line: Entry) -> Sample:
    """The sample that a line of a file is; raises ``UserError`` naming the file and the line."""
    where, value = parsed(line)
    try:
        return Sample.from_json(value)
    except UserError as error:
        raise UserError(f"{where} is not a sample: {error}.") from error


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write samples one per line, as UTF-8. The file appears whole or not at all.

    Raises ``UserError`` naming the sample where something in it cannot be written: a number that is not finite, half a
    character.
    """
    with atomic_file(path) as file:
        for sample in samples:
            try:
                file.write(json_line(sample.to_json()).encode("utf-8"))
            except ValueError as error:
                raise UserError(f"The sample {sample.id!a} cannot be written: {error}.") from None


_SAMPLE_KEYS = ("id", "task", "slice", "pictures", "messages", "references", "facts")
_ROLES = ("system", "user", "assistant")


def _part_to_json(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Picture):
        return {"type": "image", "index": part.index}
    return {"type": "box", "box": list(part)}


class _MessageReader:
    """Reads the messages of one sample; images without an index are counted through them."""

    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        self._next = 0

    def message(self, data: Any) -> Message:
        record = expect(data, dict, "a message")
        role = text(record, "role")
        if role not in _ROLES:
            raise UserError(f'the role "{role}" of a message is none of {", ".join(_ROLES)}')
        content = record.get("content")
        if isinstance(content, str):
            return Message(role, (text(record, "content"),))
        return Message(role, tuple(self._part(part) for part in items(record, "content")))

    def _part(self, data: Any) -> Part:
        record = expect(data, dict, "a part of a message")
        kind = record.get("type")
        if kind == "text":
            return text(record, "text")
        if kind == "image":
            index = record.get("index", self._next)
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self._pictures:
                raise UserError(
                    f"an image stands for picture {index!r}, but the sample has {self._pictures} pictures"
                )
            self._next = index + 1
            return Picture(index)
        if kind == "box":
            return _box(record.get("box"))
        raise UserError(f'a part of a message has the type {kind!r}; it is "text", "image" or "box"')


def _box(value: Any) -> Box:
    numbers = (
        [v for v in value if isinstance(v, int | float) and not isinstance(v, bool)]
        if isinstance(value, list)
        else []
    )
    if len(numbers) != 4 or len(value) != 4 or not all(math.isfinite(v) and 0 <= v <= 1 for v in numbers):
        raise UserError(f"a box is {value!r}; it is four numbers x1, y1, x2, y2 in [0, 1] of the picture")
    box = Box(*(float(v) for v in numbers))
    if box.x1 > box.x2 or box.y1 > box.y2:
        raise UserError(f"the box {value!r} is turned inside out; x1 is left of x2 and y1 above y2")
    return box
