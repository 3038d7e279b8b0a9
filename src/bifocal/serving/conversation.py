"""From the messages of a request to pictures and our own messages, everything counted before anything is decoded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bifocal.data.boxes import boxes_from_text
from bifocal.data.sample import Box, Message, Picture
from bifocal.serving.errors import refused
from bifocal.serving.limits import Limits
from bifocal.serving.media import Media
from bifocal.serving.schemas import ChatMessage, ImagePart

_FOUR = re.compile(r"((?:<loc\d{4}>){4})")
_AT_ONCE = 2  # pictures decoded at the same time, of all requests: each may take 4 bytes a pixel


@dataclass(frozen=True)
class Conversation:
    """Pictures in the order of their appearance, and what was said."""

    pictures: list[np.ndarray]
    messages: tuple[Message, ...]


class Reader:
    """Reads requests, for the whole server."""

    def __init__(self, media: Media, limits: Limits) -> None:
        self.media, self.limits = media, limits
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def picture(self, url: str, param: str) -> np.ndarray:
        """One picture, decoded beside the loop."""
        async with self._turn:
            return await asyncio.to_thread(self.media.picture, url, param)

    async def pictures(self, urls: Sequence[str], param: str) -> list[np.ndarray]:
        """Several, if they are not too many."""
        if len(urls) > self.limits.pictures:
            raise refused(f"{len(urls)} pictures are too many: the limit is {self.limits.pictures}", param)
        return [await self.picture(url, f"{param}[{index}]") for index, url in enumerate(urls)]

    def texts(self, texts: Sequence[str], param: str) -> list[str]:
        """Several texts, if they are not too many or too long together."""
        if len(texts) > self.limits.texts:
            raise refused(f"{len(texts)} texts are too many: the limit is {self.limits.texts}", param)
        self._length(sum(map(len, texts)), param)
        return [_clean(text, param) for text in texts]

    async def conversation(
        self, messages: Sequence[ChatMessage], bins: int, *, last: str = "user"
    ) -> Conversation:
        """Messages -> pictures and turns. ``bins`` is how finely the model writes boxes.

        What an assistant said is read as it was written: four location tokens are a box. In everybody else's words
        they are words. Raises ``ApiError`` 400.
        """
        limits = self.limits
        if len(messages) > limits.messages:
            raise refused(
                f"{len(messages)} messages are too many: the limit is {limits.messages}", "messages"
            )
        if messages[-1].role != last:
            raise refused(f"the last message must be the {last}'s", "messages")
        parts = [
            (number, message, part) for number, message in enumerate(messages) for part in _parts(message)
        ]
        self._length(sum(len(part) for _, _, part in parts if isinstance(part, str)), "messages")
        shown = sum(isinstance(part, ImagePart) for _, _, part in parts)
        if shown > limits.pictures:
            raise refused(f"{shown} pictures are too many: the limit is {limits.pictures}", "messages")
        pictures: list[np.ndarray] = []
        turns: list[Message] = []
        for number, message in enumerate(messages):
            turn: list[str | Picture | Box] = []
            for place, part in enumerate(_parts(message)):
                where = f"messages[{number}].content[{place}]"
                if isinstance(part, ImagePart):
                    if message.role != "user":
                        raise refused(
                            f"{where} is a picture in a turn of the {message.role}: only a user shows", where
                        )
                    address = part.image_url
                    url = address if isinstance(address, str) else address.url
                    pictures.append(await self.picture(url, where))
                    turn.append(Picture(len(pictures) - 1))
                elif message.role == "assistant":
                    turn += _said(_clean(part, where), bins)
                else:
                    turn.append(_clean(part, where))
            turns.append(Message("system" if message.role == "developer" else message.role, tuple(turn)))
        return Conversation(pictures, tuple(turns))

    def _length(self, characters: int, param: str) -> None:
        if characters > self.limits.characters:
            raise refused(
                f"{param} has {characters} characters, and the limit is {self.limits.characters}", param
            )


def _parts(message: ChatMessage) -> Sequence[str | ImagePart]:
    if isinstance(message.content, str):
        return [message.content]
    return [part if isinstance(part, ImagePart) else part.text for part in message.content]


def _said(text: str, bins: int) -> Iterator[str | Box]:
    """An assistant's words, with the boxes in them as boxes."""
    for piece in _FOUR.split(text):
        boxes = boxes_from_text(piece, bins) if _FOUR.fullmatch(piece) else ()
        if boxes:
            yield from boxes
        elif piece:
            yield piece


def _clean(text: str, param: str) -> str:
    """Half of a surrogate pair is no letter, and no tokenizer takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise refused(f"{param} holds half of a surrogate pair, which is no letter", param) from None
    return text
