"""A prompt and what is said behind it, token by token, with pictures in it where it may draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bifocal.generation.prompt import Prompt
from bifocal.generation.rows import Lane
from bifocal.generation.sampling import Choice, Sampling

Allow = Callable[[list[int]], Tensor]  # the tokens said so far -> (V,) bool, which may come next


@dataclass(frozen=True)
class Drawing:
    """How pictures may stand in what is said: behind ``begin`` exactly ``count`` of the ``codes``, then ``end``.

    No code stands elsewhere. With ``guidance`` other than 1 codes are chosen by u + s (c - u), where u are the logits
    behind the ``empty`` prompt, which ends in ``begin`` (classifier-free guidance, Ho & Salimans 2022); its pictures
    are rows of those that the sequence begins with.
    """

    begin: int
    end: int
    codes: range
    count: int
    guidance: float = 1.0
    empty: Prompt | None = None

    def __post_init__(self) -> None:
        if self.guidance != 1.0 and self.empty is None:
            raise ValueError(f"guidance {self.guidance} needs the empty prompt to guide away from")


@dataclass(frozen=True)
class Event:
    """One token of a sequence, its log-probability at temperature 1 among the allowed ones, and the likeliest ones.

    A stop token comes with ``finished`` "stop" and belongs to no text; so does the token of an ``error``, which is what
    an ``allow`` raised. "length" comes with the last token that was asked for.
    """

    sequence: Sequence
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finished: Literal["stop", "length", "error"] | None = None
    error: ValueError | None = None


@dataclass(eq=False)
class Sequence:
    """A prompt and what was said so far. ``cached`` positions of the prompt were not computed again."""

    prompt: Prompt
    sampling: Sampling
    stop: frozenset[int]
    allow: Allow | None
    allowed: Tensor | None  # (V,) bool: what ``allow`` may choose from
    drawing: Drawing | None
    top: int
    lane: Lane
    unguided: Lane | None
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    codes: int | None = None  # of the picture that is being drawn; None outside of one
    cached: int = 0
    finished: Literal["stop", "length", "error", "cancelled"] | None = None

    @property
    def in_codes(self) -> bool:
        """Whether the next token is a code of a picture."""
        return self.codes is not None and self.drawing is not None and self.codes < self.drawing.count

    @property
    def choice(self) -> Choice:
        """How the next token is chosen."""
        return self.sampling.images if self.in_codes else self.sampling
