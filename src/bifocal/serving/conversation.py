"""From the messages of a request to pictures and our own messages, everything counted before anything is decoded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bifocal.data.boxes import boxes_from_text
from bifocal.data.fitting import Fitting, fit_picture, seen_part
from bifocal.data.sample import Box, Message, Picture
from bifocal.inference import VLM
from bifocal.serving.errors import refused
from bifocal.serving.limits import Limits
from bifocal.serving.media import Media
from bifocal.serving.schemas import ChatMessage, ImagePart

_FOUR = re.compile(r"((?:<loc\d{4}>){4})")
_AT_ONCE = 2  # pictures decoded at the same time, of all requests: each may take 4 bytes a pixel


class Sees(Protocol):
    """What reading a picture needs to know of the model that it is for."""

    @property
    def picture_size(self) -> int: ...
    @property
    def fitting(self) -> Fitting: ...


@dataclass(frozen=True)
class Shown:
    """A picture as a model takes it, (H, W, 3) uint8, the width and height it was sent with, and the part of it that is
    seen (``seen_part``)."""

    pixels: np.ndarray
    width: int
    height: int
    part: Box


@dataclass(frozen=True)
class Conversation:
    """Pictures in the order of their appearance, and what was said."""

    shown: list[Shown]
    messages: tuple[Message, ...]

    @property
    def pictures(self) -> list[np.ndarray]:
        """As the model takes them."""
        return [picture.pixels for picture in self.shown]


class Reader:
    """Reads requests, for the whole server."""

    def __init__(self, media: Media, limits: Limits) -> None:
        self.media, self.limits = media, limits
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def picture(self, url: str, param: str, model: Sees) -> Shown:
        """One picture, decoded beside the loop."""
        async with self._turn:
            return await asyncio.to_thread(self._picture, url, param, model)

    async def pictures(self, urls: Sequence[str], param: str, model: Sees) -> list[np.ndarray]:
        """Several, if they are not too many."""
        if len(urls) > self.limits.pictures:
            raise refused(f"{len(urls)} pictures are too many: the limit is {self.limits.pictures}", param)
        return [
            (await self.picture(url, f"{param}[{index}]", model)).pixels for index, url in enumerate(urls)
        ]

    def _picture(self, url: str, param: str, model: Sees) -> Shown:
        picture = self.media.picture(url, param)
        height, width = picture.shape[:2]
        side, fitting = model.picture_size, model.fitting
        least, most = sorted((height, width))
        scaled = (
            max(fitting.shorter or side, side) ** 2 * most // least
        )  # pixels, before the middle is cut out
        if fitting.mode == "shortest" and scaled > self.limits.picture_pixels:
            raise refused(f"{param} is too long for its {least} pixels on the shorter side", param)
        part = seen_part(picture, side, fitting)
        # a picture that waits in its own size would take a thousand times the room
        if fitting.shorter in (None, side):
            picture = fit_picture(picture, side, fitting)
        return Shown(picture, width, height, part)

    def texts(self, texts: Sequence[str], param: str) -> list[str]:
        """Several texts, if they are not too many or too long together."""
        if len(texts) > self.limits.texts:
            raise refused(f"{len(texts)} texts are too many: the limit is {self.limits.texts}", param)
        self._length(sum(map(len, texts)), param)
        return [_clean(text, param) for text in texts]

    async def conversation(
        self, messages: Sequence[ChatMessage], vlm: VLM, *, last: str = "user"
    ) -> Conversation:
        """Messages -> pictures and turns, as a model takes them.

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
            (number, message, part) for number, message in enumerate(messages) for part in parts_of(message)
        ]
        self._length(sum(len(part) for _, _, part in parts if isinstance(part, str)), "messages")
        shown = sum(isinstance(part, ImagePart) for _, _, part in parts)
        if shown > limits.pictures:
            raise refused(f"{shown} pictures are too many: the limit is {limits.pictures}", "messages")
        bins = len(vlm.tokenizer.boxes)
        pictures: list[Shown] = []
        turns: list[Message] = []
        for number, message in enumerate(messages):
            turn: list[str | Picture | Box] = []
            own = len(parts_of(message)) - len(message.images or [])
            for place, part in enumerate(parts_of(message)):
                inside = f"content[{place}]" if place < own else f"images[{place - own}]"
                where = f"messages[{number}].{inside}"
                if isinstance(part, ImagePart):
                    if message.role != "user" and not (
                        message.role == "assistant" and vlm.family == "discrete"
                    ):
                        raise refused(
                            f"{where} is a picture in a turn of the {message.role}: only a user shows, and an "
                            "assistant that can draw",
                            where,
                        )
                    pictures.append(await self.picture(address_of(part), where, vlm))
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


def parts_of(message: ChatMessage) -> Sequence[str | ImagePart]:
    """The parts of a message, texts as such, and what was drawn in it."""
    drawn = message.images or []
    if isinstance(message.content, str):
        return [message.content, *drawn]
    return [*(part if isinstance(part, ImagePart) else part.text for part in message.content), *drawn]


def address_of(part: ImagePart) -> str:
    """Where its picture is."""
    return part.image_url if isinstance(part.image_url, str) else part.image_url.url


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
