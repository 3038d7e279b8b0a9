"""Which rows a step is made of."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from bifocal.data.sample import Message, Picture, Sample
from bifocal.data.scenes import WorldSettings
from bifocal.recipes.packing import NAMING, texts_in, with_article
from bifocal.recipes.sources import SceneSource

ARTICLES = {"owl": "an", "orange": "an", "dog": "a"}


@pytest.mark.parametrize("each", [0.4, 0.8, 1.0, 2.5])
def test_plain_text_has_its_share_of_the_rows_over_some_steps(each: float) -> None:
    counts = [texts_in(step, each) for step in range(10)]
    assert sum(counts) == 10 * each
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("kind", "answer", "said"),
    [
        ("object", "owl", "an owl"),
        ("relation", "dog", "a dog"),
        ("tile", "orange", "orange"),  # a colour
        ("object", "lamp", "lamp"),  # no thing of the scenes
    ],
)
def test_a_thing_that_is_named_alone_has_its_article(kind: str, answer: str, said: str) -> None:
    messages = (Message("user", (Picture(0), "what is this?")), Message("assistant", (answer,)))
    sample = Sample("s", "vqa", kind, ("a.png",), messages, (answer,))
    changed = with_article(sample, ARTICLES)
    assert changed.answer_text == said
    assert changed.messages[0] == sample.messages[0] and changed.references == (answer,)


def test_those_kinds_are_the_ones_that_scenes_answer_with_names() -> None:
    source = SceneSource(WorldSettings(), 60)
    names = {concept.name for concept in source.world.concepts}
    answers: dict[str, set[str]] = defaultdict(set)
    for number in range(60):
        for sample in source.document("train", number, random.Random(number), {"vqa": 1.0}):
            answers[sample.slice].add(sample.answer_text)
    assert {kind for kind, said in answers.items() if said <= names} == set(NAMING)
