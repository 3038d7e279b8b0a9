"""The forecast of a recipe: what lies on the line of two traces, what ranks share, and what they send."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from bifocal.config import UserError
from bifocal.data.scenes import WorldSettings
from bifocal.models.clip import CLIPConfig
from bifocal.models.language import LanguageConfig
from bifocal.models.parti import DecoderConfig, PartiModel
from bifocal.models.text import TextConfig
from bifocal.recipes import forecast as forecast_module
from bifocal.recipes.clip import CLIPRecipe
from bifocal.recipes.forecast import Forecast, communicated_bytes, forecast, row_of
from bifocal.recipes.parti import PartiRecipe
from bifocal.recipes.prior import recipe_prior
from bifocal.recipes.sketches import sketch
from bifocal.recipes.vlm import VLMRecipe
from bifocal.recipes.vqvae import VQVAERecipe
from bifocal.training.machines import SHEETS, Fleet, read_fleet
from bifocal.training.trace import trace_step

WORLD = WorldSettings(picture_size=tiny.PICTURE_SIZE)


@pytest.fixture(scope="module")
def known() -> Forecast:
    return forecast(recipe_prior("smoke"), [Fleet(1, "cpu"), Fleet(4, "h100", 2.5)])


def test_memory_grows_with_the_batch_and_what_is_between_steps_does_not(known: Forecast) -> None:
    assert known.elsewhere is not None
    one, two, three = (known.elsewhere.memory(batch) for batch in (8, 16, 24))
    assert one["masters"] == two["masters"] and one["optimizer"] == two["optimizer"]
    assert two["activations"] - one["activations"] == three["activations"] - two["activations"] > 0
    held = sum(two[kind] for kind in ("weights", "masters", "optimizer", "activations"))
    assert two["peak"] > held
    assert two["peak"] - one["peak"] == pytest.approx(three["peak"] - two["peak"])


def test_the_largest_batch_is_the_last_one_that_fits(known: Forecast) -> None:
    memory = 2.0**30
    largest = known.here.largest_batch(memory)
    assert known.here.memory(largest)["peak"] <= 0.9 * memory < known.here.memory(largest + 2)["peak"]
    assert known.here.largest_batch(1000.0) == 0


def test_ranks_share_what_is_sharded_and_no_more(known: Forecast) -> None:
    whole, part = known.here.memory(16, 4), known.here.memory(16, 4, sharded=True)
    for kind in ("masters", "optimizer", "gradients"):
        assert part[kind] == whole[kind] / 4
    for kind in ("weights", "activations"):
        assert part[kind] == whole[kind]


def test_what_ranks_send_follows_from_the_parameters(known: Forecast) -> None:
    gradients = 4 * known.parameters
    assert communicated_bytes(known, 1, sharded=False) == 0
    assert communicated_bytes(known, 4, sharded=False) == 2 * 3 / 4 * gradients
    weights = known.here.costs[1].weights
    assert communicated_bytes(known, 2, sharded=True) == (2 * weights + gradients) / 2


def test_a_row_adds_up(known: Forecast) -> None:
    here, there = known.rows
    assert here.step == here.compute + here.data and here.communication == 0 and here.cost is None
    assert there.batch == 4 and there.ranks == 4
    assert there.step == there.compute + there.communication
    assert there.communication == there.communicated / SHEETS["h100"].link
    assert there.total == there.step * 24
    assert there.cost == pytest.approx(2.5 * 4 * there.total / 3600)
    assert "too small for 32 ranks" in row_of(known, Fleet(32, "h100"), sharded=False).note


def test_a_fleet_is_read_or_refused() -> None:
    assert read_fleet("8xH100@2.50") == Fleet(8, "h100", 2.5)
    assert read_fleet("cpu") == Fleet(1, "cpu")
    for text in ("8x", "0xl4", "h100@free", "tpu"):
        with pytest.raises(UserError, match="--machines"):
            read_fleet(text)


def recipe_of(name: str, data: str) -> Any:
    text = TextConfig(width=32, layers=1, heads=2, context=24)
    language = LanguageConfig(width=32, layers=1, heads=2, kv_heads=1, hidden=48, qk_norm=True)
    moving = replace(tiny.IMAGE_TOKENS.quantizer, update="ema")
    vlm = VLMRecipe(
        batch_size=4, row_length=128, text_tokens=300, box_bins=8, data=data, world=WORLD, language=language
    )
    recipes = {
        "vqvae": VQVAERecipe(batch_size=2, data=data, world=WORLD, model=tiny.IMAGE_TOKENS),
        "vqvae-ema": VQVAERecipe(
            batch_size=2, data=data, world=WORLD, model=replace(tiny.IMAGE_TOKENS, quantizer=moving)
        ),
        "clip": CLIPRecipe(
            batch_size=6, text_tokens=300, data=data, world=WORLD,
            model=CLIPConfig(vision=tiny.VISION, text=text, width=16),
        ),
        "vlm-continuous": vlm,
        "vlm-discrete": replace(vlm, family="discrete"),
        "parti": PartiRecipe(
            batch_size=4, text_tokens=300, data=data, world=WORLD, text=text,
            decoder=DecoderConfig(width=32, layers=1, heads=2, hidden=48),
        ),
    }  # fmt: skip
    return recipes[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.folder(tmp_path_factory.mktemp("own") / "data"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [
        "vqvae-ema",
        "vlm-discrete",
        pytest.param("vqvae", marks=SLOW),
        pytest.param("clip", marks=SLOW),
        pytest.param("vlm-continuous", marks=SLOW),
        "parti",
    ],
)
def test_a_recipe_has_a_sketch_whose_step_can_be_traced(name: str, data: str) -> None:
    recipe = recipe_of(name, data)
    planned = sketch(recipe)
    batch = planned.batch(0, planned.size)
    cost = trace_step(planned.outline, batch, recipe.train.optimizer, torch.bfloat16)
    assert cost.flops > 0 and cost.activations > 0 and cost.peak > cost.persistent
    assert (cost.frozen > cost.weights) == name.startswith(("vlm", "parti"))
    layers, heads, size, row = 1, 1, 16, 128
    keys_and_values = 2 * layers * heads * size * row * 2  # in bf16
    if name != "parti":
        assert planned.cache_bytes(torch.bfloat16) == (keys_and_values if name.startswith("vlm") else 0)


def test_what_drawing_keeps_is_what_a_parti_keeps(data: str) -> None:
    planned = sketch(recipe_of("parti", data))
    model = planned.build()
    assert isinstance(model, PartiModel)
    halves, codes = 2, model.config.vqvae.codes_per_picture
    heard = model.read(
        torch.ones(halves, model.config.text.context, dtype=torch.int64), torch.tensor([False, True])
    )
    cache = model.new_cache(halves, codes)
    kept = [cache.keys, cache.values, *(part for pair in heard.keys_values for part in pair)]
    assert planned.cache_bytes(torch.float32) == sum(part.nbytes for part in kept)


def test_the_line_goes_through_what_was_traced(known: Forecast) -> None:
    line = known.elsewhere
    assert line is not None
    assert line.at(line.sizes[0], (3.0, 5.0)) == 3.0
    assert line.at(line.sizes[1], (3.0, 5.0)) == 5.0
    assert line.memory(line.sizes[1])["peak"] == line.costs[1].peak


def test_this_machine_s_figures_are_those_of_real_steps(known: Forecast) -> None:
    assert known.elsewhere is not None and known.elsewhere.rehearsed is None
    if sys.platform != "linux":
        assert known.here.rehearsed is None and known.calibration is not None
        return
    assert known.here.rehearsed is not None and known.calibration is None
    few, all_of_it = known.here.rehearsed
    assert (few.size, all_of_it.size) == (4, 16)
    assert min(few.memory, all_of_it.memory) > known.here.costs[1].persistent / 2
    assert known.here.memory(16)["peak"] == pytest.approx(all_of_it.memory)
    assert known.rows[0].compute == pytest.approx(all_of_it.seconds)


def test_a_step_that_is_too_large_to_rehearse_is_forecast_from_its_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forecast_module, "MOST_FLOPS", 0.0)
    known = forecast(recipe_prior("smoke"), [Fleet(1, "cpu")])
    assert known.here.rehearsed is None and known.calibration is not None
    assert known.rows[0].compute == known.calibration.seconds + known.calibration.optimizer_seconds
    assert known.rows[0].memory["peak"] == known.here.costs[1].peak
