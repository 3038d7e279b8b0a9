"""Kinds told by words: expressions, statements and answers as a person would sort them."""

from __future__ import annotations

import pytest

from bifocal.data.formats.base import make_sample
from bifocal.data.prompts import asked
from bifocal.data.sample import Box
from bifocal.evaluation import grounding, reasoning, vqa
from bifocal.evaluation.asking import prediction_of
from bifocal.evaluation.kinds import (
    APPEARANCE,
    LOCATION,
    OTHER_WORDS,
    PHENOMENA,
    RELATION,
    answer_type,
    phenomena,
    slices_of,
    word_types,
)


@pytest.mark.parametrize(
    ("expression", "kinds"),
    [
        ("left owl", [LOCATION]),
        ("the man on the far right", [LOCATION]),
        ("second from the left", [LOCATION]),
        ("Top right corner of picture", [LOCATION]),
        ("right of the picture", [LOCATION]),
        ("closest to us", [LOCATION]),
        ("man in red shirt", [APPEARANCE]),
        ("the biggest striped cat", [APPEARANCE]),
        ("left guy in blue", [LOCATION, APPEARANCE]),
        ("man left of the tree", [RELATION]),
        ("dog to the right of the cat", [RELATION]),
        ("cup on table", [RELATION]),
        ("woman right behind the counter", [RELATION]),
        ("bike in front of the van", [RELATION]),
        ("front bike", [LOCATION]),
        ("white horse on the left next to a boy", [LOCATION, APPEARANCE, RELATION]),
        ("the batter", [OTHER_WORDS]),
        ("umpire", [OTHER_WORDS]),
    ],
)
def test_what_an_expression_goes_by(expression, kinds):
    assert word_types(expression) == kinds


@pytest.mark.parametrize(
    ("statement", "kinds"),
    [
        ("There are at least two dogs.", ["soft cardinality", "existential quantifier"]),
        ("Exactly three owls fly.", ["hard cardinality"]),
        ("An owl flies.", []),
        ("Every owl is asleep.", ["universal quantifier"]),
        ("No owl is asleep.", ["negation"]),
        ("The owl isn't asleep.", ["negation"]),
        ("One shows an owl and a dog.", ["coordination"]),
        ("A dog holds its toy.", ["coreference"]),
        ("The left image shows a dog.", []),
        ("The right-hand image shows a dog.", []),
        ("The dog on the left sleeps.", ["spatial relation"]),
        ("A dog is next to a cat.", ["spatial relation"]),
        ("The left image contains more dogs than the right.", ["spatial relation", "comparative"]),
        ("The images show the same number of dogs.", ["comparative"]),
        ("There are more than two dogs.", ["soft cardinality", "existential quantifier"]),
    ],
)
def test_what_a_statement_turns_on(statement, kinds):
    assert phenomena(statement) == kinds


def test_every_phenomenon_is_tried_above():
    assert list(PHENOMENA) == [
        "soft cardinality", "hard cardinality", "existential quantifier", "universal quantifier", "negation",
        "coordination", "coreference", "spatial relation", "comparative",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "kind"),
    [(("yes",), "yes/no"), (("Yes.", "no"), "yes/no"), (("2", "two"), "number"), (("owl",), "other"),
     (("yes", "maybe"), "other"), (("2 owls",), "other")],
)  # fmt: skip
def test_types_of_answers(answers, kind):
    assert answer_type(answers) == kind


def test_the_words_around_a_statement_are_not_the_statement():
    sample = make_sample("s", "reasoning", ["a", "b"], asked("reasoning", "An owl flies"), ["true"],
                         facts={"benchmark": "nlvr2"})  # fmt: skip
    assert slices_of(sample) == ["all"]  # "true or false?" is no coordination


def test_who_has_kinds_keeps_them():
    for sample in (
        make_sample(
            "s", "grounding", ["a"], asked("grounding", "left owl"), [Box(0, 0, 1, 1)], slice="refcoco+"
        ),
        make_sample("s", "vqa", ["a"], "is it?", ["yes"], slice="existence"),
        make_sample("s", "reasoning", ["a"], asked("reasoning", "No owl flies"), ["true"], slice="single"),
        make_sample("s", "vqa", ["a"], "is it?", ["yes"], facts={"benchmark": "gqa"}),
    ):
        assert slices_of(sample) == [sample.slice]
        assert "slices" not in prediction_of(sample, "yes")


def test_benchmarks_keep_theirs_and_get_those_of_their_words():
    facts = {"benchmark": "refcoco", "size": [10, 10]}
    sample = make_sample("s", "grounding", ["a"], asked("grounding", "left owl"), [Box(0, 0, 1, 1)],
                         slice="refcoco+", facts=facts)  # fmt: skip
    assert slices_of(sample) == ["refcoco+", LOCATION]


def test_every_kind_has_its_row_with_an_interval():
    def judged(module, number, task, question, answer, said, boxes=(), **facts):
        sample = make_sample(str(number), task, [f"{number}.png"], question, [answer], facts=facts or None)
        prediction = prediction_of(sample, said, boxes)
        module.judge(prediction, sample)
        return prediction

    box = (0.1, 0.1, 0.5, 0.5)
    expressions = ["left owl", "red owl", "right owl", "owl", "owl on the left", "green owl"]
    found = [
        judged(grounding, n, "grounding", asked("grounding", words), Box(*box), "", [box if n % 2 else (0, 0, 1, 1)],
               benchmark="refcoco", size=[100, 100])
        for n, words in enumerate(expressions)
    ]  # fmt: skip
    rows = {r.slice: r for r in grounding.score(found, model="m", split="val") if r.metric == "Acc@0.5"}
    assert {name: row.n for name, row in rows.items()} == {
        "all": 6,
        LOCATION: 3,
        APPEARANCE: 2,
        OTHER_WORDS: 1,
    }
    assert rows[LOCATION].value == 0.0 and rows[APPEARANCE].value == 1.0
    assert rows["all"].low < rows["all"].value < rows["all"].high

    said = [judged(vqa, n, "vqa", "?", a, "yes") for n, a in enumerate(["yes", "2", "owl", "no"])]
    rows = {r.slice: r for r in vqa.score(said, model="m", split="test")}
    assert {name: row.value for name, row in rows.items()} == {
        "all": 0.25,
        "yes/no": 0.5,
        "number": 0,
        "other": 0,
    }
    facts = {"benchmark": "nlvr2", "group": "g", "sentence": "s"}
    told = [
        judged(reasoning, n, "reasoning", asked("reasoning", words), "true", "true", **facts)
        for n, words in enumerate(["No owl flies", "An owl flies"])
    ]
    assert "negation" in {r.slice for r in reasoning.score(told, model="m", split="dev")}
