"""From tokens to what is told: text, pictures, and how sure each token was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from PIL import Image

from bifocal.data.text import TextTokenizer
from bifocal.generation.sampling import GUIDANCE, Choice, Sampling
from bifocal.generation.slots import Event
from bifocal.generation.writer import Writer

TOKENS = 64  # of an answer in words, where nobody says
Likely = tuple[str, float]  # a token as text, and its log-probability


class AnswerOptions(TypedDict, total=False):
    """The fields of ``AnswerSettings`` by name."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: Sequence[str]
    top_logprobs: int
    may_draw: bool
    guidance: float
    image_temperature: float
    image_top_k: int
    image_top_p: float


@dataclass(frozen=True)
class AnswerSettings:
    """How an answer is told.

    At most ``max_new_tokens`` are said: 64 if that is not given, and as many as a picture takes where one may be drawn.
    Temperature 0 takes the most likely words; ``top_k`` and ``top_p`` narrow what is sampled from. The same ``seed``
    gives the same answer; none is 0, so what is asked again without one is answered alike (a server draws one for every
    request instead). The text ends before the first of the ``stop`` texts. ``top_logprobs`` is how many likely tokens
    are named at each place. With ``may_draw`` a discrete model may put pictures into its answer: whole ones, whose
    codes are chosen by settings of their own and with ``guidance``; they count as tokens.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    top_logprobs: int = 0
    may_draw: bool = False
    guidance: float = GUIDANCE["vlm"]
    image_temperature: float = 1.0
    image_top_k: int = 0
    image_top_p: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop must be a list of texts that are not empty, got {self.stop!r}")
        if self.top_logprobs < 0:
            raise ValueError(f"top_logprobs must be at least 0, got {self.top_logprobs}")

    def sampling(self, positions: int, number: int = 0) -> Sampling:
        """How the tokens of the ``number``-th of several answers are chosen; a picture has so many ``positions``."""
        room = TOKENS + (positions + 2 if self.may_draw else 0)
        return Sampling(
            self.temperature,
            self.top_k,
            self.top_p,
            room if self.max_new_tokens is None else self.max_new_tokens,
            (self.seed or 0) + number,
            Choice(self.image_temperature, self.image_top_k, self.image_top_p),
        )


@dataclass(frozen=True)
class Told:
    """What a token adds to an answer: text that is sure by now, a picture that is done, why the answer ends if it does.

    ``logprobs`` are those of the token (none of the end), ``top_logprobs`` the likeliest at its place.
    """

    text: str = ""
    images: tuple[Image.Image, ...] = ()
    finish_reason: str | None = None
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[Likely, ...], ...] = ()


class Teller(Protocol):
    """What telling needs of a model that speaks and may draw."""

    tokenizer: TextTokenizer

    def picture_of(self, tokens: Sequence[int]) -> Image.Image: ...


@dataclass
class Telling:
    """One answer as it grows."""

    model: Teller
    stop: Sequence[str] = ()
    positions: int = 0  # codes of a picture
    writer: Writer = field(init=False)
    codes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.writer = Writer(self.model.tokenizer.decode, self.stop)

    def take(self, event: Event) -> Told:
        """What this token adds."""
        if event.finished == "stop":
            return Told(self.writer.end(), finish_reason="stop")
        text = self.writer.add(event.token)
        images: tuple[Image.Image, ...] = ()
        if event.token in self.model.tokenizer.codes:
            self.codes.append(event.token)
            if len(self.codes) == self.positions:
                images = (self.model.picture_of(self.codes),)
                self.codes = []
        reason = "stop" if self.writer.stopped else event.finished
        if reason == "length":
            text += self.writer.end()
        return Told(text, images, reason, (event.logprob,), (likely(self.model.tokenizer, event.top),))


def likely(tokenizer: TextTokenizer, top: Sequence[tuple[int, float]]) -> tuple[Likely, ...]:
    """The likeliest tokens as text."""
    return tuple((token_text(tokenizer, token), logprob) for token, logprob in top)


def token_text(tokenizer: TextTokenizer, token: int) -> str:
    """A token by itself, as it stands: special ones by their name."""
    name = tokenizer.tokenizer.id_to_token(token)
    if token in tokenizer.special.values() or token in tokenizer.boxes or token in tokenizer.codes:
        return str(name)
    return str(tokenizer.tokenizer.decode([token], skip_special_tokens=False))
