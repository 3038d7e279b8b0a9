"""Two models side by side: the right differences, the right tests, and no comparison of unlike things."""

import io

import pytest
from rich.console import Console

from bifocal.config import UserError
from bifocal.evaluation import captioning, evaluate, vqa
from bifocal.evaluation.compare import (
    compare,
    compare_models,
    compare_task,
    print_comparison,
)
from bifocal.evaluation.kept import load_predictions
from evaluation.fakes import FakeDataset, FakeVLM, read_caption


def _vqa(name: str, accuracy: float, count: int = 90) -> list[dict]:
    dataset = FakeDataset("vqa", count)
    return vqa.predict(FakeVLM(name, accuracy, dataset.shapes), dataset)


def test_a_difference_is_a_minus_b_with_a_paired_interval_and_mcnemar():
    a, b = _vqa("good", 0.95), _vqa("bad", 0.4)
    rows = {row.slice: row for row in compare_task("vqa", "test", a, b)}
    assert set(rows) == {"all", "count", "existence", "what"}
    row = rows["all"]
    right_a, right_b = ([p["correct"] for p in side] for side in (a, b))
    assert row.difference == pytest.approx((sum(right_a) - sum(right_b)) / 90)
    assert row.a_only == sum(x and not y for x, y in zip(right_a, right_b, strict=True))
    assert row.low > 0 and row.clear and row.p < 0.001


def test_a_model_against_itself_is_no_difference():
    a = _vqa("same", 0.6)
    for row in compare_task("vqa", "test", a, a):
        assert (row.difference, row.low, row.high, row.p) == (0.0, 0.0, 0.0, 1.0)
        assert not row.clear


def test_swapping_the_models_flips_the_signs():
    a, b = _vqa("one", 0.8), _vqa("two", 0.6)
    forth, back = compare_task("vqa", "test", a, b)[0], compare_task("vqa", "test", b, a)[0]
    assert (forth.difference, forth.low, forth.high) == pytest.approx(
        (-back.difference, -back.high, -back.low)
    )
    assert forth.p == back.p


def test_order_does_not_matter_but_the_samples_must_be_the_same():
    a, b = _vqa("one", 0.8), _vqa("two", 0.6)
    assert compare_task("vqa", "test", a, b[::-1]) == compare_task("vqa", "test", a, b)
    with pytest.raises(UserError, match=r"not about the same samples: 1 ids are in one only \(vqa/0\)"):
        compare_task("vqa", "test", a, b[1:])
    with pytest.raises(UserError, match="an id twice"):
        compare_task("vqa", "test", a, [*b, b[0]])


def test_corpus_metrics_have_paired_intervals_but_no_mcnemar():
    dataset = FakeDataset("captioning", 40)
    sides = [
        captioning.predict(FakeVLM(name, accuracy, dataset.shapes), dataset, reader=read_caption)
        for name, accuracy in (("good", 1.0), ("bad", 0.2))
    ]
    rows = {row.metric: row for row in compare_task("captioning", "test", *sides)}
    for metric in ("CIDEr-D", "BLEU-4", "objects_named"):
        assert rows[metric].difference == pytest.approx(rows[metric].a - rows[metric].b)
        assert rows[metric].low > 0
        assert rows[metric].p is None


def test_a_sample_that_failed_for_one_is_left_out_for_both():
    a, b = _vqa("one", 0.8), _vqa("two", 0.6)
    b[0] = {"id": b[0]["id"], "slice": b[0]["slice"], "failed": True}
    row = compare_task("vqa", "test", a, b)[0]
    assert (row.n, row.a_failed, row.b_failed) == (89, 0, 1)


def test_where_more_than_one_per_cent_failed_for_either_nothing_is_compared_and_it_is_said():
    a, b = _vqa("one", 0.8), _vqa("two", 0.6)
    for place in (0, 3):  # two questions of one kind
        b[place] = {"id": b[place]["id"], "slice": b[place]["slice"], "failed": True}
    for sides in ((a, b), (b, a)):
        rows = {row.slice: row for row in compare_task("vqa", "test", *sides)}
        for name in ("all", "count"):
            row = rows[name]
            assert (row.a, row.b, row.difference, row.low, row.a_only, row.p) == (None,) * 6
            assert not row.clear
        assert rows["what"].difference is not None
    comparison = compare({("vqa", "test"): a}, {("vqa", "test"): b}, name_a="A", name_b="B")
    (note,) = comparison.notes
    assert note.startswith("vqa on test: not compared, because 2 requests of B failed, more than 1% of all")
    assert comparison.to_json()["notes"] == (note,)
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=250))
    assert note in out.getvalue()


def test_where_every_request_of_one_failed_that_is_said():
    a, b = _vqa("one", 0.8, 6), _vqa("two", 0.6, 6)
    b = [{"id": p["id"], "slice": p["slice"], "failed": True} for p in b]
    comparison = compare({("vqa", "test"): a}, {("vqa", "test"): b}, name_a="A", name_b="B")
    assert comparison.differences == () and "6 requests of B failed" in comparison.notes[0]


def test_other_questions_under_the_same_ids_are_no_comparison():
    a, b = _vqa("one", 0.8, 6), _vqa("two", 0.6, 6)
    b[2]["question"] = "what else is there?"
    with pytest.raises(UserError, match="not about the same samples: vqa/2 is another question in each"):
        compare_task("vqa", "test", a, b)


def test_what_only_one_model_was_evaluated_on_is_said(tmp_path):
    good, bad = _vqa("good", 0.9), _vqa("bad", 0.5)
    comparison = compare(
        {("vqa", "test"): good, ("vqa", "test-novel-pairs"): good},
        {("vqa", "test"): bad},
        name_a="A",
        name_b="B",
    )
    assert comparison.only_a == ("vqa on test-novel-pairs",)
    assert comparison.only_b == ()
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=160))
    assert "Only A was evaluated on vqa on test-novel-pairs." in out.getvalue()
    assert "< 0.001" in out.getvalue() and "points" in out.getvalue()


def test_models_are_compared_from_their_directory(tmp_path):
    dataset = FakeDataset("vqa", 30)
    for name, accuracy in (("a", 0.9), ("b", 0.5)):
        evaluate(FakeVLM(name, accuracy, dataset.shapes), dataset, "vqa", directory=tmp_path)
    comparison = compare_models(tmp_path, "a", "b")
    assert {(d.task, d.split) for d in comparison.differences} == {
        ("vqa", "test")
    }  # blank ones are not taken
    assert comparison.to_json()["differences"][0]["n"] == 30
    with pytest.raises(UserError, match="no predictions in"):
        load_predictions(tmp_path / "predictions" / "nobody")


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match="'vqqa' is not a task"):
        compare_task("vqqa", "test", [], [])
