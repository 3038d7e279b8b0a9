"""Which rows a step is made of."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from bifocal.config import from_dict, to_dict
from bifocal.data.batch import Template
from bifocal.data.sample import Message, Picture, Sample
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.recipes.curriculum import TaskWeights
from bifocal.recipes.packing import NAMING, Packer, texts_in, with_article
from bifocal.recipes.sources import SceneSource
from bifocal.recipes.vlm import VLMRecipe, recipe_vlm

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


@pytest.mark.parametrize("rationales", [True, False])
def test_statements_are_judged_with_or_without_their_rationale(rationales: bool) -> None:
    recipe = replace(recipe_vlm("smoke"), rationales=rationales, tasks=TaskWeights(0, 0, 0, 1, 0), stages=())
    source = SceneSource(recipe.world, 8)
    tokenizer = TextTokenizer.train(source.texts(), size=512, box_bins=0)
    store = {"train": Zeros()}
    packer = Packer(recipe, source, Template(tokenizer, 4, number_pictures=False), store)  # type: ignore[arg-type]
    rows = packer.rows("train", 0, 4)
    supervised = tokenizer.decode(rows.tokens[rows.supervised].tolist())
    assert rows.answers > 8
    verdicts = supervised.count("true") + supervised.count("false")
    assert verdicts == rows.answers
    assert supervised.count(":") == (verdicts if rationales else 0)


def test_recipes_teach_rationales_and_a_run_from_before_goes_on_without() -> None:
    assert all(recipe_vlm(scale).rationales for scale in ("smoke", "quickstart", "standard"))
    stored = to_dict(recipe_vlm("quickstart"))
    del stored["rationales"]
    assert not from_dict(VLMRecipe, stored, older=True).rationales


class Zeros:
    """A store that has every picture."""

    def get(self, keys: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(keys), 4, 8)


def test_those_kinds_are_the_ones_that_scenes_answer_with_names() -> None:
    source = SceneSource(WorldSettings(), 60)
    names = {concept.name for concept in source.world.concepts}
    answers: dict[str, set[str]] = defaultdict(set)
    for number in range(60):
        for sample in source.document("train", number, random.Random(number), {"vqa": 1.0}):
            answers[sample.slice].add(sample.answer_text)
    assert {kind for kind, said in answers.items() if said <= names} == set(NAMING)
