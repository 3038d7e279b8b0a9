"""Boxes as text in five dialects: there and back, as published, and never by guessing."""

import random

import pytest
import torch
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor
from transformers.models.kosmos2.processing_kosmos2 import (
    coordinate_to_patch_index,
    patch_index_to_coordinate,
)

from bifocal.data.dialects import DIALECTS, Dialect
from bifocal.data.sample import Box

EVERY = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


def _box(rng: random.Random, least: float = 0.0) -> Box:
    while True:
        (x1, x2), (y1, y2) = sorted((rng.random(), rng.random())), sorted((rng.random(), rng.random()))
        if x2 - x1 >= least and y2 - y1 >= least:
            return Box(x1, y1, x2, y2)


def _moved(dialect: Dialect, box: Box) -> float:
    (back,) = dialect.read(dialect.write(box, "an owl"))
    return max(abs(a - b) for a, b in zip(box, back, strict=True))


@EVERY
def test_a_box_comes_back_within_half_a_bin(dialect):
    rng = random.Random(0)
    # below two cells of Kosmos-2's grid a box may lie in one of them
    least = 2 / 32 if dialect.name == "kosmos-2" else 0.0
    boxes = [Box(0.0, 0.0, 1.0, 1.0), Box(0.25, 0.5, 0.75, 1.0), *(_box(rng, least) for _ in range(2000))]
    assert max(_moved(dialect, box) for box in boxes) <= dialect.half_bin + 1e-9


def test_a_thin_box_comes_back_from_kosmos_within_a_whole_cell():
    rng = random.Random(0)
    kosmos = DIALECTS["kosmos-2"]
    boxes = [Box(0.5, 0.5, 0.5, 0.5), Box(1.0, 1.0, 1.0, 1.0), *(_box(rng) for _ in range(2000))]
    assert max(_moved(kosmos, box) for box in boxes) <= 2 * kosmos.half_bin + 1e-9


@EVERY
def test_several_boxes_are_read_in_order_between_words(dialect):
    boxes = [Box(0.1, 0.2, 0.5, 0.6), Box(0.3, 0.1, 0.9, 0.4)]
    text = "here: " + " and ".join(dialect.write(box, "an owl") for box in boxes) + "."
    read = dialect.read(text)
    assert len(read) == 2 and read[0].x1 < read[1].x1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", "an owl [0.100,0.200,0.500,0.600]"),
        ("paligemma", "<loc0205><loc0102><loc0614><loc0512> an owl"),
        ("qwen-vl", "<ref>an owl</ref><box>(100,200),(500,600)</box>"),
        ("florence-2", "an owl<loc_100><loc_200><loc_500><loc_600>"),
        ("kosmos-2", "<phrase>an owl</phrase><object><patch_index_0195><patch_index_0623></object>"),
    ],
)
def test_what_is_written(name, text):
    assert DIALECTS[name].write(Box(0.1, 0.2, 0.5, 0.6), "an owl") == text


def test_kosmos_is_that_of_transformers():
    rng = random.Random(1)
    for _ in range(500):
        box = _box(rng, 1e-3)
        first, last = coordinate_to_patch_index(box, 32)
        text = f"<object><patch_index_{first:04d}><patch_index_{last:04d}></object>"
        assert DIALECTS["kosmos-2"].write(box, "").endswith(text)
        assert DIALECTS["kosmos-2"].read(text)[0] == pytest.approx(patch_index_to_coordinate(first, last, 32))


def test_florence_is_that_of_transformers():
    side = 1_000_000  # it works in whole pixels, so the picture is large
    quantizer = Florence2PostProcessor.__new__(
        Florence2PostProcessor
    )  # without the tokenizer, which it needs not
    quantizer.quantize_bins = (1000, 1000)
    rng = random.Random(1)
    pixels = torch.tensor(
        [[round(edge * side) for edge in _box(rng)] for _ in range(500)], dtype=torch.float64
    )
    bins = quantizer.quantize(pixels, (side, side))
    for box, indices, back in zip(
        pixels.tolist(), bins.tolist(), quantizer.dequantize(bins, (side, side)).tolist(), strict=True
    ):
        text = "".join(f"<loc_{index}>" for index in indices)
        assert DIALECTS["florence-2"].write(Box(*(edge / side for edge in box)), "") == text
        assert DIALECTS["florence-2"].read(text)[0] == pytest.approx([edge / side for edge in back])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", "[10, 20, 50, 60]"),  # pixels, or parts of a thousand: nobody knows
        ("plain", "[0.5,0.2,0.1,0.6]"),  # inside out
        ("plain", "[0.1,0.2,0.5]"),
        ("plain", "[-0.1,0.2,0.5,0.6]"),
        ("paligemma", "<loc0205><loc0102><loc0614>"),
        ("paligemma", "<loc0205><loc0102><loc1024><loc0512>"),
        ("qwen-vl", "<box>(100,200),(500,1001)</box>"),
        ("qwen-vl", "(100,200),(500,600)"),
        ("florence-2", "<loc_500><loc_200><loc_100><loc_600>"),
        ("florence-2", "<loc_100><loc_200><loc_500><loc_1000>"),
        ("kosmos-2", "<patch_index_0195>"),
        ("kosmos-2", "<patch_index_0195><patch_index_1024>"),
    ],
)
def test_what_is_no_box_of_the_dialect_is_none(name, text):
    assert DIALECTS[name].read(text) == ()


@EVERY
def test_no_dialect_reads_another(dialect):
    box = Box(0.1, 0.2, 0.5, 0.6)
    for other in DIALECTS.values():
        if other is not dialect:
            assert dialect.read(other.write(box, "an owl")) == ()
