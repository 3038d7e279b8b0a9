"""Which patches a step looks at: nothing with detail is lost, and what stands for flat ones counts for all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bifocal.data.patches import (
    FLAT_KEPT,
    GROUPS,
    by_detail,
    detailed,
    drop_patches,
    inside,
    keep_patches,
    looked_at,
    pictures_in,
)
from bifocal.data.sample import Box
from bifocal.models.vision import VisionConfig, VisionTransformer

PATCH, SIDE = 8, 4


def pictures(count: int, seed: int = 0) -> Tensor:
    """Flat pictures of one tint, with noise in picture i's first i patches (modulo all of them and one more)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((count, 3, SIDE * PATCH, SIDE * PATCH), 0.8)
    for number, image in enumerate(images):
        for place in range(number % (SIDE * SIDE + 1)):
            row, column = divmod(place, SIDE)
            patch = image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
            patch.copy_(torch.rand(patch.shape, generator=generator))
    return images


def test_detail_is_where_something_varies() -> None:
    found = detailed(pictures(SIDE * SIDE + 1), PATCH)
    for number, row in enumerate(found):
        assert row.tolist() == [True] * number + [False] * (SIDE * SIDE - number)


def test_kept_patches_stand_for_all() -> None:
    images = pictures(40)
    images = images[by_detail(detailed(images, PATCH))]
    full = detailed(images, PATCH)
    kept = keep_patches(detailed(images, PATCH), torch.Generator().manual_seed(1))
    assert len(kept) == GROUPS
    assert sum(pictures_in(kept)) == len(images)
    assert kept[0].places.shape[1] < kept[-1].places.shape[1]
    start = 0
    for group in kept:
        rows = full[start : start + len(group.places)]
        start += len(rows)
        chosen = rows.gather(1, group.places)
        for row, places, took, weights in zip(rows, group.places, chosen, group.weights, strict=True):
            assert len(set(places.tolist())) == len(places)
            assert weights.sum().item() == pytest.approx(SIDE * SIDE, abs=1e-4)
            assert weights[took].sum().item() == pytest.approx(row.sum().item(), abs=1e-4)
            if row.sum() <= group.places.shape[1] - FLAT_KEPT:
                assert took.sum() == row.sum(), "a patch with detail was dropped although there was room"


def test_a_picture_without_flat_patches_keeps_all_of_them() -> None:
    (only, *_) = keep_patches(
        detailed(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), PATCH)
    )
    assert sorted(only.places[0].tolist()) == list(range(SIDE * SIDE))
    assert only.weights.eq(1).all()


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_looking_at_detail_is_looking_at_all_where_flat_patches_are_alike(pooling: str) -> None:
    # without positions the flat patches of a picture are equal, and two of them can stand for all exactly
    torch.manual_seed(0)
    config = VisionConfig(picture_size=32, patch_size=PATCH, width=32, layers=2, heads=2, pooling=pooling)  # type: ignore[arg-type]
    tower = VisionTransformer(config).double()
    with torch.no_grad():
        tower.embeddings.position_embedding.weight.zero_()
    images = pictures(3 * GROUPS).double()
    images = images[by_detail(detailed(images, PATCH))]
    kept = keep_patches(detailed(images, PATCH), torch.Generator().manual_seed(0))
    some = [len(group.places[0]) < SIDE * SIDE for group in kept]
    assert all(some), "nothing was left out, so this would prove nothing"
    torch.testing.assert_close(tower.pool(tower.look(images, kept)), tower(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "class", "attention"])
def test_a_dropped_patch_is_as_if_it_had_never_been(pooling: str) -> None:
    torch.manual_seed(0)
    config = VisionConfig(picture_size=32, patch_size=PATCH, width=32, layers=2, heads=2, pooling=pooling)  # type: ignore[arg-type]
    tower = VisionTransformer(config).double()
    images = torch.rand(3, 3, 32, 32, dtype=torch.double)
    kept = drop_patches(3, SIDE * SIDE, 0.5, torch.Generator().manual_seed(0))
    assert kept[0].places.shape == (3, 8)
    got = tower.pool(tower.look(images, kept))
    for image, places, row in zip(images, kept[0].places, got, strict=True):
        x = tower.pre_layrnorm(tower.embed(image[None])[:, [0, *(places + 1).tolist()]])
        for block in tower.encoder.layers:
            x = block(x)
        if pooling == "attention":
            wanted = tower.head(tower.post_layernorm(x))
        else:
            wanted = tower.post_layernorm(x[:, 0] if pooling == "class" else x[:, 1:].mean(dim=1))
        torch.testing.assert_close(row, wanted[0], rtol=1e-9, atol=1e-9)


def test_patch_dropout_keeps_at_least_one_patch() -> None:
    (kept,) = drop_patches(5, 4, 0.99)
    assert kept.places.shape == (5, 1)
    assert looked_at([kept], 4).sum(dim=1).eq(1).all()


def test_the_same_seed_keeps_the_same_patches() -> None:
    images = pictures(8)
    one, two, other = (
        keep_patches(detailed(images, PATCH), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert all(a.places.equal(b.places) for a, b in zip(one, two, strict=True))
    assert not all(a.places.equal(b.places) for a, b in zip(one, other, strict=True))


def test_how_much_of_each_patch_lies_in_a_box_is_what_counting_pixels_says() -> None:
    fine = 400  # pixels a side of the drawing that is counted
    boxes = [Box(0.1, 0.2, 0.65, 0.9), Box(0.0, 0.0, 1.0, 1.0), Box(0.26, 0.51, 0.49, 0.74)]
    got = inside(boxes, SIDE)
    for box, row in zip(boxes, got, strict=True):
        painted = torch.zeros(fine, fine)
        left, top, right, bottom = (round(value * fine) for value in box)
        painted[top:bottom, left:right] = 1
        step = fine // SIDE
        counted = painted.reshape(SIDE, step, SIDE, step).mean(dim=(1, 3)).flatten()
        torch.testing.assert_close(row, counted, rtol=0, atol=1e-5)


def test_a_region_is_the_weighed_mean_of_its_patches() -> None:
    torch.manual_seed(0)
    tower = VisionTransformer(
        VisionConfig(picture_size=32, patch_size=PATCH, width=32, layers=2, heads=2)
    ).double()
    images = pictures(3).double()
    whole, corner = inside([Box(0, 0, 1, 1), Box(0, 0, 0.5, 0.25)], SIDE).double()
    seen = tower.look(images)
    got = tower.pool_regions(seen, torch.tensor([0, 2, 2]), torch.stack([whole, corner, whole]))
    torch.testing.assert_close(got[[0, 2]], tower(images)[[0, 2]], rtol=1e-9, atol=1e-9)
    first_two = tower.post_layernorm(tower.hidden(images)[2, 1:3].mean(dim=0))
    torch.testing.assert_close(got[1], first_two, rtol=1e-9, atol=1e-9)


def test_regions_find_their_pictures_among_groups_and_kept_patches() -> None:
    torch.manual_seed(0)
    tower = VisionTransformer(
        VisionConfig(picture_size=32, patch_size=PATCH, width=32, layers=1, heads=2)
    ).double()
    images = pictures(2 * GROUPS).double()
    images = images[by_detail(detailed(images, PATCH))]
    kept = keep_patches(detailed(images, PATCH), torch.Generator().manual_seed(0))
    seen = tower.look(images, kept)
    wanted = []
    for group in seen:
        assert group.kept is not None
        for hidden, places in zip(group.hidden, group.kept.places, strict=True):
            wanted.append(hidden[1:][places == places[0]].mean(dim=0))
    weights = torch.zeros(len(images), SIDE * SIDE, dtype=torch.double)
    weights[
        torch.arange(len(images)), torch.cat([group.kept.places[:, 0] for group in seen if group.kept])
    ] = 0.3
    got = tower.pool_regions(seen, torch.arange(len(images)), weights)
    torch.testing.assert_close(got, tower.post_layernorm(torch.stack(wanted)), rtol=1e-9, atol=1e-9)
