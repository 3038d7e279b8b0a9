"""CLIP's batches: captions that fit, regions with their phrases, and what sorting by detail must not mix up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image

import bifocal
import tiny
from bifocal import inference
from bifocal.config import UserError, apply_overrides
from bifocal.data.augment import OFF, Augment
from bifocal.data.patches import inside
from bifocal.data.sample import Message, Picture, Sample, write_samples
from bifocal.data.scenes import WorldSettings
from bifocal.data.scenes.scene import TILE_COLOURS
from bifocal.data.text import TextTokenizer
from bifocal.models.clip import CLIPBatch, CLIPConfig, CLIPModel
from bifocal.models.resnet import ResNetConfig
from bifocal.models.text import TextConfig
from bifocal.models.vision import VisionConfig, resize_positions
from bifocal.recipes.clip import (
    PATCH_SHARE,
    contrastive_batch,
    drop_some_patches,
    look_at_detail,
    recipe_clip,
    some_single_patches,
    train_clip,
)
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.runs import start_from
from bifocal.recipes.sources import SceneSource
from bifocal.recipes.vlm import open_encoder, recipe_vlm

SIZE = 24
SOURCE = SceneSource(WorldSettings(), 0)
TOKENIZER = TextTokenizer.train(SOURCE.texts()[:2000], size=600, box_bins=0)


def config(context: int = 64) -> CLIPConfig:
    return CLIPConfig(vision=VisionConfig(), text=TextConfig(context=context))


def batch(
    *, regions: bool = True, context: int = 64, variation: Augment = OFF, seed: int = 0, first: int = 0
) -> CLIPBatch:
    return contrastive_batch(
        SOURCE,
        "train",
        first,
        SIZE,
        TOKENIZER,
        config(context),
        regions=regions,
        vary=True,
        variation=variation,
        seed=seed,
    )


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


def test_variation_is_decided_by_the_seed_and_the_place_in_training() -> None:
    full = Augment(geometry=1, colour=1, style=1, background=1, flip=1)
    found = batch(regions=False, variation=full)
    assert found.images.equal(batch(regions=False, variation=full).images)
    assert not found.images.equal(batch(regions=False, variation=full, seed=1).images)
    later = batch(regions=False, variation=full, first=SIZE // 2)
    assert not found.images[SIZE // 2 :].equal(later.images[: SIZE // 2])
    assert not found.images.equal(batch(regions=False).images)


def test_regions_and_their_phrases_keep_the_colours_they_speak_of() -> None:
    plain, found = batch(), batch(variation=Augment(background=1))
    other = (plain.images != found.images).flatten(1).any(dim=1)
    assert other.any()
    for place in other.nonzero()[:, 0].tolist():
        pair = SOURCE.pair("train", place, 0)
        assert not any(f" {tile} tile" in phrase for _, phrase in pair.regions for tile in TILE_COLOURS)


def test_a_mirrored_picture_takes_its_regions_along() -> None:
    plain, found = batch(), batch(variation=Augment(flip=1))
    assert plain.regions is not None and found.regions is not None
    mirrored = [not a.equal(b) for a, b in zip(plain.images, found.images, strict=True)]
    assert 0 < sum(mirrored) < SIZE
    for place, other in enumerate(mirrored):
        mine = plain.regions.pictures == place
        before, after = (x.view(-1, 8, 8) for x in (plain.regions.weights[mine], found.regions.weights[mine]))
        # a mirrored edge is one minus the edge, which rounds
        torch.testing.assert_close(after, before.flip(2) if other else before, rtol=0, atol=1e-5)
        assert found.images[place].equal(plain.images[place].flip(2) if other else plain.images[place])


def test_geometry_beside_regions_is_refused() -> None:
    with pytest.raises(UserError, match=r"moves pictures away under their regions: set regions to false"):
        apply_overrides(recipe_clip("smoke"), {"augment.geometry": "0.5"})
    recipe = apply_overrides(recipe_clip("smoke"), {"augment.geometry": "0.5", "regions": "false"})
    assert recipe.augment == Augment(geometry=0.5)


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


def test_patch_dropout_leaves_regions_that_are_still_to_be_seen() -> None:
    found = batch()
    dropped = drop_some_patches(found, 64, 0.75, seed=0)
    assert dropped.kept is not None and dropped.regions is not None and found.regions is not None
    places = torch.cat([group.places for group in dropped.kept])
    assert places.shape == (SIZE, 16)
    assert all(len(set(row.tolist())) == 16 for row in places)
    assert len({tuple(row.tolist()) for row in places}) == SIZE, "all pictures lose the same patches"
    kept = 0
    for picture, weights, tokens in zip(found.regions.pictures, found.regions.weights, found.regions.tokens):
        left = torch.zeros(64).scatter(0, places[picture], weights[places[picture]])
        if left.sum() == 0:
            continue
        assert dropped.regions.pictures[kept] == picture
        assert dropped.regions.weights[kept].equal(left)
        assert dropped.regions.tokens[kept].equal(tokens)
        kept += 1
    assert kept == len(dropped.regions.pictures) < len(found.regions.pictures)
    again = drop_some_patches(found, 64, 0.75, seed=0).kept
    assert again is not None and again[0].places.equal(dropped.kept[0].places)


def test_a_picture_is_shown_with_any_of_its_captions(tmp_path: Path) -> None:
    captions = ("an owl", "a bird of the night", "the picture of an owl")
    Image.fromarray(tiny.picture(0)).save(tmp_path / "owl.png")
    messages = (Message("user", (Picture(0),)), Message("assistant", (captions[0],)))
    sample = Sample("owl", "captioning", "all", ("owl.png",), messages, references=captions)
    write_samples(tmp_path / "samples.jsonl", [sample])
    source = FolderSource(tmp_path, 64)
    shown = [source.pair("train", number, 0).text for number in range(40)]
    assert set(shown) == set(captions)
    assert shown == [FolderSource(tmp_path, 64).pair("train", number, 0).text for number in range(40)]
    assert {source.pair("train", number, 0, vary=False).text for number in range(40)} == {captions[0]}


@pytest.mark.parametrize("vary", [True, False])
def test_a_training_varies_what_is_said_of_a_picture_if_it_is_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vary: bool
) -> None:
    Image.fromarray(tiny.picture(0)).save(tmp_path / "owl.png")
    messages = (Message("user", (Picture(0),)), Message("assistant", ("an owl",)))
    long = "an owl " * 40
    sample = Sample("owl", "captioning", "all", ("owl.png",), messages, references=(long, "an owl", "a bird"))
    write_samples(tmp_path / "samples.jsonl", [sample])
    monkeypatch.setattr("bifocal.recipes.clip.run", lambda model, settings, batch_at, *_, **__: batch_at(0))
    changes = {"data": str(tmp_path), "batch_size": "40", "vary_captions": str(vary).lower()}
    made = cast(CLIPBatch, train_clip(apply_overrides(recipe_clip("smoke"), changes), tmp_path / "run"))
    # the first is too long for the context
    assert len(made.text_ids.unique()) == (2 if vary else 1)


def test_scenes_have_no_captions_to_keep_to() -> None:
    with pytest.raises(UserError, match="vary_captions is for pictures of a folder"):
        apply_overrides(recipe_clip("smoke"), {"vary_captions": "false"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_dropout": "0.5"}, "both choose the patches"),
        ({"patch_dropout": "1", "skip_flat": "false"}, "a share of the patches below 1"),
    ],
)
def test_patch_dropout_that_cannot_be_is_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        apply_overrides(recipe_clip("smoke"), changes)


def test_a_resnet_looks_at_whole_pictures() -> None:
    with pytest.raises(UserError, match="a ResNet looks at whole pictures"):
        apply_overrides(recipe_clip("smoke", "resnet"), {"skip_flat": "true"})


def test_a_resnet_is_trained_and_opens_again(tmp_path: Path) -> None:
    recipe = apply_overrides(
        recipe_clip("smoke", "resnet"), {"batch_size": "8", "train.steps": "2", "text_tokens": "600"}
    )
    train_clip(recipe, tmp_path / "run")
    model = bifocal.load(tmp_path / "run")
    assert isinstance(model, bifocal.inference.CLIP)
    assert isinstance(model.model.config.vision, ResNetConfig)
    assert (tmp_path / "run" / "open_clip_config.json").is_file()  # its norm is one that open_clip has
    assert model.embed_images([tiny.picture(0)]).shape == (1, recipe.model.width)


def test_training_goes_on_with_larger_pictures(tmp_path: Path) -> None:
    model = tiny.clip(300)
    inference.save(tmp_path, model)
    larger = CLIPModel(replace(model.config, vision=replace(model.config.vision, picture_size=48)))
    start_from(larger, str(tmp_path))
    assert larger.text_projection.weight.equal(model.text_projection.weight)
    positions = larger.vision_model.get_parameter("embeddings.position_embedding.weight")
    old = model.vision_model.get_parameter("embeddings.position_embedding.weight")
    assert positions.equal(resize_positions(old, 6))


def test_a_vlm_does_not_stand_on_a_resnet(tmp_path: Path) -> None:
    inference.save(tmp_path, CLIPModel(recipe_clip("smoke", "resnet").model))
    with pytest.raises(UserError, match=r"reads the patches of a ViT, and .* has a ResNet"):
        open_encoder(replace(recipe_vlm("smoke", "continuous"), vision=str(tmp_path)))
