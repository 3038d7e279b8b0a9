"""Controls: shuffled pictures are others', and the share of a test that was trained on has its interval."""

from __future__ import annotations

import numpy as np
import pytest

from bifocal.data.overlap import Found, Match
from bifocal.evaluation import evaluate
from bifocal.evaluation.controls import SHUFFLED, ShuffledPictures, as_shuffled, contamination_rows
from evaluation.fakes import FakeDataset, FakeVLM

NOTHING, NEARLY, WHOLLY = Found(False, False), Found(False, True), Found(True, True)


def test_every_picture_is_that_of_another_and_all_are_shown():
    dataset = FakeDataset("reasoning", 30)  # pairs among them
    shuffled = ShuffledPictures(dataset)
    keys = sorted({key for sample in dataset.samples for key in sample.pictures})
    shown = {key: shuffled.picture(key).tobytes() for key in keys}
    own = {key: dataset.picture(key).tobytes() for key in keys}
    assert sorted(shown.values()) == sorted(own.values())
    assert all(shuffled.stamp(key) != dataset.stamp(key) for key in keys)
    again = ShuffledPictures(dataset)
    assert all(again.picture(key).tobytes() == shown[key] for key in keys)
    # a fake may draw two scenes alike; most are not
    assert np.mean([shown[key] != own[key] for key in keys]) > 0.9


def test_a_model_that_looks_falls_with_shuffled_pictures():
    dataset = FakeDataset("vqa", 120)
    model = FakeVLM("m", 1.0, dataset.shapes)
    own = evaluate(model, dataset, "vqa", blank=False)
    others = as_shuffled(evaluate(model, ShuffledPictures(dataset), "vqa", blank=False))
    assert own[0].value == 1.0
    assert others[0].value < 0.75 and others[0].high < 1.0
    assert others[0].variant == f"answers=normalized, {SHUFFLED}"
    assert (others[0].baseline, others[0].blank) == (None, None)
    assert not {row.key for row in own} & {row.key for row in others}


def test_shares_of_a_test_in_training_are_rows_with_intervals():
    dataset = FakeDataset("vqa", 12)  # three questions on each of four pictures
    matches = [
        Match(WHOLLY if i < 3 else NEARLY if i < 6 else NOTHING, WHOLLY if i % 2 else NOTHING, NOTHING)
        for i in range(12)
    ]
    rows = {(r.metric, r.variant): r for r in contamination_rows(dataset, matches, model="m", task="vqa")}
    assert rows["pictures_in_training", "exact"].value == pytest.approx(3 / 12)
    near = rows["pictures_in_training", "near"]
    assert (near.value, near.n, near.slice, near.split) == (0.5, 12, "all", "test")
    assert near.low < 0.5 < near.high
    assert rows["texts_in_training", "near"].value == 0.5
    assert rows["samples_in_training", "exact"].value == 0.0


def test_where_all_ask_alike_there_is_no_share_of_texts():
    dataset = FakeDataset("zero-shot", 4)
    rows = contamination_rows(dataset, [Match(NOTHING, None, None)] * 4, model="m", task="zero-shot")
    assert {row.metric for row in rows} == {"pictures_in_training"}
