"""Evaluation on the default data: what it takes from a world of scenes beyond a plain data set."""

import pytest

from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.evaluation import captioning, evaluate, zero_shot
from bifocal.evaluation.easel import question_about
from evaluation.fakes import FakeAnswer


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldSettings())


class Oracle:
    """Gives each sample's last reference, whatever the pictures."""

    kind, name = "vlm", "oracle"

    def __init__(self, dataset: SceneDataset) -> None:
        self.answers = iter([sample.references[-1] for sample in dataset.samples])

    def answer_batch(self, requests, *, max_new_tokens, batch_size):
        return [FakeAnswer(next(self.answers)) for _ in requests]


def test_a_caption_of_the_references_names_every_object_and_count(world):
    dataset = SceneDataset(world, "test", "captioning", 40)
    predictions = captioning.predict(Oracle(dataset), dataset)
    assert all(p["correct"] for p in predictions), [p for p in predictions if not p["correct"]][:1]
    rows = {row.metric: row.value for row in captioning.score(predictions, model="oracle", split="test")}
    assert rows["objects_named"] == rows["objects_precision"] == rows["counts_named"] == 1.0


def test_the_names_to_choose_from_are_all_concepts_of_the_world(world):
    dataset = SceneDataset(world, "test", "zero-shot", 5)
    assert zero_shot.labels_of(dataset) == [concept.name for concept in world.concepts]
    assert {sample.references[0] for sample in dataset.samples} <= set(zero_shot.labels_of(dataset))


def test_the_checker_is_asked_with_the_concept_s_own_article(world):
    dataset = SceneDataset(world, "test", "text-to-image", 5)
    for concept in world.concepts:
        assert question_about(dataset, concept.name) == f"is there {concept.article} {concept.name}?"


def test_kinds_of_questions_become_slices_and_yes_or_no_is_balanced(world):
    dataset = SceneDataset(world, "test", "vqa", 96)
    rows = {row.slice: row for row in evaluate(Oracle(dataset), dataset, "vqa", blank=False)}
    assert len(rows) == 13  # twelve kinds and all
    assert rows["exists"].baseline == pytest.approx(0.5)
    # questions about several pictures are asked last, so the oracle's order is not the samples'
    assert rows["all"].n == 96
