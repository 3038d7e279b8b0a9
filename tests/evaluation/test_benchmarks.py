"""The benchmarks by their own rules: from predictions to rows, every number by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bifocal.config import UserError
from bifocal.data.sample import Box, Message, Picture, Sample
from bifocal.evaluation import grounding, reasoning, vqa
from bifocal.evaluation.asking import prediction_of
from bifocal.evaluation.compare import compare_task
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.statistics import interval


def asked(
    identity: str,
    said: str,
    answer: str,
    *,
    part: str = "all",
    references: tuple[str, ...] = (),
    **facts: Any,
) -> Prediction:
    messages = (Message("user", (Picture(0), "?")), Message("assistant", (answer,)))
    sample = Sample(identity, "vqa", part, (f"{identity}.jpg",), messages, references or (answer,), facts)
    prediction = prediction_of(sample, said)
    vqa.judge(prediction, sample)
    return prediction


def by_name(rows: list[Row]) -> dict[tuple[str, str, str], Row]:
    return {(row.slice, row.metric, row.variant): row for row in rows}


# ------------------------------------------------------------ VQAv2


def test_vqav2_by_answer_type_officially_and_sanely():
    predictions = [
        asked("1", "Yes", "yes", part="yes/no", references=("yes",) * 10, benchmark="vqav2"),
        asked("2", "no", "yes", part="yes/no", references=("yes",) * 7 + ("no",) * 3, benchmark="vqav2"),
        asked("3", "two", "2", part="number", references=("2",) * 9 + ("3",), benchmark="vqav2"),
        asked("4", "", "cat", part="other", references=("cat",) * 10, benchmark="vqav2"),
    ]
    rows = by_name(vqa.score(predictions, model="m", split="val2014"))
    assert rows["yes/no", "accuracy", "official"].value == pytest.approx((0 + 0.9) / 2)
    assert rows["yes/no", "accuracy", "sane"].value == pytest.approx((1 + 0.9) / 2)
    assert rows["number", "accuracy", "official"].value == 1.0
    assert rows["other", "accuracy", "official"].value == 0.0
    assert rows["other", "accuracy", "official"].unparsed == 1
    assert rows["all", "accuracy", "official"].value == pytest.approx(1.9 / 4)
    assert rows["all", "accuracy", "official"].n == 4
    # "yes" is the usual answer of its type: 1 and 1 there, and every other type has one question
    assert rows["all", "accuracy", "official"].baseline == 1.0
    assert rows["all", "accuracy", "official"].truncated is None  # nobody knows of another's answers


def test_questions_of_two_benchmarks_are_not_scored_together():
    predictions = [asked("1", "a", "a", benchmark="vqav2"), asked("2", "a", "a", benchmark="clevr")]
    with pytest.raises(UserError, match="from clevr, vqav2, which are scored by different rules"):
        vqa.score(predictions, model="m", split="val")


# ------------------------------------------------------------ GQA


def question(identity: str, said: str, answer: str, *, balanced: bool = True, **more: Any) -> Prediction:
    facts = {"entailed": [], "answer_group": None, "detailed": "", **more}
    return asked(identity, said, answer, benchmark="gqa", balanced=balanced, **facts)


def test_the_gqa_suite():
    choices = {"valid": ["red", "blue"], "plausible": ["red"]}
    predictions = [
        question("a", "red", "red", entailed=["a", "b", "c"], answer_group="colour", **choices),
        question("b", "no", "yes", balanced=False),
        question("c", "yes", "yes", balanced=False),
        question("d", "blue", "red", entailed=["b"], answer_group="colour", **choices),
        question("e", "Red", "red", **choices),
    ]
    rows = by_name(vqa.score(predictions, model="m", split="val"))
    official = {metric: row for (_, metric, variant), row in rows.items() if variant == "official"}
    assert official["accuracy"].value == pytest.approx(1 / 3) and official["accuracy"].n == 3
    assert rows["all", "accuracy", "sane"].value == pytest.approx(2 / 3)
    # only "a" is right and entails others: one of its two is right
    assert official["consistency"].value == 0.5 and official["consistency"].n == 1
    assert official["validity"].value == pytest.approx(2 / 3)
    assert official["plausibility"].value == pytest.approx(1 / 3)
    # red twice in truth, once said: (1 - 2)^2 / 2 over 100
    assert official["distribution"].value == pytest.approx(0.5 / 100) and official["distribution"].n == 2
    assert official["distribution"].low is None


def test_what_gqa_cannot_compute_has_no_value_and_is_not_zero():
    rows = vqa.score([question("a", "red", "red", entailed=["elsewhere"])], model="m", split="val")
    values = {row.metric: (row.value, row.n) for row in rows}
    for metric in ("consistency", "validity", "plausibility", "distribution"):
        assert values[metric] == (None, 0)
    assert values["accuracy"] == (1.0, 1)


def test_gqa_is_resampled_by_picture_and_not_by_the_group_of_its_answers():
    sides = ("red", "blue", "red", "red", "blue", "red")
    predictions = [question(str(i), said, "red", answer_group="colour") for i, said in enumerate(sides)]
    row = by_name(vqa.score(predictions, model="m", split="val"))["all", "accuracy", "official"]
    values = [said == "red" for said in sides]
    by_picture = interval(values, [p["pictures"] for p in predictions])
    assert (row.value, row.low, row.high) == pytest.approx(tuple(by_picture))
    assert row.low < row.value < row.high
    with pytest.raises(UserError, match=r"imported by an earlier version, .* import them again"):
        vqa.score([asked("1", "a", "a", benchmark="gqa", balanced=True, group="x")], model="m", split="val")


def test_gqa_s_usual_answer_is_that_of_the_balanced_questions():
    predictions = [
        question("a", "x", "red"),
        question("b", "x", "red"),
        question("c", "x", "blue"),
        *(question(f"u{i}", "x", "blue", balanced=False) for i in range(5)),
    ]
    rows = by_name(vqa.score(predictions, model="m", split="val"))
    assert rows["all", "accuracy", "official"].baseline == pytest.approx(2 / 3)


def test_two_models_on_gqa_have_mcnemar_s_test_on_the_balanced_questions():
    a, b = (
        [
            question("a", "red", "red"),
            question("b", said, "red"),
            question("c", said, "red"),
            question("u", said, "red", balanced=False),
        ]
        for said in ("red", "blue")
    )
    row = next(
        d for d in compare_task("vqa", "val", a, b) if (d.metric, d.variant) == ("accuracy", "official")
    )
    assert (row.n, row.a_only, row.b_only, row.p) == (3, 2, 0, 0.5)


# ------------------------------------------------------------ CLEVR


def test_clevr_by_type_and_family_a_question_in_both():
    predictions = [
        asked(str(i), said, answer, part=kind, benchmark="clevr", slices=[kind, f"family {family}"])
        for i, (said, answer, kind, family) in enumerate(
            [("2", "2", "count", 0), ("one, one: two", "2", "count", 1), ("no", "yes", "exist", 1)]
        )
    ]
    rows = by_name(vqa.score(predictions, model="m", split="val"))
    values = {
        name: rows[name, "accuracy", "official"].value for name in ("count", "exist", "family 0", "family 1")
    }
    assert values == {"count": 0.5, "exist": 0.0, "family 0": 1.0, "family 1": 0.0}
    assert rows["family 1", "accuracy", "sane"].value == 0.5


# ------------------------------------------------------------ NLVR2


def test_nlvr2_counts_a_sentence_as_consistent_if_every_pair_of_it_is_right():
    predictions = []
    for identity, said, label in (
        ("dev-1-0-0", "True", "true"),
        ("dev-1-1-0", "false", "false"),
        ("dev-1-0-1", "true", "false"),
        ("dev-1-1-1", "yes", "true"),
        ("dev-2-0-0", "maybe", "true"),
    ):
        split, number, _, sentence = identity.split("-")
        messages = (Message("user", (Picture(0), Picture(1), "?")), Message("assistant", (label,)))
        facts = {
            "benchmark": "nlvr2",
            "group": f"{split}-{number}",
            "sentence": f"{split}-{number}--{sentence}",
        }
        sample = Sample(identity, "reasoning", "all", ("a", "b"), messages, (label,), facts)
        prediction = prediction_of(sample, said)
        reasoning.judge(prediction, sample)
        predictions.append(prediction)
    rows = by_name(reasoning.score(predictions, model="m", split="dev"))
    assert rows["all", "accuracy", "official"].value == pytest.approx(2 / 5)
    assert rows["all", "accuracy", "sane"].value == pytest.approx(3 / 5)  # "yes" is true
    assert rows["all", "consistency", "official"].value == pytest.approx(1 / 3)
    assert rows["all", "consistency", "official"].n == 3
    assert rows["all", "accuracy", "official"].unparsed == 1
    assert rows["all", "accuracy", "official"].baseline == pytest.approx(3 / 5)


# ------------------------------------------------------------ RefCOCO


def test_an_overlap_of_exactly_half_in_pixels_is_right():
    size = [641, 479]
    true, said = (
        [edge / side for edge, side in zip(box, size * 2, strict=True)]
        for box in ((103, 57, 203, 157), (103, 57, 203, 107))
    )
    sample = Sample(
        "1", "grounding", "all", ("a.jpg",), (Message("user", ("?",)), Message("assistant", (Box(*true),))),
        facts={"benchmark": "refcoco", "size": size},
    )  # fmt: skip
    prediction = prediction_of(sample, "", [said])
    grounding.judge(prediction, sample)
    assert prediction["iou"] == 0.5 and prediction["correct"]
    (row, _) = grounding.score([prediction], model="m", split="testA")
    assert (row.metric, row.value, row.split) == ("Acc@0.5", 1.0, "testA")


def test_expressions_without_a_true_box_are_refused_by_name():
    sample = Sample(
        "x", "grounding", "all", ("a",), (Message("user", ("?",)), Message("assistant", ("there",)))
    )
    with pytest.raises(UserError, match="Sample x has no box in its answer"):
        grounding.judge(prediction_of(sample, "", []), sample)
