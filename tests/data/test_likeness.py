"""Pictures that are the same or nearly, and pictures that are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from bifocal.data.likeness import Gallery, equal_pairs, look_at, near_pairs
from bifocal.data.scenes import World, WorldSettings


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    """120 different scenes, many of one small drawing on a plain ground: the hardest case for a hash."""
    world = World(WorldSettings())
    return [world.render(world.single("train", number)) for number in range(120)]


def as_jpeg(picture: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=80)
    return np.asarray(Image.open(buffer))


CHANGES = {
    "saved as JPEG": as_jpeg,
    "scaled": lambda picture: np.asarray(Image.fromarray(picture).resize((150, 150))),
    "brighter": lambda picture: np.asarray(ImageEnhance.Brightness(Image.fromarray(picture)).enhance(1.03)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_found_and_different_pictures_are_not(scenes, change):
    looks = [look_at(picture) for picture in scenes] + [look_at(change(picture)) for picture in scenes[:40]]
    found = list(near_pairs(looks))
    copies = {(one, 120 + one) for one in range(40)}
    assert len(copies & set(found)) >= 38  # a drawing of few lines may lose more than six bits
    assert set(found) <= copies


def test_equal_pixels_are_equal_whatever_the_file(scenes):
    looks = [look_at(picture) for picture in (*scenes[:5], scenes[2].copy(), scenes[2].copy())]
    assert list(equal_pairs(looks)) == [(2, 5), (2, 6)]
    assert list(near_pairs(looks)) == []


def test_pictures_of_another_shape_are_not_equal():
    looks = [look_at(np.zeros(shape, np.uint8)) for shape in ((4, 9, 3), (9, 4, 3))]
    assert list(equal_pairs(looks)) == []


def test_all_pairs_within_six_bits_are_found():
    # against comparing everything with everything
    rng = np.random.default_rng(0)
    small = np.zeros((16, 16, 3), np.uint8)
    base = rng.integers(0, 2**63, 40)
    looks = []
    for number, bits in enumerate(np.repeat(base, 4)):
        flips = sum(1 << int(place) for place in rng.choice(64, rng.integers(0, 5), replace=False))
        look = look_at(np.full((4, 4, 3), number, np.uint8))
        looks.append(look._replace(bits=int(bits) ^ flips, small=small))
    expected = {
        (one, other)
        for one in range(len(looks))
        for other in range(one + 1, len(looks))
        if (looks[one].bits ^ looks[other].bits).bit_count() <= 6
    }
    assert set(near_pairs(looks)) == expected and len(expected) > 100


def test_a_gallery_finds_what_all_pairs_would(scenes):
    looks = [look_at(picture) for picture in scenes[:60]]
    asked = [look_at(as_jpeg(picture)) for picture in scenes[:20]] + looks[50:]
    gallery = Gallery(looks)
    for number, look in enumerate(asked):
        together = [*looks, look]
        near = {one for one, other in near_pairs(together) if other == len(looks)}
        same = {one for one, other in enumerate(looks) if other.pixels == look.pixels}
        assert set(gallery.alike(look)) == near | same, number
    assert Gallery([]).alike(looks[0]) == []
