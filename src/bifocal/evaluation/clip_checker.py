"""A CLIP in the place of the VLM that is asked about drawings: it can only say whether a thing is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from bifocal.config import UserError, fingerprint
from bifocal.data.scenes.scene import Concept
from bifocal.data.scenes.words import a
from bifocal.evaluation.asking import Request

MOST = 3  # kinds of things in a prompt, so many are taken to be in a picture


class Comparing(Protocol):
    """What is needed of a CLIP."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def similarities(self, pictures: Sequence[np.ndarray], labels: Sequence[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Said:
    """An answer as evaluation reads it."""

    text: str
    boxes: Sequence[Sequence[float]] = ()
    finish_reason: str = "stop"


class CLIPChecker:
    """Says "yes" of a thing that is among the ``MOST`` of all concepts that are most like the picture."""

    kinds = ("present", "absent")

    def __init__(self, clip: Comparing, concepts: Sequence[Concept]) -> None:
        self.clip, self.name = clip, clip.name
        self.names = [concept.name for concept in concepts]
        self.asked = {f"is there {a(concept)}?": place for place, concept in enumerate(concepts)}

    @property
    def fingerprint(self) -> str:
        """Names all that decides what it says: the CLIP, and among what it looks for a thing."""
        return fingerprint([self.clip.fingerprint, self.names, MOST])

    def answer_batch(
        self, requests: Sequence[Request], *, max_new_tokens: int, batch_size: int
    ) -> list[Said]:
        """Answers to "is there an owl?" alone; raises ``UserError`` for any other question."""
        pictures = {id(picture): picture for (picture,), _ in requests}
        scores = self.clip.similarities(list(pictures.values()), self.names)
        best = dict(zip(pictures, scores.topk(min(MOST, len(self.names)), dim=1).indices.tolist()))
        answers = []
        for (picture,), question in requests:
            if not isinstance(question, str) or question not in self.asked:
                raise UserError(
                    f'a CLIP as the checker is only asked whether a concept of the scenes is there, not "{question}": '
                    "name a continuous VLM with --checker"
                )
            answers.append(Said("yes" if self.asked[question] in best[id(picture)] else "no"))
        return answers
