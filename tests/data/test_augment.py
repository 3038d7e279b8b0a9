"""Augmentation: what it may change, and what a picture's own texts forbid it to change."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from bifocal.data.augment import (
    FLIP_SHARE,
    Augment,
    augment,
    mirrored,
    speaks_of_colours,
    speaks_of_places,
    surroundings,
)
from bifocal.data.sample import Box

COUNT, SIDE = 48, 32
KINDS = ("geometry", "colour", "style", "background")


def drawings(colour: tuple[float, float, float] = (0.8, 0.3, 0.2), paper: float = 1.0) -> Tensor:
    """(COUNT, 3, SIDE, SIDE): a square of a colour with a dark outline on plain paper."""
    images = torch.full((COUNT, 3, SIDE, SIDE), paper)
    images[:, :, 8:24, 10:20] = 0.1
    images[:, :, 10:22, 12:18] = torch.tensor(colour)[:, None, None]
    return images


def varied(images: Tensor, settings: Augment, seed: int = 0, *, keep: bool = False) -> Tensor:
    kept = torch.full((len(images),), keep)
    generator = torch.Generator().manual_seed(seed)
    return augment(images, settings, generator, keep_colours_B=kept, keep_places_B=kept)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """(B,) bool: which pictures are others, beyond rounding."""
    return (before - after).abs().amax(dim=(1, 2, 3)) > 1e-5


def test_at_strength_0_the_very_pictures_come_back() -> None:
    images = torch.rand(4, 3, SIDE, SIDE)
    assert varied(images, Augment()) is images


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_other_pictures_of_the_same_shape_in_the_same_range(kind: str) -> None:
    images = drawings()
    before = images.clone()
    got = varied(images, Augment(**{kind: 1.0}))
    assert images.equal(before), "the pictures that were given were written into"
    assert got.shape == images.shape and got.dtype == images.dtype
    assert got.min() >= 0 and got.max() <= 1
    assert changed(images, got).float().mean() > 0.25
    assert len({picture.numpy().tobytes() for picture in got}) > COUNT / 4, "pictures are varied alike"


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    images, settings = drawings(), Augment(**{kind: 1.0})
    assert varied(images, settings, 3).equal(varied(images, settings, 3))
    assert not varied(images, settings, 3).equal(varied(images, settings, 4))


@pytest.mark.parametrize("kind", ["geometry", "colour"])
def test_half_the_strength_changes_less(kind: str) -> None:
    images = drawings()

    def change(strength: float) -> float:
        return (varied(images, Augment(**{kind: strength})) - images).abs().mean().item()

    assert 0 < change(0.1) < change(0.5) < change(1.0)


def test_white_paper_stays_white() -> None:
    paper = torch.ones(COUNT, 3, SIDE, SIDE)
    got = varied(paper, Augment(geometry=1, colour=1, style=1))
    torch.testing.assert_close(got, paper, rtol=0, atol=1e-5)  # colours are turned in float32


def test_greys_stay_grey() -> None:
    grey = torch.rand(COUNT, 1, SIDE, SIDE).expand(-1, 3, -1, -1)
    got = varied(grey, Augment(colour=1))
    # products of three numbers each in float32, and a gamma that is steep near black
    torch.testing.assert_close(got.amax(dim=1), got.amin(dim=1), rtol=0, atol=1e-3)


def test_colours_that_are_spoken_of_keep_their_hue() -> None:
    red = torch.zeros(COUNT, 3, SIDE, SIDE)
    red[:, 0] = 1.0

    def apart(images: Tensor) -> float:
        return (images[:, 1] - images[:, 2]).abs().max().item()

    # green and blue of a red are alike, whatever contrast and gamma do
    assert apart(varied(red, Augment(colour=1), keep=True)) < 1e-3 < apart(varied(red, Augment(colour=1)))


def test_colours_that_are_spoken_of_are_neither_painted_over_nor_made_fewer() -> None:
    plain = torch.full((COUNT, 3, SIDE, SIDE), 0.0) + torch.tensor([0.6, 0.3, 0.45])[:, None, None]
    settings = Augment(style=1, background=1)
    assert changed(plain, varied(plain, settings)).float().mean() > 0.4
    assert not changed(plain, varied(plain, settings, keep=True)).any()


def test_places_that_are_spoken_of_are_kept() -> None:
    images = drawings()
    keep = torch.arange(COUNT) % 2 == 0
    generator = torch.Generator().manual_seed(0)
    got = augment(images, Augment(geometry=1), generator, keep_colours_B=keep, keep_places_B=keep)
    assert got[keep].equal(images[keep])
    assert changed(images, got)[~keep].all()


def test_what_comes_in_from_outside_has_the_corners_colour() -> None:
    got = varied(drawings(paper=0.4), Augment(geometry=1))
    border = torch.cat([got[:, :, [0, -1], :].flatten(2), got[:, :, :, [0, -1]].flatten(2)], dim=2)
    torch.testing.assert_close(border, torch.full_like(border, 0.4), rtol=0, atol=1e-6)


def test_surroundings_end_where_something_is_drawn() -> None:
    images = torch.full((1, 3, SIDE, SIDE), 0.9)
    images[:, :, 8:24, 8:24] = 0.2
    images[:, :, 12:20, 12:20] = 0.9  # the inside of a ring
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    outside[8:24, 8:24] = False
    assert surroundings(images)[0, 0].equal(outside)
    photograph = images.clone()
    photograph[:, :, 0, 0] = 0.5  # its corners differ
    assert not surroundings(photograph).any()


def test_another_background_leaves_the_drawing_alone() -> None:
    images = drawings()
    got = varied(images, Augment(background=1))
    drawn = (images[:1] < 1).all(dim=1, keepdim=True).expand_as(images)
    assert got[drawn].equal(images[drawn])


@pytest.mark.parametrize(
    ("text", "colours", "places"),
    [
        ("an owl", False, False),
        ("a red heart", True, False),
        ("a small owl", False, True),
        ("an owl at the top left of a grey tile", True, True),
        ("a redwood with pizza toppings", False, False),
        ("the leftmost owl", False, True),
        ("Blue books", True, False),
    ],
)
def test_what_a_text_speaks_of(text: str, colours: bool, places: bool) -> None:
    assert (speaks_of_colours([text]), speaks_of_places([text])) == (colours, places)
    assert (speaks_of_colours(["fog", text]), speaks_of_places(["fog", text])) == (colours, places)
    assert not speaks_of_colours([]) and not speaks_of_places([])


def test_mirror_images_have_mirrored_words_and_boxes() -> None:
    picture, texts, boxes = tiny.picture(0), ["an owl left of a fox", "a cat"], [Box(0.1, 0.2, 0.4, 0.9)]
    rng = random.Random(0)
    made = 0
    for _ in range(400):
        pixels, words, carried = mirrored(picture, texts, boxes, 1.0, rng)
        if np.array_equal(pixels, picture):
            assert (list(words), list(carried)) == (texts, boxes)
            continue
        made += 1
        assert np.array_equal(pixels, picture[:, ::-1])
        assert list(words) == ["an owl right of a fox", "a cat"]
        assert carried[0] == pytest.approx(Box(0.6, 0.2, 0.9, 0.9))
    assert made / 400 == pytest.approx(FLIP_SHARE, abs=0.1)  # four deviations of 400 draws


@pytest.mark.parametrize(("text", "strength"), [("an owl right above a fox", 1.0), ("an owl", 0.0)])
def test_there_is_no_mirror_image(text: str, strength: float) -> None:
    picture, rng = tiny.picture(0), random.Random(0)
    for _ in range(40):
        pixels, words, _ = mirrored(picture, [text], [], strength, rng)
        assert pixels is picture and list(words) == [text]


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_a_strength_that_cannot_be_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"augment\.style is a strength from 0 to 1"):
        Augment(style=strength)
