"""Wordings of a task: many in training, the same sense, and a user's own words untouched."""

from __future__ import annotations

import random
from collections import Counter

import pytest

import published
from bifocal.data.formats.base import make_sample
from bifocal.data.prompts import (
    OFFICIAL_SHARE,
    RATIONALE,
    WORDINGS,
    asked,
    in_sentences,
    reworded,
    sentence,
    with_rationale,
)
from bifocal.data.sample import Box, Message, Picture, Sample, write_samples
from bifocal.recipes.folder_source import FolderSource

ASKED = {
    "captioning": asked("captioning"),
    "grounding": asked("grounding", "the left owl"),
    # braces in a benchmark's text are only braces
    "reasoning": asked("reasoning", "both pictures show {} owls"),
    "vqa": "what is it?",
}


def sample_of(task: str, question: str, *, benchmark: bool = True) -> Sample:
    answer = Box(0, 0, 1, 1) if task == "grounding" else "owl"
    facts = {"benchmark": "some"} if benchmark else None
    return make_sample("s", task, ["a.png"], question, [answer], facts=facts)


@pytest.mark.parametrize("task", sorted(WORDINGS))
def test_every_wording_of_a_task_comes_and_that_of_evaluation_most(task):
    sample = sample_of(task, ASKED[task])
    counts = Counter(reworded(sample, random.Random(seed)).question for seed in range(400))
    assert len(counts) == len(WORDINGS[task]) >= 3
    # four standard deviations of 400 tosses
    assert counts[ASKED[task]] / 400 == pytest.approx(OFFICIAL_SHARE, abs=0.1)


@pytest.mark.parametrize("task", sorted(WORDINGS))
def test_only_the_words_of_the_question_change(task):
    sample = sample_of(task, ASKED[task])
    for seed in range(20):
        other = reworded(sample, random.Random(seed))
        assert other.messages[1] == sample.messages[1]
        assert (other.id, other.pictures, other.facts) == (sample.id, sample.pictures, sample.facts)
        assert other.messages[0].parts[0] == Picture(0) and len(other.messages[0].parts) == 2
    assert reworded(sample, random.Random(5)) == reworded(sample, random.Random(5))


@pytest.mark.parametrize(
    "sample",
    [
        sample_of("vqa", "what is it?", benchmark=False),
        sample_of("captioning", "tell me about this."),
        sample_of("grounding", "where is the owl?"),
        sample_of("zero-shot", "what is this?"),
    ],
    ids=["own question", "own request", "own search", "no wordings"],
)
def test_what_was_not_asked_in_the_words_of_evaluation_stays(sample):
    assert all(reworded(sample, random.Random(seed)) == sample for seed in range(20))


def test_a_conversation_of_several_turns_stays():
    turns = tuple(Message(role, ("what is it?",)) for role in ("user", "assistant", "user", "assistant"))
    sample = Sample("s", "vqa", "all", (), turns, facts={"benchmark": "some"})
    assert all(reworded(sample, random.Random(seed)) == sample for seed in range(20))


def test_training_asks_in_many_words_and_validation_in_those_of_evaluation(tmp_path):
    published.draw(tmp_path / "a.png", 0)
    write_samples(tmp_path / "samples.jsonl", [sample_of("captioning", asked("captioning"))])
    source = FolderSource(tmp_path, 32)

    def asked_in(split: str) -> set[str]:
        rng = random.Random(0)
        return {source.document(split, 0, rng, {"captioning": 1.0})[0].question for _ in range(60)}

    assert asked_in("train") == set(WORDINGS["captioning"])
    assert asked_in("validation") == {asked("captioning")}


def test_sentences_begin_with_a_capital_and_end_with_a_period() -> None:
    assert sentence("an owl. the owl is red") == "An owl. The owl is red."
    assert sentence("two owls.") == "Two owls."
    assert sentence("is there an owl?", "") == "Is there an owl?"
    assert sentence("") == ""


def test_answers_are_sentences_and_questions_are_so_half_of_the_time() -> None:
    messages = (
        Message("user", (Picture(0), "what is it?")),
        Message("assistant", ("an owl", Box(0, 0, 1, 1))),
    )
    sample = Sample("s", "vqa", "all", ("p",), messages)
    said = [in_sentences(sample, random.Random(seed)).messages for seed in range(40)]
    assert {answer.parts for _, answer in said} == {("An owl.", Box(0, 0, 1, 1))}
    assert {question.parts for question, _ in said} == {
        (Picture(0), "what is it?"),
        (Picture(0), "What is it?"),
    }


@pytest.mark.parametrize(
    ("facts", "said"), [({RATIONALE: "two, one"}, "two, one: false"), ({}, "false"), (None, "false")]
)
def test_a_rationale_stands_before_the_verdict_and_is_no_reference(facts, said) -> None:
    messages = (
        Message("user", (Picture(0), "there is one owl. true or false?")),
        Message("assistant", ("false",)),
    )
    sample = Sample("s", "reasoning", "single", ("p",), messages, ("false",), facts)
    told = with_rationale(sample)
    assert told.answer_text == said
    assert told.messages[0] == sample.messages[0] and told.references == ("false",)
