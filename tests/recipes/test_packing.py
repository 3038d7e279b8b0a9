"""Which rows a step is made of."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

import published
import tiny
from bifocal.config import UserError, from_dict, to_dict
from bifocal.data.batch import Template
from bifocal.data.sample import Message, Picture, Sample, write_samples
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.measures import exact_match
from bifocal.recipes.curriculum import TaskWeights
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.packing import NAMING, Packer, as_taught, texts_in, with_article
from bifocal.recipes.smollm import recipe_smollm
from bifocal.recipes.sources import SceneSource, drawing_sample
from bifocal.recipes.vlm import VLMRecipe, recipe_vlm

FAMILIES: tuple[Literal["discrete", "continuous"], ...] = ("discrete", "continuous")
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


@pytest.mark.parametrize("rationales", [True, False])
def test_comparisons_are_answered_with_or_without_what_is_compared(rationales: bool) -> None:
    recipe = replace(recipe_vlm("smoke"), rationales=rationales)
    source = SceneSource(recipe.world, 60)
    asked = [
        as_taught(sample, recipe, random.Random(0))
        for number in range(60)
        for sample in source.document("train", number, random.Random(number), {"vqa": 1.0})
        if sample.slice in ("compare", "pair-which")
    ]
    assert len(asked) > 50
    assert all((": " in sample.answer_text) is rationales for sample in asked)
    assert all(exact_match(sample.answer_text, sample.references) for sample in asked)


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


REDRAWN = (
    Message("system", ("draw well.",)),
    Message("user", (Picture(0), "what is it?")),
    Message("assistant", ("an owl",)),
    Message("user", ("make it red",)),
    Message("assistant", (Picture(1),)),
)


def redrawing(tmp_path: Path, **changes: object) -> Packer:
    """Rows of a folder whose one sample draws a second picture from a first one and words."""
    for name in ("in.png", "out.png"):
        published.draw(tmp_path / name, len(name))
    sample = Sample("r", "text-to-image", "all", ("in.png", "out.png"), REDRAWN)
    write_samples(tmp_path / "samples.jsonl", [sample])
    recipe = replace(recipe_vlm("smoke", "discrete"), tasks=TaskWeights(0, 0, 0, 0, 1), **changes)  # type: ignore[arg-type]
    source = FolderSource(tmp_path, tiny.PICTURE_SIZE)
    model = tiny.vlm("discrete")
    template = Template(tiny.tokenizer(), model.image_path.positions)
    return Packer(recipe, source, template, {"train": Codes()})  # type: ignore[dict-item]


class Codes:
    """A store that has every picture: of the first code the one that is read, of the second the one that is drawn."""

    def get(self, keys: Sequence[str]) -> torch.Tensor:
        return torch.stack([torch.full((16,), int(key == "out.png")) for key in keys])


@pytest.mark.parametrize("dropped", [0.0, 1.0])
def test_a_picture_is_drawn_from_the_whole_conversation_before_it(tmp_path: Path, dropped: float) -> None:
    words, model = tiny.tokenizer(), tiny.vlm("discrete")
    rows = redrawing(tmp_path, drop_prompt=dropped).rows("train", 0, 1)
    _, tokens = model.embed(rows.tokens, rows.image_places, rows.pictures)
    first = words.codes.start
    count = int((rows.documents[0] == 0).sum())
    said = [] if dropped else words.encode("what is it?")
    asked = [] if dropped else words.encode("make it red")
    assert tokens[0, :count].tolist() == [
        words.bos,
        *words.encode("draw well."),
        words.turn_end,
        *(words.image_begin, *[first] * 16, words.image_end),
        *said,
        words.turn_end,
        *words.encode("an owl"),
        words.eos,
        *asked,
        words.turn_end,
        *(words.image_begin, *[first + 1] * 16, words.image_end),
        words.eos,
    ]
    learnt = tokens[rows.supervised].tolist()
    one = [
        *words.encode("an owl"),
        words.eos,
        words.image_begin,
        *[first + 1] * 16,
        words.image_end,
        words.eos,
    ]
    assert learnt == one * (len(learnt) // len(one))
    total, number, _ = model.loss(rows)
    total.backward()
    assert number == len(learnt) and total.isfinite()


def test_a_sample_that_draws_nothing_is_refused() -> None:
    sample = Sample("r", "text-to-image", "all", ("in.png",), REDRAWN[:3])
    with pytest.raises(UserError, match="sample r is of the task text-to-image and draws nothing"):
        drawing_sample(sample, blank=False)


def turns_of(packer: Packer, steps: int, size: int) -> list[set[int]]:
    """The numbers of the turns that each of some steps comes to."""
    found: list[set[int]] = []

    def turn(split: str, number: int, seed: int) -> int:
        found[-1].add(number)
        return type(packer.source).turn(packer.source, split, number, seed)

    packer.source.turn = turn  # type: ignore[method-assign]
    for step in range(steps):
        found.append(set())
        packer.rows("train", step, size)
    return found


def one_each(tmp_path: Path, pictures: int) -> FolderSource:
    """A picture with one question each, every tenth with a prompt to draw it by, and as many conversations without."""
    samples = []
    for number in range(pictures):
        published.draw(tmp_path / f"{number}.png", number)
        answer = Message("assistant", (str(number),))
        keys = (f"{number}.png",)
        samples.append(
            Sample(f"q{number}", "vqa", "all", keys, (Message("user", (Picture(0), "which?")), answer))
        )
        samples.append(Sample(f"t{number}", "captioning", "all", (), (Message("user", ("so?",)), answer)))
        if number % 10 == 0:
            drawn = (Message("user", (f"draw {number}",)), Message("assistant", (Picture(0),)))
            samples.append(Sample(f"d{number}", "text-to-image", "all", keys, drawn))
    write_samples(tmp_path / "samples.jsonl", samples)
    return FolderSource(tmp_path, tiny.PICTURE_SIZE)


@pytest.mark.parametrize(
    "tasks",
    [TaskWeights(0, 1, 0, 0, 0), TaskWeights(1, 1, 0, 0, 0), TaskWeights(0, 1, 0, 0, 0.5)],
    ids=["questions", "conversations without a picture", "drawings of every tenth"],
)
@pytest.mark.parametrize("length", [64, 256, 512])
def test_no_step_comes_to_the_documents_of_another(tmp_path: Path, tasks: TaskWeights, length: int) -> None:
    source = one_each(tmp_path, 60)
    recipe = replace(
        recipe_vlm("smoke", "discrete"), batch_size=4, row_length=length, tasks=tasks, drop_prompt=0.5
    )
    stores = {"train": Codes()}
    packer = Packer(recipe, source, Template(tiny.tokenizer(), 16), stores)  # type: ignore[arg-type]
    turns = turns_of(packer, 6, 4)
    assert all(turns)
    assert sum(map(len, turns)) == len(set().union(*turns))


def test_steps_on_scenes_begin_where_they_always_did() -> None:
    source = SceneSource(WorldSettings(), 60)
    words = TextTokenizer.train(source.texts()[:2000], size=512, codes=64, box_bins=64)
    recipes = [
        *(
            (recipe_vlm(scale, family), 64)
            for scale in ("smoke", "quickstart", "standard")
            for family in FAMILIES
        ),
        (replace(recipe_smollm("quickstart"), plain_text=0), 16),
    ]
    for recipe, positions in recipes:
        assert Packer(recipe, source, Template(words, positions), {}).turns_a_row == 4
    # all that is said about the shortest document leaves room for another one in such long rows
    smoke = replace(recipe_smollm("smoke"), plain_text=0)
    assert Packer(smoke, source, Template(words, 16), {}).turns_a_row == 5
    long = replace(recipe_vlm("quickstart"), row_length=2048)
    packer = Packer(long, source, Template(words, 16), {"train": Zeros()})  # type: ignore[dict-item]
    turns = turns_of(packer, 3, 8)
    assert packer.turns_a_row > 4 and sum(map(len, turns)) == len(set().union(*turns))
