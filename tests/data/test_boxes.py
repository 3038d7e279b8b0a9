"""Boxes as numbers and as location tokens."""

import random

import pytest

from bifocal.data.boxes import (
    area,
    bins_to_box,
    box_to_bins,
    box_to_text,
    boxes_from_text,
    iou,
    without_boxes,
)
from bifocal.data.sample import Box


def test_iou_of_known_boxes():
    assert iou(Box(0, 0, 1, 1), Box(0, 0, 1, 1)) == 1
    assert iou(Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)) == 0
    assert iou(Box(0, 0, 0.5, 0.5), Box(0.25, 0, 0.75, 0.5)) == pytest.approx(1 / 3)
    assert iou(Box(0, 0, 1, 1), Box(0.25, 0.25, 0.75, 0.75)) == 0.25


def test_iou_of_empty_and_inverted_boxes_is_zero():
    assert iou(Box(0.5, 0.5, 0.5, 0.5), Box(0.5, 0.5, 0.5, 0.5)) == 0
    assert iou(Box(0.8, 0.8, 0.2, 0.2), Box(0, 0, 1, 1)) == 0
    assert area(Box(0.8, 0.8, 0.2, 0.2)) == 0


def test_bins_are_in_paligemma_order():
    assert box_to_bins(Box(0, 0.25, 0.5, 1), bins=5) == (1, 0, 4, 2)  # y1, x1, y2, x2
    assert box_to_text(Box(0, 0.25, 0.5, 1), bins=5) == "<loc0001><loc0000><loc0004><loc0002>"


@pytest.mark.parametrize("bins", [2, 64, 1024])
def test_bins_round_trip_exactly_and_boxes_within_half_a_bin(bins):
    rng = random.Random(0)
    for _ in range(200):
        indices = tuple(rng.randrange(bins) for _ in range(4))
        assert box_to_bins(bins_to_box(indices, bins), bins) == indices
        box = Box(*(rng.random() for _ in range(4)))
        back = bins_to_box(box_to_bins(box, bins), bins)
        assert max(abs(a - b) for a, b in zip(box, back)) <= 0.5 / (bins - 1) + 1e-12


def test_coordinates_outside_the_picture_are_refused():
    with pytest.raises(ValueError, match=r"leaves \[0, 1\]"):
        box_to_bins(Box(-0.1, 0, 1, 1))
    with pytest.raises(ValueError, match="between 0 and 63"):
        bins_to_box((0, 0, 64, 1))


def test_boxes_are_read_from_an_answer():
    first, second = Box(0, 0.25, 0.5, 1), Box(0.25, 0, 1, 0.75)
    text = f"here {box_to_text(first, 5)} and {box_to_text(second, 5)}."
    assert boxes_from_text(text, 5) == (first, second)
    assert without_boxes(text) == "here and ."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "an owl",
        "<loc0001><loc0002><loc0003>",  # three
        "<loc0001><loc0002> then <loc0003><loc0004>",  # not in a row
        "<loc0001><loc0001><loc0002><loc0064>",  # no such bin
        "<loc0009><loc0001><loc0002><loc0003>",  # bottom above top
    ],
)
def test_what_spells_no_box_gives_none(text):
    assert boxes_from_text(text) == ()
