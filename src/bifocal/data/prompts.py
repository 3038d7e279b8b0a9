"""In which words a task is put: the one wording of evaluation first, then others that a model should bear.

``{}`` stands for the expression, the statement or the question. The scenes are asked about in the same words as
benchmarks and a user's own pictures.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bifocal.data.sample import Message, Sample

DESCRIBE = (
    "describe the picture.",
    "what does the picture show?",
    "write a caption.",
    "say what is in the picture.",
)
FIND = ("find {}.", "point to {}.", "box: {}", "draw a box around {}.")
JUDGE = ("{}. true or false?", "true or false: {}?", "is it true that {}?")
ANSWER = ("{}", "question: {}", "{} answer in a word or two.", "answer the question: {}")

WORDINGS: Mapping[str, tuple[str, ...]] = {
    "captioning": DESCRIBE,
    "grounding": FIND,
    "reasoning": JUDGE,
    "vqa": ANSWER,
}
RATIONALE = "rationale"  # in a sample's facts: what in the pictures its answer follows from
# How often training asks in the words of evaluation; every other wording has an equal part of the rest.
OFFICIAL_SHARE = 0.5


def asked(task: str, words: str = "") -> str:
    """A task in the words of evaluation: what a picture is asked where a format itself has no words for it."""
    return WORDINGS[task][0].replace("{}", words)


def reworded(sample: Sample, rng: random.Random) -> Sample:
    """The sample, half of the time asked in other words that mean the same; a pure function of sample and ``rng``.

    Only what was asked in the words of evaluation is changed. A question, which has no words around it to tell that
    by, is changed where it is a benchmark's: a user's own questions and conversations stay as they were written.
    """
    wordings = WORDINGS.get(sample.task)
    if wordings is None or [message.role for message in sample.messages] != ["user", "assistant"]:
        return sample
    if sample.task == "vqa" and "benchmark" not in (sample.facts or {}):
        return sample
    parts = sample.messages[0].parts
    texts = [part for part in parts if isinstance(part, str)]
    words = inside(wordings[0], texts[0]) if len(texts) == 1 else None
    if words is None or rng.random() < OFFICIAL_SHARE:
        return sample
    said = rng.choice(wordings[1:]).replace("{}", words)
    asked = Message("user", tuple(said if isinstance(part, str) else part for part in parts))
    return replace(sample, messages=(asked, sample.messages[1]))


def with_rationale(sample: Sample) -> Sample:
    """The sample with an answer that first says what decides it, where its facts have that: "two, one: false".

    So each step of the thought is supervised, and the verdict can read it (a chain of thought; Wei et al. 2022).
    """
    rationale = (sample.facts or {}).get(RATIONALE)
    if not rationale or [message.role for message in sample.messages] != ["user", "assistant"]:
        return sample
    answer = Message("assistant", (f"{rationale}: {sample.answer_text}",))
    return replace(sample, messages=(sample.messages[0], answer))


def without_words(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation without what the user says in it: what classifier-free guidance leads away from.

    Pictures, and what was answered, stay: a picture that is drawn anew is led towards the words and not away from what
    it shows.
    """
    return tuple(
        Message(message.role, tuple(part for part in message.parts if not isinstance(part, str)))
        if message.role == "user"
        else message
        for message in messages
    )


def in_sentences(sample: Sample, rng: random.Random) -> Sample:
    """The sample with answers that begin with a capital and end with a period, as people write; questions half of the
    time, since they are asked either way.
    """

    def said(message: Message) -> Message:
        if message.role == "assistant" or rng.random() < 0.5:
            ends = "." if message.role == "assistant" else ""
            parts = tuple(sentence(part, ends) if isinstance(part, str) else part for part in message.parts)
            return Message(message.role, parts)
        return message

    return replace(sample, messages=tuple(said(message) for message in sample.messages))


def sentence(text: str, ends: str = ".") -> str:
    """ "an owl. the owl is red" -> "An owl. The owl is red."; ``ends`` stands behind a last letter or digit."""
    capital = re.sub(r"(^|[.!?] )([a-z])", lambda found: found[1] + found[2].upper(), text)
    return capital + (ends if capital[-1:].isalnum() else "")


def inside(wording: str, text: str) -> str | None:
    """What stands at the place of ``{}``; None where the text is not put in this wording."""
    before, _, after = wording.partition("{}")
    if "{}" not in wording:
        return "" if text == wording else None
    fits = text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)
    return text[len(before) : len(text) - len(after)] if fits else None
