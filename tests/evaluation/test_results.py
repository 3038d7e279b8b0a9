"""Rows of results: their one shape, their files, and what people see of them."""

import json
import math

import pytest

from bifocal.config import UserError
from bifocal.evaluation import results
from bifocal.evaluation.results import Row

FIELDS = [
    "model", "task", "split", "slice", "metric", "variant", "value", "low", "high", "n",
    "baseline", "blank", "unparsed", "truncated", "failed",
]  # fmt: skip


def _row(**changes: object) -> Row:
    values = {
        "model": "vlm",
        "task": "vqa",
        "split": "test",
        "slice": "all",
        "metric": "accuracy",
        "variant": "",
    }
    return Row(**(values | {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10} | changes))  # type: ignore[arg-type]


def test_a_row_has_exactly_the_fields_of_the_contract_in_order():
    assert list(_row().to_json()) == FIELDS


def test_numbers_that_are_not_finite_become_null(tmp_path):
    row = _row(low=math.nan, high=math.inf)
    results.write_results(tmp_path / "results.json", [row])
    (written,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert written["low"] is None and written["high"] is None and written["value"] == 0.5


def test_rows_survive_their_file(tmp_path):
    rows = [_row(), _row(slice="count", blank=0.25, unparsed=3)]
    results.write_results(tmp_path / "deep" / "results.json", rows)
    assert results.read_results(tmp_path / "deep" / "results.json") == rows
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "no list called"), ('{"results": [{"model": "a"}]}', "lacks")],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        results.read_results(path)
    assert str(path) in str(caught.value)


def test_a_newer_row_replaces_the_one_about_the_same_thing():
    old, other, new = _row(), _row(slice="count"), _row(value=0.9, n=20)
    assert results.merge_rows([old, other], [new]) == [new, other]


def test_predictions_survive_their_file_and_its_name_says_what_they_are(tmp_path):
    path = results.prediction_path(tmp_path, "clip", "zero-shot", "test", blank=True)
    assert path == tmp_path / "predictions" / "clip" / "zero-shot.test.blank.jsonl"
    predictions = [{"id": "a", "prediction": "Eule ü"}, {"id": "b", "boxes": [[0.1, 0.2, 0.3, 0.4]]}]
    results.write_predictions(path, predictions)
    assert results.read_predictions(path) == predictions


def test_predictions_about_a_folder_have_their_place_and_a_split_may_be_called_anything(tmp_path):
    path = results.prediction_path(tmp_path, "vlm", "vqa", "v1.0/dev", place="pets")
    assert path == tmp_path / "predictions" / "vlm" / "pets" / "vqa.v1-0-dev.jsonl"


def test_stamps_stand_beside_the_rows_and_survive_their_file(tmp_path):
    path = tmp_path / "results.json"
    results.write_results(path, [_row()])
    assert list(json.loads(path.read_text())) == ["results"] and results.read_about(path) == []
    results.write_results(path, [_row()], [{"model": "vlm", "task": "vqa"}, {"model": "clip"}])
    assert list(json.loads(path.read_text())) == ["results", "about"]
    assert results.read_about(path) == [{"model": "vlm", "task": "vqa"}, {"model": "clip"}]
    assert results.read_results(path) == [_row()]


def test_a_broken_prediction_is_named_with_its_line(tmp_path):
    path = tmp_path / "vqa.test.jsonl"
    path.write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(UserError, match=r"Line 2 of .*vqa\.test\.jsonl"):
        results.read_predictions(path)
    path.write_text('{"id": 1}\n{"answer": 2}\n')
    with pytest.raises(UserError, match="entry 2, is not a prediction"):
        results.read_predictions(path)


@pytest.mark.parametrize(
    ("metric", "value", "sign", "text"),
    [
        ("accuracy", 0.6543, False, "65.4%"),
        ("accuracy", 0.1, True, "+10.0 points"),
        ("accuracy", -0.1, True, "-10.0 points"),
        ("psnr", 21.34, False, "21.3 dB"),
        ("CIDEr-D", 1.2345, False, "1.234"),
        ("perplexity", 812.345, False, "812.3"),
        ("accuracy", None, False, "–"),
    ],
)
def test_scores_are_written_for_people(metric, value, sign, text):
    assert results.format_value(metric, value, sign=sign) == text
