"""``bifocal ask`` on a terminal: the answer as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from bifocal.data.boxes import boxes_from_text
from bifocal.generation.telling import AnswerOptions
from bifocal.inference import VLM, Answer


def answer_aloud(
    model: VLM, pictures: Sequence[Path], question: str, **options: Unpack[AnswerOptions]
) -> Answer:
    """As ``VLM.answer``; every piece of text is printed when it is sure, and a line's end behind the last."""
    shown = [{"type": "image", "image": picture} for picture in pictures]
    messages = [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]
    told = []
    for piece in model.stream(messages, **options):
        print(piece.text, end="", flush=True)
        told.append(piece)
    print()
    text = "".join(piece.text for piece in told).strip()
    return Answer(
        text,
        tuple(boxes_from_text(text, len(model.tokenizer.boxes))),
        finish_reason=told[-1].finish_reason or "length",
        logprobs=tuple(logprob for piece in told for logprob in piece.logprobs),
    )
