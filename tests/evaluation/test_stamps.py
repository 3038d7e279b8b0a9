"""Stamps: what was asked of whom, in which words, by fingerprints that change when it does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bifocal.data.formats.base import make_sample
from bifocal.data.prompts import WORDINGS, asked
from bifocal.data.sample import Box
from bifocal.evaluation import evaluate
from bifocal.evaluation.easel import Candidates
from bifocal.evaluation.results import Stamp
from bifocal.evaluation.stamps import answers_fingerprint, prompt_of
from evaluation.fakes import Eyes, FakeDataset, FakeDrawer, FakeVLM


def stamp(accuracy: float = 0.8, count: int = 6, **options: object) -> Stamp:
    dataset = FakeDataset("vqa", count)
    about: list[Stamp] = []
    evaluate(FakeVLM("vlm", accuracy, dataset.shapes), dataset, "vqa", about=about, blank=True, **options)
    (only,) = about  # the blank pictures are a column of the same rows
    return only


def test_an_answering_model_is_stamped_with_all_that_decides_its_answers():
    own = stamp(max_new_tokens=7, batch_size=4)
    assert own["decoding"] == {"temperature": 0.0, "max_new_tokens": 7, "batch_size": 4}
    assert (own["model"], own["data"], own["split"], own["samples"]) == ("vlm", "shapes", "test", 6)
    assert own["prompt"] == "{}"  # the question alone
    assert own["model_fingerprint"] == "vlm 0.8"
    assert stamp() == stamp()
    assert stamp(0.7)["model_fingerprint"] != own["model_fingerprint"]
    assert stamp(count=7)["data_fingerprint"] != own["data_fingerprint"]


def test_drawings_are_stamped_with_how_they_were_drawn():
    dataset = FakeDataset("text-to-image", 4)
    about: list[Stamp] = []
    drawer, checker = (FakeDrawer(name, 1.0, dataset.shapes) for name in ("drawer", "checker"))
    judge = Candidates(4, Eyes())
    for options in ({}, {"guidance": 3.0, "seed": 7}, {"candidates": judge}):
        evaluate(drawer, dataset, "text-to-image", checker=checker, about=about, **options)
    own, other, best = about
    assert own["decoding"] == {"guidance": 1.0, "seed": 0, "batch_size": 32}
    assert other["decoding"] == own["decoding"] | {"guidance": 3.0, "seed": 7}
    assert best["decoding"] == own["decoding"] | {"candidates": 4, "judge": "eyes"}
    assert (own["model_fingerprint"], own["prompt"]) == ("drawer 1.0", "{}")


def test_what_is_right_has_a_fingerprint_of_its_own():
    samples = FakeDataset("vqa", 3).samples
    other = [replace(samples[0], references=("another",)), *samples[1:]]
    assert answers_fingerprint(samples) == answers_fingerprint(FakeDataset("vqa", 3).samples)
    assert answers_fingerprint(other) != answers_fingerprint(samples)
    boxes = [make_sample("1", "grounding", ["a"], "?", [Box(0, 0, edge, 1)]) for edge in (0.5, 0.6)]
    assert answers_fingerprint(boxes[:1]) != answers_fingerprint(boxes[1:])


@pytest.mark.parametrize(
    ("task", "questions", "prompt"),
    [
        ("captioning", [asked("captioning")] * 2, "describe the picture."),
        ("captioning", ["say it.", "say it."], "say it."),
        ("captioning", [asked("captioning"), "say it."], None),
        ("grounding", [asked("grounding", "the owl"), asked("grounding", "it")], WORDINGS["grounding"][0]),
        ("reasoning", [asked("reasoning", "it is red"), "is it?"], None),
    ],
)
def test_the_words_around_what_is_asked(task, questions, prompt):
    samples = [make_sample(str(i), task, ["a"], text, ["x"]) for i, text in enumerate(questions)]
    assert prompt_of(task, samples) == prompt
