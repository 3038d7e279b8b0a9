"""CLIP's batches: captions that fit, regions with their phrases, and what sorting by detail must not mix up."""

from __future__ import annotations

import pytest
import torch

from bifocal.config import UserError
from bifocal.data.patches import inside
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.models.clip import CLIPBatch, CLIPConfig
from bifocal.models.vision import TextConfig, VisionConfig
from bifocal.recipes.clip import PATCH_SHARE, contrastive_batch, look_at_detail, some_single_patches
from bifocal.recipes.sources import SceneSource

SIZE = 24
SOURCE = SceneSource(WorldSettings(), 0)
TOKENIZER = TextTokenizer.train(SOURCE.texts()[:2000], size=600, box_bins=0)


def config(context: int = 64) -> CLIPConfig:
    return CLIPConfig(vision=VisionConfig(), text=TextConfig(context=context))


def batch(*, regions: bool = True, context: int = 64) -> CLIPBatch:
    return contrastive_batch(SOURCE, "train", 0, SIZE, TOKENIZER, config(context), regions=regions)


def phrases_of(found: CLIPBatch) -> set[tuple[bytes, bytes, bytes]]:
    """Every region as (its picture, its weights, its phrase), whatever the order."""
    assert found.regions is not None
    return {
        (found.images[picture].numpy().tobytes(), weights.numpy().tobytes(), tokens.numpy().tobytes())
        for picture, weights, tokens in zip(
            found.regions.pictures, found.regions.weights, found.regions.tokens, strict=True
        )
    }


def test_every_object_is_a_region_with_its_name() -> None:
    found = batch()
    assert found.regions is not None
    number = 0
    for place in range(SIZE):
        pair = SOURCE.pair("train", place, 0)
        for box, phrase in pair.regions:
            assert found.regions.pictures[number] == place
            torch.testing.assert_close(found.regions.weights[number], inside([box], 8)[0])
            words = [token for token in found.regions.tokens[number].tolist() if token != 0]
            assert TOKENIZER.decode(words[1:-1]).strip() == phrase
            number += 1
    assert number == len(found.regions.pictures)
    assert number > SIZE, "no scene of several objects is among these, so this would prove little"


def test_sorting_by_detail_keeps_what_belongs_together() -> None:
    found = batch()
    ordered = look_at_detail(found, 8, seed=0)
    assert not ordered.images.equal(found.images)
    assert phrases_of(ordered) == phrases_of(found)
    assert ordered.regions is not None
    assert ordered.regions.pictures.diff().ge(0).all()
    for image, tokens in zip(ordered.images, ordered.tokens, strict=True):
        place = next(i for i in range(SIZE) if found.images[i].equal(image))
        assert tokens.equal(found.tokens[place])


def test_regions_can_be_left_out() -> None:
    assert batch(regions=False).regions is None


def test_phrases_that_do_not_fit_are_left_out_and_captions_that_never_fit_are_refused() -> None:
    few, all_of_them = batch(context=12).regions, batch().regions
    assert few is not None and all_of_them is not None
    assert 0 < len(few.pictures) < len(all_of_them.pictures)
    with pytest.raises(UserError, match="no caption fits a context of 3 tokens"):
        batch(context=3)


def test_some_regions_are_reduced_to_one_of_their_patches() -> None:
    weights = torch.rand(400, 16) * (torch.rand(400, 16) < 0.4)
    weights[:, 3] = 0.5
    got = some_single_patches(weights, 0)
    single = (got != 0).sum(dim=1) == 1
    share = single.float().mean().item()
    assert share == pytest.approx(PATCH_SHARE, abs=0.1)
    assert torch.where(got != 0, got, weights).equal(weights), "a weight was changed instead of taken away"
    assert got[~single].equal(weights[~single])
    assert got[single].argmax(dim=1).unique().numel() == 16, "always the same patch was drawn"
