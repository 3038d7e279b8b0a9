"""Evaluation sets and training samples of the scenes: even answers, and nothing to guess from the words."""

import math
import random
import re
from collections import Counter, defaultdict

import pytest

from bifocal.config import UserError
from bifocal.data.sample import Picture, Sample
from bifocal.data.scenes.compose import World
from bifocal.data.scenes.dataset import SceneDataset, clip_caption, samples_for, training_texts
from bifocal.data.scenes.questions import MANY_KINDS, SINGLE_KINDS
from bifocal.data.scenes.speaker import TASKS, Speaker

YES_NO = {"exists", "compare", "single", "pair"}


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def sets(world: World) -> dict[str, SceneDataset]:
    counts = {"vqa": 3000, "reasoning": 1600}
    return {task: SceneDataset(world, "test", task, counts.get(task, 400)) for task in TASKS}


@pytest.fixture(scope="module")
def training(world: World) -> list[Sample]:
    rng = random.Random(0)
    found = []
    for index in range(4000):
        scenes = world.scenes("train", index)
        found += samples_for(scenes, rng, world=world, tasks=["vqa", "reasoning"], count=8, split="train")
    return found


def question_of(sample: Sample) -> str:
    return str(sample.messages[0].parts[-1])


def answers_by_kind(samples: list[Sample]) -> dict[str, Counter]:
    kinds: dict[str, Counter] = defaultdict(Counter)
    for sample in samples:
        kinds[sample.slice][sample.references[0]] += 1
    return kinds


def test_kinds_are_about_equal(sets):
    kinds = Counter(sample.slice for sample in sets["vqa"].samples)
    assert set(kinds) == set(SINGLE_KINDS) | set(MANY_KINDS)
    assert max(kinds.values()) - min(kinds.values()) <= 1
    flavours = Counter(sample.slice for sample in sets["grounding"].samples)
    assert set(flavours) == {"refcoco", "refcoco+", "refcocog"}
    assert max(flavours.values()) - min(flavours.values()) <= 1
    assert Counter(sample.slice for sample in sets["reasoning"].samples) == {"single": 800, "pair": 800}


def test_no_answer_is_too_frequent(sets):
    for task in ("vqa", "reasoning"):
        for kind, answers in answers_by_kind(sets[task].samples).items():
            share = max(answers.values()) / answers.total()
            if kind in YES_NO:
                assert len(answers) == 2
                assert abs(share - 0.5) <= 0.005, kind
            else:
                assert share < 0.3, (kind, answers.most_common(3))


@pytest.mark.parametrize("split", ["validation", "test-novel-pairs", "test-novel-concepts"])
def test_no_answer_is_too_frequent_elsewhere(world, split):
    for task, count in (("vqa", 1200), ("reasoning", 400)):
        for kind, answers in answers_by_kind(SceneDataset(world, split, task, count).samples).items():
            share = max(answers.values()) / answers.total()
            assert share < 0.4 or (kind in YES_NO and share < 0.52), (kind, answers.most_common(3))


def test_no_answer_is_too_frequent_in_training(training):
    for kind, answers in answers_by_kind(training).items():
        share = max(answers.values()) / answers.total()
        assert share < (0.55 if kind in YES_NO else 0.4), (kind, answers.most_common(3))


def features(sample: Sample) -> set[str]:
    words = re.findall(r"[a-z]+", question_of(sample))
    return {
        *words,
        *(" ".join(pair) for pair in zip(words, words[1:], strict=False)),
        str(len(sample.pictures)),
    }


def likelihood(seen: int, found: Counter, told: set[str]) -> float:
    """Of an answer seen so often and with these words, up to a constant factor (30 keeps the product in range)."""
    return seen * math.prod((found[feature] + 0.5) / (seen + 1) * 30 for feature in told)


def test_the_words_do_not_tell_the_answer(sets, training):
    """A naive Bayes classifier of words and pairs of words, which sees no picture, gains nothing over the majority."""
    test = defaultdict(list)
    for task in ("vqa", "reasoning"):
        for sample in sets[task].samples:
            test[sample.slice].append(sample)
    train = defaultdict(list)
    for sample in training:
        train[sample.slice].append(sample)
    gained = asked = 0.0
    for kind, samples in test.items():
        if kind in ("object", "relation", "pair-both"):  # a hundred answers of one in a hundred each
            continue
        found: dict[str, Counter] = defaultdict(Counter)
        answers: Counter = Counter()
        for sample in train[kind]:
            answers[sample.references[0]] += 1
            found[sample.references[0]].update(features(sample))
        right = 0
        for sample in samples:
            told = features(sample)
            guess = max(answers, key=lambda answer: likelihood(answers[answer], found[answer], told))
            right += guess == sample.references[0]
        majority = max(answers_by_kind(samples)[kind].values())
        standard_error = math.sqrt(majority * (1 - majority / len(samples)))
        assert right < majority + 4 * standard_error, kind
        if kind in ("single", "pair"):
            assert right < 0.55 * len(samples)
        gained += right - majority
        asked += len(samples)
    assert gained / asked < 0.02


def test_samples_are_the_same_again(world):
    for task in TASKS:
        first, second = SceneDataset(world, "test", task, 40), SceneDataset(world, "test", task, 40)
        assert first.samples == second.samples
        assert [s.pictures for s in SceneDataset(world, "test", task, 40, seed=1).samples] != [
            s.pictures for s in first.samples
        ]
    scenes = world.scenes("train", 3, pictures=2)
    once, again = (
        samples_for(scenes, random.Random(1), world=world, tasks=TASKS, count=20, split="train")
        for _ in range(2)
    )
    assert once == again
    assert training_texts(world, 200, seed=1) == training_texts(world, 200, seed=1)


def test_balancing_depends_on_the_world_alone(world):
    assert Speaker(world)._rates == Speaker(world)._rates


def test_ids_are_unique_and_pictures_of_the_split(sets):
    for dataset in sets.values():
        assert len({sample.id for sample in dataset.samples}) == len(dataset.samples)
        for sample in dataset.samples:
            assert sample.task == dataset.task
            assert all(key.startswith("test/") for key in sample.pictures)


def test_pictures_stand_before_the_question(sets):
    for task, dataset in sets.items():
        for sample in dataset.samples[:100]:
            asked, answer = sample.messages[0].parts, sample.messages[-1].parts
            if task == "text-to-image":
                assert answer == (Picture(0),)
                assert not any(isinstance(part, Picture) for part in asked)
            else:
                assert asked[: len(sample.pictures)] == tuple(Picture(i) for i in range(len(sample.pictures)))
                assert not any(isinstance(part, Picture) for part in answer)


def test_numbers_of_pictures(sets):
    assert {len(s.pictures) for s in sets["vqa"].samples if s.slice in SINGLE_KINDS} == {1}
    assert {len(s.pictures) for s in sets["vqa"].samples if s.slice in MANY_KINDS} == {2, 3}
    assert {len(s.pictures) for s in sets["reasoning"].samples if s.slice == "pair"} == {2}


def test_pictures_are_rendered(sets, world):
    dataset = sets["captioning"]
    for sample in dataset.samples[:80]:  # more than are kept
        picture = dataset.picture(sample.pictures[0])
        assert picture.shape == (64, 64, 3)
    again = dataset.picture(dataset.samples[0].pictures[0])
    assert (again == world.picture(dataset.samples[0].pictures[0])).all()


def test_references_are_distinct(sets):
    several = 0
    for sample in sets["captioning"].samples:
        assert len(set(sample.references)) == len(sample.references)
        assert sample.messages[-1].parts == sample.references[:1]
        several += len(sample.references) == 5
    assert several > 0.95 * len(sets["captioning"].samples)
    captions = [sample.references for sample in sets["retrieval"].samples]
    assert len(set(captions)) == len(captions)


def test_prompts_of_drawings_name_the_objects(sets):
    for sample in sets["text-to-image"].samples:
        assert sample.references == (question_of(sample),)
        assert sum(sample.facts["objects"].values()) <= 3


def test_the_novel_splits_turn_on_what_is_novel(world):
    novel = {concept.name for concept in world.novel_concepts}
    words = novel | {concept.plural for concept in world.novel_concepts}
    for task in ("vqa", "reasoning", "grounding"):
        dataset = SceneDataset(world, "test-novel-concepts", task, 240)
        turning = 0
        for sample in dataset.samples:
            text = f"{question_of(sample)} {' '.join(sample.references)}"
            named = bool(words & set(re.findall(r"[a-z]+", text)))
            turning += named or sample.slice in ("category", "single", "refcoco", "refcoco+", "refcocog")
        assert turning > 0.9 * len(dataset.samples)
        assert len(SceneDataset(world, "test-novel-pairs", task, 60).samples) == 60


def test_training_names_a_novel_concept_only_where_it_is_alone(world):
    novel = {concept.name for concept in world.novel_concepts}
    forms = novel | {concept.plural for concept in world.novel_concepts}
    rng = random.Random(0)
    alone = 0
    for split in ("train", "validation", "test"):
        for index in range(1500):
            scenes = world.scenes(split, index)
            names = [{thing.concept.name for thing in scene.objects} for scene in scenes]
            for sample in samples_for(scenes, rng, world=world, tasks=TASKS, count=6, split=split):
                text = " ".join(p for m in sample.messages for p in m.parts if isinstance(p, str))
                said = forms & set(re.findall(r"[a-z]+", text))
                if said:
                    assert len(sample.pictures) == 1
                    held = names[[scene.key for scene in scenes].index(sample.pictures[0])]
                    assert len(held) == 1
                    assert said <= held | {c.plural for c in world.concepts if c.name in held}
                    assert sample.task in ("captioning", "zero-shot", "retrieval", "text-to-image")
                    alone += 1
    assert alone > 20  # they are named there


def test_weights_of_tasks(world):
    rng = random.Random(0)
    tasks: Counter = Counter()
    for index in range(400):
        scenes = world.scenes("train", index, pictures=1)
        for sample in samples_for(
            scenes, rng, world=world, tasks={"captioning": 1, "vqa": 3}, count=8, split="train"
        ):
            tasks[sample.task] += 1
    assert 0.66 < tasks["vqa"] / tasks.total() < 0.8


def test_a_call_never_asks_twice(world):
    rng = random.Random(0)
    for index in range(100):
        scenes = world.scenes("train", index, pictures=1)
        samples = samples_for(scenes, rng, world=world, tasks=["vqa", "grounding"], count=30, split="train")
        asked = [question_of(sample) for sample in samples]
        assert len(asked) == len(set(asked))
        assert [sample.id for sample in samples] == [f"train/{index}/{n}" for n in range(len(samples))]


def test_three_pictures_get_questions_and_no_statements(world):
    scenes = world.scenes("train", 0, pictures=3)
    rng = random.Random(0)
    assert samples_for(scenes, rng, world=world, tasks=["reasoning"], count=3, split="train") == []
    samples = samples_for(scenes, rng, world=world, tasks=["vqa", "reasoning"], count=3, split="train")
    assert {(sample.task, len(sample.pictures)) for sample in samples} == {("vqa", 3)}


def test_an_unknown_task_is_refused(world):
    with pytest.raises(UserError, match="no task"):
        SceneDataset(world, "test", "singing", 3)
    with pytest.raises(UserError, match="no task"):
        samples_for(
            world.scenes("train", 0), random.Random(0), world=world, tasks=["singing"], count=1, split="train"
        )


def test_training_texts_cover_every_name(world):
    texts = training_texts(world, 500)
    joined = " ".join(texts)
    assert len(texts) == 500 + 2 * len(world.concepts)
    for concept in world.concepts:
        assert concept.name in joined
        assert concept.plural in joined


def test_clip_captions_of_single_objects_are_short(world):
    rng = random.Random(0)
    texts = [clip_caption(world.single("train", index), rng) for index in range(300)]
    assert max(len(text.split()) for text in texts) <= 16
    assert len(set(texts)) > 200
