"""What waits for the engine, and what comes back from it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from bifocal.generation.prompt import Prompt
from bifocal.generation.sampling import Sampling
from bifocal.generation.sequence import Drawing, Event
from bifocal.generation.sequence import Sequence as Decoding
from bifocal.generation.slots import Slots
from bifocal.generation.telling import Likely, Telling, token_text
from bifocal.inference import VLM
from bifocal.serving.catalogue import Served
from bifocal.serving.errors import ApiError
from bifocal.serving.grammar import Constraint

Meanwhile = Callable[[int, int], None]  # is told how much is done of how much


@dataclass(frozen=True)
class Said:
    """What a token of answer ``choice`` adds: text that can be shown by now, which may be empty, the token itself with
    its log-probability, and the likeliest ones at its place; nothing of these where the answer ends, nor of a token of
    a picture. With its last code a picture is there."""

    choice: int
    text: str
    likely: tuple[Likely, ...]
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Ended:
    """Answer ``choice`` is whole: why it ended, and what was counted."""

    choice: int
    reason: str
    tokens: int
    cached: int


@dataclass(frozen=True)
class Drawn:
    """How far drawing ``choice`` is, in image tokens."""

    choice: int
    done: int
    total: int


@dataclass(frozen=True)
class Result:
    """What a piece of work returned, or the pictures from ``choice`` on."""

    choice: int
    value: Any


class Outbox:
    """From the engine's thread to the loop that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = False

    def put(self, item: Said | Ended | Drawn | Result | ApiError) -> None:
        """From any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def get(self) -> Said | Ended | Drawn | Result:
        """The next thing. Raises the ``ApiError`` that the engine put in its place."""
        item = await self._queue.get()
        if isinstance(item, ApiError):
            raise item
        return item


@dataclass(eq=False)
class Job:
    """Something to do with one model, for one client, before ``deadline`` (of ``time.monotonic``)."""

    served: Served
    outbox: Outbox
    client: str
    deadline: float
    asked: float = field(default_factory=time.monotonic, init=False)
    answered: float | None = field(default=None, init=False)  # when its first token came


@dataclass(eq=False)
class Spoken(Job):
    """A job that is a sequence of tokens in a slot: words, or the codes of a picture.

    Where a step failed, it begins again and says the same, since its seed is the same; ``given`` says how much of that
    is known already, ``restarts`` how often it began without getting further.
    """

    prompt: Prompt
    sampling: Sampling
    pictures: Sequence[np.ndarray] = ()
    choice: int = 0
    given: int = field(default=0, init=False)
    restarts: int = field(default=0, init=False)

    @property
    def vlm(self) -> VLM:
        """The model."""
        assert isinstance(self.served.loaded, VLM)
        return self.served.loaded

    @property
    def slots(self) -> int:
        """How many it takes."""
        return 1

    def start(self, pool: Slots, encoded: Tensor | None) -> Decoding:
        """Take a slot."""
        raise NotImplementedError

    def take(self, token: Event) -> bool:
        """Hand on what a token adds; whether no more are wanted."""
        raise NotImplementedError

    def _new(self, token: Event) -> bool:
        """Whether a token was not handed on before a restart."""
        place = len(token.sequence.tokens) + (token.finished == "stop")
        new = place > self.given
        if new:
            self.given, self.restarts = place, 0
        return new


def slots_of(guidance: float) -> int:
    """How many a sequence takes that draws: with guidance the empty prompt has one of its own."""
    return 1 if guidance == 1.0 else 2


@dataclass(eq=False)
class Speech(Spoken):
    """One answer in words, and in pictures where there is a ``drawing``; one with guidance takes a second slot."""

    stops: Sequence[str] = ()
    top: int = 0
    constrain: Callable[[], Constraint] | None = None
    drawing: Drawing | None = None
    telling: Telling = field(init=False)

    @property
    def slots(self) -> int:
        return 1 if self.drawing is None else slots_of(self.drawing.guidance)

    def start(self, pool: Slots, encoded: Tensor | None) -> Decoding:
        vlm = self.vlm
        self.telling = Telling(vlm, self.stops, vlm.model.image_path.positions)
        usual = ~vlm.forbidden
        constraint = None if self.constrain is None else self.constrain()

        def allowed(tokens: list[int]) -> Tensor:
            assert constraint is not None
            return constraint.allowed(tokens).to(usual.device) & usual

        allow = usual if constraint is None else allowed
        return pool.start(
            self.prompt,
            encoded,
            self.sampling,
            stop=[vlm.tokenizer.eos],
            allow=allow,
            drawing=self.drawing,
            top=self.top,
        )

    def take(self, token: Event) -> bool:
        new, told = self._new(token), self.telling.take(token)
        likely: tuple[Likely, ...] = ()
        if told.logprobs and not self._of_picture(token.token):
            likely = ((token_text(self.vlm.tokenizer, token.token), token.logprob), *told.top_logprobs[0])
        if new:
            self.outbox.put(Said(self.choice, told.text, likely, told.images))
        if told.finish_reason is None:
            return False
        sequence = token.sequence
        self.outbox.put(Ended(self.choice, told.finish_reason, len(sequence.tokens), sequence.cached))
        return True

    def _of_picture(self, token: int) -> bool:
        drawing = self.drawing
        return drawing is not None and (token in drawing.codes or token in (drawing.begin, drawing.end))


@dataclass(eq=False)
class Sketch(Spoken):
    """One drawing: as many codes as a picture has. ``guidance`` other than 1 takes a second slot."""

    guidance: float = 1.0

    @property
    def slots(self) -> int:
        return slots_of(self.guidance)

    def start(self, pool: Slots, encoded: Tensor | None) -> Decoding:
        return pool.start(self.prompt, encoded, self.sampling, drawing=self.vlm.drawing(self.guidance))

    def take(self, token: Event) -> bool:
        done, total = len(token.sequence.tokens), self.sampling.max_new_tokens
        if self._new(token):
            self.outbox.put(Drawn(self.choice, done, total))
        if done < total:
            return False
        self.outbox.put(Result(self.choice, [self.vlm.picture_of(token.sequence.tokens)]))
        return True


@dataclass(eq=False)
class Task(Job):
    """Anything else: a function that the engine's thread calls between two steps.

    One that takes long calls, now and then, what it is given, with how much is done of how much: the answers of others
    go on then, and where nobody waits for it any more, or too long, an exception ends it.
    """

    go: Callable[[Meanwhile], Any]


class Queue:
    """Jobs in turn: one of each client, then the next of each. Not locked: the engine does that."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, jobs: Sequence[Job]) -> bool:
        """All of them, or none and False where they do not fit."""
        if len(self) + len(jobs) > self.limit:
            return False
        for job in jobs:
            self._waiting.setdefault(job.client, deque()).append(job)
        return True

    def take(self, ready: Callable[[Job], bool]) -> Job | None:
        """The first job that is ready, of the client whose turn it is; that client's next turn is after all others.

        Nobody overtakes a job that waits for slots of the same model, or one that needs two would wait for ever.
        """
        full: set[str] = set()
        for client, jobs in self._waiting.items():
            for job in jobs:
                if isinstance(job, Spoken) and job.served.name in full:
                    continue
                if not ready(job):
                    if isinstance(job, Spoken):
                        full.add(job.served.name)
                    continue
                jobs.remove(job)
                if jobs:
                    self._waiting.move_to_end(client)
                else:
                    del self._waiting[client]
                return job
        return None

    def drop(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        """Take out all of a kind."""
        dropped = [job for jobs in self._waiting.values() for job in jobs if unwanted(job)]
        for job in dropped:
            self._waiting[job.client].remove(job)
            if not self._waiting[job.client]:
                del self._waiting[job.client]
        return dropped
