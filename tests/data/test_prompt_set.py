"""Prompts that drawings are judged by: each is true of its scene, and so is every answer that is held to be right."""

from __future__ import annotations

import random

import pytest

from bifocal.data.scenes.compose import World
from bifocal.data.scenes.drawing_texts import DrawingTexts
from bifocal.data.scenes.facts import View
from bifocal.data.scenes.prompt_set import CHALLENGES, PromptSet, is_prompt
from bifocal.data.scenes.scene import TILE_COLOURS
from bifocal.data.scenes.words import CELLS, DIRECTION_PHRASES, NUMBERS


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def prompts(world: World) -> PromptSet:
    return PromptSet(world)


def test_there_are_as_many_as_said_and_no_two_alike(prompts: PromptSet) -> None:
    counts = {name: sum(s.slice == name for s in prompts.samples) for name in CHALLENGES}
    assert counts == {name: number for name, (_, number) in CHALLENGES.items()}
    assert len({sample.question for sample in prompts.samples}) == len(prompts) == 420
    assert len({sample.id for sample in prompts.samples}) == 420
    categories = [(sample.facts or {})["slices"][1] for sample in prompts.samples]
    assert min(categories.count(name) for name in set(categories)) >= 40 and len(set(categories)) == 6


def test_scenes_hold_what_the_prompts_say(world: World, prompts: PromptSet) -> None:
    plurals = {concept.plural: concept.name for concept in world.concepts}
    for sample in prompts.samples:
        view = View(prompts.scenes[sample.pictures[0]])
        facts = sample.facts or {}
        objects = {name: len(members) for name, members in view.members.items()}
        assert objects == facts["objects"]
        for asked in facts["questions"]:
            words, answer = asked["question"].rstrip("?").split(), asked["answer"]
            named = [word for word in words if word in view.members]
            if asked["kind"] == "count":
                assert NUMBERS.index(answer) == objects[plurals[words[2]]]
                continue
            if asked["kind"] == "negation":
                assert answer == "no" and words[-1] not in objects
                continue
            (first, *_) = view.members[named[0]]
            thing = view.objects[first]
            if asked["kind"] == "colour":
                assert answer in TILE_COLOURS and thing.tile == answer
            elif asked["kind"] == "position":
                assert view.cell(first) == CELLS.index(answer)
            elif asked["kind"] == "look":
                assert set(answer.split()) <= {thing.size, thing.tilt} and thing.concept.can_tilt
            else:
                (direction,) = [
                    name for name, said in DIRECTION_PHRASES.items() if said[0] in asked["question"]
                ]
                assert view.holds(view.members[answer][0], first, direction)


def test_what_is_asked_stands_in_the_prompt(prompts: PromptSet) -> None:
    for sample in prompts.samples:
        for asked in (sample.facts or {})["questions"]:
            if asked["kind"] in ("colour", "position"):
                assert asked["answer"] in sample.question
            elif asked["kind"] == "look":
                assert all(word in sample.question for word in asked["answer"].split())


def test_unusual_combinations_are_novel_pairs_and_nothing_else_is(world: World, prompts: PromptSet) -> None:
    novel = {concept.name for concept in world.novel_concepts}
    for sample in prompts.samples:
        names = sorted((sample.facts or {})["objects"])
        pairs = {(one, other) for one in names for other in names if one < other}
        assert (not pairs.isdisjoint(world.novel_pairs)) == (sample.slice == "unusual combination")
        assert novel.isdisjoint(names)


def test_the_set_is_the_same_every_time_and_its_keys_are_known(world: World, prompts: PromptSet) -> None:
    again = PromptSet(world)
    assert again.samples == prompts.samples and again.scenes == prompts.scenes
    assert all(is_prompt(key) for key in prompts.scenes) and not is_prompt("test/4/0")
    some = PromptSet(world, 42)
    assert 35 <= len(some) <= 50 and {s.slice for s in some.samples} == set(CHALLENGES)
    assert prompts.picture(prompts.samples[0].pictures[0]).shape == (64, 64, 3)


def test_training_texts_name_every_object_and_deny_nothing_that_is_there(world: World) -> None:
    texts, rng = DrawingTexts(world), random.Random(3)
    novel = {concept.name for concept in world.novel_concepts}
    denied = 0
    for number in range(600):
        view = View(world.scenes("train", number)[0])
        text = texts.text(view.scene, rng)
        for name in view.members:
            concept = next(c for c in world.concepts if c.name == name)
            assert name in text or concept.plural in text
        for word in (" but no ", " and no ", " with no "):
            if word in text:
                denied += 1
                absent = text.split(word)[1].rstrip(".")
                concept = next(c for c in world.concepts if absent in (c.name, c.plural))
                assert concept.name not in view.members and concept.name not in novel
                pairs = {(min(name, concept.name), max(name, concept.name)) for name in view.members}
                assert pairs.isdisjoint(world.novel_pairs) and novel.isdisjoint(view.members)
    assert denied > 10
