"""What the page of samples is given: rows with both answers and who is right, pictures as large as fits."""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bifocal.data.formats.base import make_sample
from bifocal.evaluation import captioning, vqa
from bifocal.evaluation import sample_data as module
from bifocal.evaluation.asking import prediction_of
from bifocal.evaluation.results import Prediction
from bifocal.evaluation.sample_data import SIDES, sample_data, thumbnail, thumbnails
from evaluation.fakes import FakeDataset, FakeVLM, TwoModels, read_caption

NAMES = ["block", "id", "question", "truth", "also", "slices", "pictures", "boxes", "answers"]


@pytest.fixture(scope="module")
def two() -> TwoModels:
    return TwoModels()


def rows_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(NAMES, row, strict=True)) for row in data["rows"]]


def test_every_sample_has_both_answers_and_who_is_right(two):
    data, _, _ = sample_data({"good": two.a, "bad": two.b})
    rows = rows_of(data)
    assert data["sides"] == ["good", "bad"] and data["blocks"] == ["vqa", "grounding", "reasoning"]
    assert len(rows) == 90
    for row, p, q in zip(rows[:30], two.a["vqa", "test"], two.b["vqa", "test"], strict=True):
        assert (row["id"], row["question"], row["truth"]) == (p["id"], p["question"], p["answer"])
        assert [answer[0] for answer in row["answers"]] == [p["prediction"], q["prediction"]]
        assert [answer[1] for answer in row["answers"]] == [int(p["correct"]), int(q["correct"])]
        assert [data["slices"][number] for number in row["slices"]] == [p["slice"]]


def test_the_order_of_the_other_s_samples_does_not_matter(two):
    turned = {key: some[::-1] for key, some in two.b.items()}
    assert sample_data({"a": two.a, "b": turned}) == sample_data({"a": two.a, "b": two.b})


def test_boxes_are_true_and_predicted_ones_with_their_overlap(two):
    rows = rows_of(sample_data({"good": two.a})[0])[30:60]
    for row, p in zip(rows, two.a["grounding", "test"], strict=True):
        assert row["boxes"] == [pytest.approx(p["true_boxes"][0], abs=1e-4)]
        _, verdict, boxes, note, flags = row["answers"][0]
        assert len(boxes) == len(p["boxes"]) and verdict == int(p["correct"])
        assert note == (f"IoU {p['iou']:.3f}" if boxes else "no box")
        assert ("unparsed" in flags) == (not boxes)


def vqav2(said: str, number: int, references: list[str]) -> Prediction:
    sample = make_sample(str(number), "vqa", ["a"], "?", ["yes"], slice="yes/no", references=references,
                         facts={"benchmark": "vqav2"})  # fmt: skip
    prediction = prediction_of(sample, said)
    vqa.judge(prediction, sample)
    return prediction


def test_a_verdict_is_that_of_the_benchmark_s_own_score():
    people = ["yes"] * 9 + ["no"]
    predictions = [vqav2("yes", 0, people), vqav2("no", 1, people)]
    assert predictions[1]["correct"]  # one of ten said so, for which VQA gives 0.3
    rows = rows_of(sample_data({"m": {("vqa", "val"): predictions}})[0])
    assert [row["answers"][0][1] for row in rows] == [1, 0]
    assert rows[1]["answers"][0][3] == "scores 0.3"
    assert rows[0]["also"] == ["no"]


def test_what_failed_was_cut_off_or_is_not_judged_says_so(two):
    a = [dict(p) for p in two.a["vqa", "test"]]
    a[0] = {key: a[0][key] for key in ("id", "pictures", "slice", "question", "answer")} | {
        "failed": True,
        "failure": "connection reset",
    }
    a[1]["finish_reason"] = "length"
    rows = rows_of(sample_data({"m": {("vqa", "test"): a}})[0])
    assert rows[0]["answers"][0] == ["", None, [], "connection reset", ["failed"]]
    assert rows[1]["answers"][0][4] == ["cut off"]


def test_a_caption_is_judged_where_it_is_known_what_is_there():
    captions = FakeDataset("captioning", 4)
    said = captioning.predict(FakeVLM("m", 1.0, captions.shapes), captions, reader=read_caption)

    def verdicts() -> list[int | None]:
        rows = rows_of(sample_data({"m": {("captioning", "test"): said}})[0])
        return [row["answers"][0][1] for row in rows]

    assert verdicts() == [1] * 4
    for caption in said:
        del caption["correct"]  # as those of other data are
    assert verdicts() == [None] * 4


def test_more_samples_than_anyone_reads_are_thinned_out_evenly_and_counted(two):
    data, keys, left_out = sample_data({"a": two.a, "b": two.b}, most=10)
    assert (len(data["rows"]), left_out) == (10, 80)
    assert {row["block"] for row in rows_of(data)} == {0, 1, 2}
    assert sorted({n for row in rows_of(data) for n in row["pictures"]}) == list(range(len(keys)))


# ------------------------------------------------------------ thumbnails


def noise(key: str) -> np.ndarray:
    return np.random.default_rng(int(key)).integers(0, 255, (240, 320, 3), dtype=np.uint8)


def test_a_thumbnail_keeps_the_shape_and_nothing_is_enlarged():
    bytes_, width, height = thumbnail(noise("0"), 96)
    with Image.open(io.BytesIO(base64.b64decode(bytes_))) as image:
        assert image.format == "WEBP" and image.size == (width, height) == (96, 72)
    assert thumbnail(np.zeros((20, 10, 3), np.uint8), 96)[1:] == (10, 20)


def test_pictures_are_as_large_as_fits_together():
    keys = [str(number) for number in range(20)]
    sizes = []
    for most in (10_000_000, 130_000, 40_000):
        shots = thumbnails(keys, noise, most)
        assert sum(len(shot[0]) for shot in shots) <= most
        sizes.append(shots[0][1])
    assert sizes[0] == SIDES[0] > sizes[1] > sizes[2] >= SIDES[-1]


def test_five_thousand_samples_use_what_they_may_and_no_more(monkeypatch):
    pictures = [noise(str(number)) for number in range(5)]  # noise takes more bytes than any photograph
    numbers = {id(picture): number for number, picture in enumerate(pictures)}
    made = functools.lru_cache(lambda number, side: thumbnail(pictures[number], side))
    monkeypatch.setattr(module, "thumbnail", lambda picture, side: made(numbers[id(picture)], side))
    shots = thumbnails(
        [str(number) for number in range(5000)], lambda key: pictures[int(key) % 5], 23_000_000
    )
    assert 10_000_000 < sum(len(shot[0]) for shot in shots) < 23_000_000
