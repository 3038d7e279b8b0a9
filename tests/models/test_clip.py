"""CLIP: where its loss begins, what is no negative, its bounds, and transformers' vision tower as judge."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from bifocal import losses
from bifocal.models.clip import CLIPBatch, CLIPConfig, CLIPModel
from bifocal.models.text import TextConfig, TextTransformer
from bifocal.models.vision import VisionConfig, VisionTransformer

VOCABULARY = 60


def test_the_loss_begins_at_guessing() -> None:
    # at the width of the smoke road: the fewer the dimensions, the more a random similarity strays from its mean
    towers = CLIPConfig(
        vision=VisionConfig(width=96, layers=2), text=TextConfig(vocabulary=600, width=96, layers=1)
    )
    tokens = torch.randint(600, (32, towers.text.context))
    tokens[:, 0], tokens[:, 12:] = 1, 0  # begin token, words, padding
    total, count, metrics = CLIPModel(towers).loss(
        CLIPBatch(torch.rand(32, 3, 64, 64), tokens, torch.arange(32))
    )
    assert count == 32
    assert metrics["guessing"] == math.log(32)
    # untrained embeddings say next to nothing about which picture belongs to which text
    assert total.item() / count == pytest.approx(math.log(32), rel=0.05)


def test_a_trained_pair_costs_nothing() -> None:
    images = torch.eye(6)
    total, right = losses.contrastive(images, images, torch.tensor(100.0))
    assert total.item() == pytest.approx(0, abs=1e-6)
    assert right == 1


def test_the_same_caption_is_no_negative() -> None:
    images = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    texts[1] = texts[0]
    scale = torch.tensor(10.0)
    got, _ = losses.contrastive(images, texts, scale, torch.tensor([0, 0, 1]))
    logits = 10 * images @ texts.T
    first, second = [0, 2], [1, 2]  # rows 0 and 1 each face the third text only
    rows = [
        torch.logsumexp(logits[0, first], 0) - logits[0, 0],
        torch.logsumexp(logits[1, second], 0) - logits[1, 1],
        torch.logsumexp(logits[2], 0) - logits[2, 2],
    ]
    columns = [
        torch.logsumexp(logits[first, 0], 0) - logits[0, 0],
        torch.logsumexp(logits[second, 1], 0) - logits[1, 1],
        torch.logsumexp(logits[:, 2], 0) - logits[2, 2],
    ]
    torch.testing.assert_close(got, (sum(rows) + sum(columns)) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("moved", "kept"), [(9.0, math.log(100)), (-1.0, 0.0), (1.5, 1.5)])
def test_the_logit_scale_stays_within_its_bounds(moved: float, kept: float) -> None:
    model = tiny.clip(VOCABULARY)
    with torch.no_grad():
        model.logit_scale.fill_(moved)
    model.after_step()
    assert model.logit_scale.item() == pytest.approx(kept, abs=1e-6)


def test_embeddings_have_unit_norm() -> None:
    model = tiny.clip(VOCABULARY)
    images = torch.rand(4, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE)
    for embedded in (model.embed_images(images), model.embed_texts(torch.randint(VOCABULARY, (4, 16)))):
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(4), rtol=1e-6, atol=1e-6)


def test_the_vision_tower_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = tiny.VISION
    ours = VisionTransformer(config).eval()
    theirs = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=config.width, intermediate_size=4 * config.width, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, image_size=config.picture_size, patch_size=config.patch_size,
            hidden_act="gelu",
        )
    ).eval()  # fmt: skip
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in theirs.state_dict()) else ""
    with torch.no_grad():
        for weight in ours.parameters():
            weight.normal_(std=0.2)
        theirs.load_state_dict({f"{prefix}{name}": value for name, value in ours.state_dict().items()})
        images = torch.rand(2, 3, config.picture_size, config.picture_size)
        mean, deviation = (torch.tensor(row)[:, None, None] for row in (config.mean, config.deviation))
        wanted = theirs(pixel_values=(images - mean) / deviation, output_hidden_states=True).hidden_states
        for layer in (-1, -2, -3):
            got = ours.hidden(images, layer)
            torch.testing.assert_close(got, wanted[layer], rtol=1e-5, atol=1e-5 * got.abs().max().item())
    assert not torch.allclose(wanted[-1], wanted[-2])


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \(B, 3, 32, 32\) pictures and got \(1, 3, 24, 24\)"):
        tiny.clip(VOCABULARY).embed_images(torch.rand(1, 3, 24, 24))


def test_a_text_that_is_not_padded_is_refused() -> None:
    with pytest.raises(ValueError, match="padded to 16 tokens, got 9"):
        tiny.clip(VOCABULARY).embed_texts(torch.zeros(1, 9, dtype=torch.int64))


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    short, long = TextConfig(vocabulary=50, context=8), TextConfig(vocabulary=50, context=24)
    tower = TextTransformer(long).double()
    other = TextTransformer(short).double()
    weights = tower.state_dict()
    weights["embeddings.position_embedding.weight"] = weights["embeddings.position_embedding.weight"][:8]
    other.load_state_dict(weights)
    tokens = torch.randint(1, 50, (3, 8))
    tokens[0, 5:] = 0
    padded = torch.nn.functional.pad(tokens, (0, 16), value=0)
    alone = torch.cat([other(row[None]) for row in tokens])
    torch.testing.assert_close(tower(padded), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid", "simplified"])
def test_every_objective_learns_its_batch(objective: Any) -> None:
    config = tiny.clip(VOCABULARY).config
    model = CLIPModel(replace(config, logit_bias=objective == "sigmoid"), objective=objective).train()
    if objective == "sigmoid":
        model.start_sigmoid(8)
    tokens = torch.randint(3, VOCABULARY, (8, config.text.context))
    batch = CLIPBatch(torch.rand(8, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE), tokens, torch.arange(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        total, count, metrics = model.loss(batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        model.after_step()
    assert metrics["accuracy"] == 1
    bound = -1 if objective == "simplified" else metrics["guessing"] / 4
    assert total.item() / count < bound


def test_sigmoid_starts_with_a_scale_of_ten_and_a_bias_for_the_batch() -> None:
    model = CLIPModel(replace(tiny.clip(VOCABULARY).config, logit_bias=True), objective="sigmoid")
    model.start_sigmoid(64)
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias.item() == pytest.approx(-math.log(63))
    with torch.no_grad():
        model.logit_scale.fill_(5)  # above the bound of softmax, where SigLIP's own models stand
    model.after_step()
    assert model.logit_scale.item() == 5


def test_sigmoid_without_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a model with logit_bias"):
        CLIPModel(tiny.clip(VOCABULARY).config, objective="sigmoid")
