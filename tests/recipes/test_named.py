"""Recipes by name: settings that no model can have, or that would change nothing, are refused in one sentence."""

from __future__ import annotations

import re

import pytest

from bifocal.config import UserError
from bifocal.recipes.named import recipe_named


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("vqvae", "model.quantizer.depth"),
        ("vqvae", "model.encoder_blocks"),
        ("vqvae", "model.latent_channels"),
        ("vqvae", "model.base_channels"),
        ("vqvae", "model.multipliers"),
        ("vqvae", "model.vit.heads"),
        ("vqvae", "model.vit.width"),
        ("clip", "model.vision.heads"),
        ("clip", "model.vision.patch_size"),
        ("clip", "model.text.heads"),
        ("vlm", "language.heads"),
        ("vlm", "language.kv_heads"),
        ("prior", "language.heads"),
        ("parti", "decoder.heads"),
    ],
)
def test_a_size_of_nothing_is_refused(model: str, key: str) -> None:
    with pytest.raises(UserError, match=r"\b0\b"):
        recipe_named(model, "smoke", {key: "0"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model.quantizer.kind": "simvq", "model.quantizer.restart_after": "9"}, "restarts no codes"),
        ({"perceptual_weight": "0.5"}, "--perceptual-weight would change nothing: name a CLIP"),
        ({"align_weight": "0.5"}, "--align-weight would change nothing: name a CLIP with --align"),
        ({"model.quantizer.decay": "0.9"}, "--model.quantizer.decay would change nothing: set"),
    ],
)
def test_a_setting_that_its_kind_of_tokenizer_does_not_look_at_is_refused(
    settings: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        recipe_named("vqvae", "smoke", settings)


def test_every_such_setting_is_named_at_once() -> None:
    grid = {"kind": "fsq", "levels": "8,8,8", "width": "3", "beta": "0.5", "restart_after": "9"}
    with pytest.raises(
        UserError, match=r"restart-after would .*; --model.quantizer.beta would change nothing"
    ):
        recipe_named("vqvae", "smoke", {f"model.quantizer.{key}": value for key, value in grid.items()})


def test_where_they_do_something_they_are_taken() -> None:
    settings = {"model.quantizer.update": "ema", "model.quantizer.decay": "0.9", "perceptual": "clip"}
    recipe = recipe_named("vqvae", "smoke", {**settings, "perceptual_weight": "0.5"})
    assert (recipe.model.quantizer.decay, recipe.perceptual_weight) == (0.9, 0.5)
    assert recipe_named("vqvae", "smoke", {"model.quantizer.kind": "simvq"}).model.quantizer.kind == "simvq"


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ("vlm", "text_tokens"),
        ("vlm", "box_bins"),
        ("vlm-smollm", "box_bins"),
        ("parti", "text_tokens"),
    ],
)
def test_what_the_words_of_another_run_decide_is_refused_beside_it(model: str, setting: str) -> None:
    flag = f"--{setting.replace('_', '-')}"
    said = f"{flag} would change nothing: the words are those of runs/other (--init-from), so leave it out"
    with pytest.raises(UserError, match=re.escape(said)):
        recipe_named(model, "smoke", {setting: "500"}, vision="eyes", init_from="runs/other")
    assert recipe_named(model, "smoke", {}, vision="eyes", init_from="runs/other")
    if model != "vlm-smollm" or setting == "box_bins":
        assert getattr(recipe_named(model, "smoke", {setting: "500"}, vision="eyes"), setting) == 500
