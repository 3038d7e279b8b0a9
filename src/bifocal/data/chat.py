"""OpenAI-style messages, as people and clients send them, to pictures and our own messages."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bifocal.config import UserError
from bifocal.data.sample import Box, Message, Picture

AnyPicture = np.ndarray | Image.Image | str | Path | bytes


def several(pictures: AnyPicture | Sequence[AnyPicture]) -> list[AnyPicture]:
    """One picture or several -> a list; a path is one, not its letters."""
    return [pictures] if isinstance(pictures, AnyPicture) else list(pictures)


def question_messages(pictures: int, question: str) -> tuple[Message, ...]:
    """One user's turn: the pictures in order, then the words."""
    return (Message("user", (*(Picture(index) for index in range(pictures)), question)),)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[list[AnyPicture], tuple[Message, ...]]:
    """OpenAI-style messages -> pictures in order of appearance, and our messages."""
    pictures: list[AnyPicture] = []
    turns: list[Message] = []
    for number, message in enumerate(messages):
        content = message.get("content")
        if message.get("role") not in ("system", "user", "assistant"):
            raise UserError(f"message {number} needs a role: system, user or assistant")
        if not isinstance(content, str | list | tuple):
            raise UserError(f"message {number} needs content: a text or a list of parts")
        parts: list[str | Picture | Box] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part.get("type")
            if kind in ("text", "image", "image_url") and kind not in part:
                raise UserError(f"message {number} has a part of type {kind!r} without {kind!r} in it")
            if kind == "text":
                parts.append(part["text"])
            elif kind in ("image", "image_url"):
                pictures.append(
                    part["image"] if kind == "image" else picture_of_url(part["image_url"], number)
                )
                parts.append(Picture(len(pictures) - 1))
            else:
                raise UserError(f"message {number} has a part of type {kind!r}: use text, image or image_url")
        turns.append(Message(message["role"], tuple(parts)))
    if not turns or turns[-1].role != "user":
        raise UserError("the last message must be the user's")
    return pictures, tuple(turns)


def picture_of_url(value: Any, number: int) -> bytes:
    """The bytes of a ``data:`` URL; nothing is fetched."""
    url = value["url"] if isinstance(value, Mapping) else value
    header, comma, data = str(url).partition(",")
    if not header.startswith("data:image/") or not header.endswith(";base64") or not comma:
        raise UserError(
            f"message {number} has a picture that is not a base64 data:image URL; send the picture itself"
        )
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise UserError(f"message {number} has a picture whose base64 is broken") from None
