"""LLaVA's instructions: conversations of several turns, ``<image>`` where a picture stands (llava-vl.github.io)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bifocal.config import UserError
from bifocal.data.files import Document, located
from bifocal.data.formats.base import Format, has_keys, names_of, unique
from bifocal.data.records import expect, items, text, texts
from bifocal.data.sample import Message, Part, Picture, Sample

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_PLACE = re.compile(r"\s*<image>\s*")


def recognises(document: Document) -> bool:
    """Entries with conversations."""
    return has_keys(document.first, "conversations")


def samples(documents: Sequence[Document]) -> list[Sample]:
    """One sample a conversation, as questions and answers; an id that comes again is given a number.

    The published mixtures use the id of the picture, so the same one comes many times.
    """
    found, seen = [], Counter[str]()
    for document in documents:
        for where, value in document.entries():
            with located(where):
                record = expect(value, dict, "a conversation")
                identity = str(record.get("id", where.rpartition(" of ")[0].lower()))
                seen[identity] += 1
                name = identity if seen[identity] == 1 else f"{identity}#{seen[identity]}"
                found.append(_sample(name, record))
    return unique(found, names_of(documents))


def _sample(identity: str, record: Mapping[str, Any]) -> Sample:
    images = record.get("image", record.get("images"))
    pictures = (
        [] if images is None else [images] if isinstance(images, str) else texts({"image": images}, "image")
    )
    messages, stood = [], 0
    for turn in items(record, "conversations"):
        speaker = text(expect(turn, dict, "a turn"), "from")
        if speaker not in _ROLES:
            raise UserError(f'a turn is from "{speaker}"; it is from {", ".join(_ROLES)}')
        parts: list[Part] = []
        pieces = _PLACE.split(text(turn, "value"))
        for number, piece in enumerate(pieces):
            if piece.strip():
                parts.append(piece.strip())
            if number < len(pieces) - 1:
                parts.append(Picture(stood))
                stood += 1
        messages.append(Message(_ROLES[speaker], tuple(parts)))
    if stood != len(pictures):
        raise UserError(f"<image> stands there {stood} times, and there are {len(pictures)} pictures")
    if not messages or messages[-1].role != "assistant":
        raise UserError("the last turn is not the model's, so there is nothing to learn from it")
    # pictures at either end of the words open the conversation, so that questions on one picture share it; those
    # among words mean something by where they stand
    first = messages[0].parts
    if len(said := [part for part in first if isinstance(part, str)]) < 2:
        shown: list[Part] = [part for part in first if isinstance(part, Picture)]
        messages[0] = Message(messages[0].role, (*shown, *said))
    return Sample(identity, "vqa", "all", tuple(pictures), tuple(messages))


FORMAT = Format("llava", "vqa", "LLaVA's conversations", recognises, samples)
