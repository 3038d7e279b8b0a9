"""The towers of CLIP in all their manners; transformers and open_clip judge, on tiny random models."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peers
import tiny
from bifocal.config import from_dict, to_dict
from bifocal.data.patches import KeptPatches
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.precision import set_precision
from bifocal.models.resnet import ModifiedResNet, ResNetConfig
from bifocal.models.text import TextConfig, TextTransformer
from bifocal.models.vision import VisionConfig, VisionTransformer, resize_positions

transformers = pytest.importorskip("transformers")

VOCABULARY, CONTEXT, END, WIDTH = 60, 16, 59, 16
TEXT = TextConfig(vocabulary=VOCABULARY, context=CONTEXT, width=32, layers=2, heads=2, end=END)
CAUSAL = replace(TEXT, causal=True, pooling="end")
OPENAI = CLIPConfig(replace(tiny.VISION, pooling="class"), CAUSAL, WIDTH)
SIGLIP = CLIPConfig(
    VisionConfig(
        picture_size=tiny.PICTURE_SIZE, patch_size=8, width=32, layers=2, heads=2, pooling="attention",
        class_token=False, pre_norm=False, patch_bias=True, activation="gelu_pytorch_tanh", norm_eps=1e-6,
        mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5),
    ),
    replace(
        TEXT, pooling="last", padding=None, activation="gelu_pytorch_tanh", norm_eps=1e-6, projection_bias=True
    ),
    width=32,
    visual_projection=False,
)  # fmt: skip
RESNET = ResNetConfig(picture_size=64, layers=(1, 2, 1, 1), width=16, head_width=32)
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}  # of vectors of unit norm in float32


def filled(config: CLIPConfig) -> CLIPModel:
    """A model in which nothing is zero, one or small, so that nothing that is forgotten stays unseen."""
    torch.manual_seed(0)
    model = CLIPModel(config)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if name.endswith("running_var"):
                weight.uniform_(0.5, 2)
            elif weight.is_floating_point() and name != "logit_scale":
                weight.normal_(std=0.2)
                if "norm" in name and name.endswith("weight"):
                    weight.add_(1)
    return model.eval()


def inputs(size: int = tiny.PICTURE_SIZE) -> tuple[Tensor, Tensor]:
    """Three pictures, and three texts of different lengths whose end token is the highest of their ids."""
    images = torch.rand(3, 3, size, size)
    tokens = torch.randint(3, END, (3, CONTEXT))
    for row, length in enumerate((5, CONTEXT, 9)):
        tokens[row, length - 1], tokens[row, length:] = END, 0
    return images, tokens


def pixels(images: Tensor, config: VisionConfig | ResNetConfig) -> Tensor:
    mean, deviation = (torch.tensor(row)[:, None, None] for row in (config.mean, config.deviation))
    return (images - mean) / deviation


def unit(vectors: Any) -> Tensor:
    return nn.functional.normalize(getattr(vectors, "pooler_output", vectors), dim=-1)


def sub_config(sizes: VisionConfig | TextConfig) -> dict[str, Any]:
    """The settings that transformers has for both towers."""
    return {
        "hidden_size": sizes.width, "intermediate_size": round(sizes.width * sizes.mlp_ratio),
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "hidden_act": sizes.activation,
        "layer_norm_eps": sizes.norm_eps,
    }  # fmt: skip


def theirs(config: CLIPConfig) -> nn.Module:
    """transformers' CLIPModel, or SiglipModel for a picture tower without class token."""
    text, vision = config.text, config.vision
    assert isinstance(vision, VisionConfig)
    words = {
        **sub_config(text), "vocab_size": text.vocabulary, "max_position_embeddings": text.context,
        "bos_token_id": 1, "eos_token_id": text.end, "pad_token_id": 0,
    }  # fmt: skip
    eyes = {**sub_config(vision), "image_size": vision.picture_size, "patch_size": vision.patch_size}
    if vision.class_token:
        both = transformers.CLIPConfig(text_config=words, vision_config=eyes, projection_dim=config.width)
        return transformers.CLIPModel(both).eval()
    words["projection_size"] = config.width
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=words, vision_config=eyes)).eval()


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_openai_s_clip_is_that_of_transformers(activation: Any) -> None:
    config = CLIPConfig(
        replace(OPENAI.vision, activation=activation), replace(CAUSAL, activation=activation), WIDTH
    )
    ours, other = filled(config), theirs(config)
    other.load_state_dict(ours.state_dict())
    images, tokens = inputs()
    wanted = unit(other.get_image_features(pixel_values=pixels(images, config.vision)))
    torch.testing.assert_close(ours.embed_images(images), wanted, **TOLERANCE)
    wanted = unit(other.get_text_features(input_ids=tokens))
    torch.testing.assert_close(ours.embed_texts(tokens), wanted, **TOLERANCE)


@torch.no_grad()
def test_siglip_is_that_of_transformers() -> None:
    ours, other = filled(SIGLIP), theirs(SIGLIP)
    weights = {
        name.replace("text_projection.", "text_model.head."): value
        for name, value in ours.state_dict().items()
    }
    scale = weights.pop("logit_scale")
    other.load_state_dict({**weights, "logit_scale": scale[None], "logit_bias": torch.zeros(1)})
    images, tokens = inputs()
    wanted = unit(other.get_image_features(pixel_values=pixels(images, SIGLIP.vision)))
    torch.testing.assert_close(ours.embed_images(images), wanted, **TOLERANCE)
    wanted = unit(other.get_text_features(input_ids=tokens))
    torch.testing.assert_close(ours.embed_texts(tokens), wanted, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_a_vit_is_that_of_open_clip(pooling: Any) -> None:
    vision = replace(OPENAI.vision, pooling=pooling)
    ours = filled(CLIPConfig(vision, CAUSAL, WIDTH))
    pool = "tok" if pooling == "class" else "avg"
    eyes = {
        "image_size": vision.picture_size, "layers": vision.layers, "width": vision.width, "patch_size": 8,
        "head_width": vision.width // vision.heads, "pool_type": pool, "final_ln_after_pool": True,
    }  # fmt: skip
    compare_with_open_clip(ours, eyes, {}, inputs())


@torch.no_grad()
def test_an_encoder_only_text_tower_is_that_of_open_clip() -> None:
    ours = filled(CLIPConfig(OPENAI.vision, replace(TEXT, padding=None), WIDTH))
    eyes = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}
    compare_with_open_clip(ours, eyes, {"no_causal_mask": True, "pool_type": "first"}, inputs())


@torch.no_grad()
def test_a_resnet_is_that_of_open_clip() -> None:
    ours = filled(CLIPConfig(RESNET, CAUSAL, WIDTH))
    eyes = {"image_size": 64, "layers": list(RESNET.layers), "width": RESNET.width, "head_width": 32}
    compare_with_open_clip(ours, eyes, {}, inputs(64))


def compare_with_open_clip(
    ours: CLIPModel, eyes: dict[str, Any], words: dict[str, Any], given: tuple[Tensor, Tensor]
) -> None:
    text = {
        "context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 2, **words
    }  # fmt: skip
    custom = bool(words)
    library = peers.open_clip()
    build = library.CustomTextCLIP if custom else library.CLIP
    other = build(embed_dim=WIDTH, vision_cfg=eyes, text_cfg=text).eval()
    other.load_state_dict(peers.as_open_clip(ours.state_dict(), custom_text=custom))
    images, tokens = given
    wanted = other.encode_image(pixels(images, ours.config.vision), normalize=True)
    torch.testing.assert_close(ours.embed_images(images), wanted, **TOLERANCE)
    wanted = other.encode_text(tokens, normalize=True)
    torch.testing.assert_close(ours.embed_texts(tokens), wanted, **TOLERANCE)


@torch.no_grad()
def test_a_padded_text_pooled_at_its_end_is_the_text_alone() -> None:
    tower = TextTransformer(replace(TEXT, pooling="end")).double()
    tokens = inputs()[1]
    alone = torch.cat([tower(row[None]) for row in tokens])
    torch.testing.assert_close(tower(tokens), alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_what_stands_behind_the_end_token_changes_nothing_for_a_causal_tower() -> None:
    tower = TextTransformer(CAUSAL).double()
    tokens = inputs()[1]
    other = tokens.clone()
    other[0, 5:] = torch.arange(3, CONTEXT - 2)
    other[2, 9:] = END
    torch.testing.assert_close(tower(tokens), tower(other), rtol=0, atol=1e-12)


def test_a_text_without_the_end_token_is_refused() -> None:
    tokens = inputs()[1]
    tokens[1, -1] = 4
    with pytest.raises(ValueError, match="text 1 has no end token, of id 59"):
        TextTransformer(CAUSAL)(tokens)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: replace(TEXT, causal=True), "sees only the begin token"),
        (lambda: replace(TEXT, pooling="last"), "set text.padding to none"),
        (lambda: replace(tiny.VISION, pooling="class", class_token=False), "needs vision.class_token"),
        (lambda: replace(SIGLIP, width=16), "vision.width 32 must be the width 16"),
        (lambda: ResNetConfig(picture_size=48), "48 is not a multiple of 32"),
        (lambda: ResNetConfig(width=9), "288 channels are not a multiple of vision.head_width 64"),
    ],
)
def test_what_cannot_be_is_refused(build: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()


@torch.no_grad()
def test_positions_are_interpolated_as_open_clip_does_it() -> None:
    library = peers.open_clip()
    weight = torch.randn(1 + 4 * 4, 8)
    for side in (4, 6, 3):
        state = {"visual.positional_embedding": weight.clone()}
        grid = nn.Module()
        grid.visual = nn.Module()
        grid.visual.grid_size = (side, side)  # type: ignore[assignment]
        library.model.resize_pos_embed(state, grid)
        got = resize_positions(weight, side)
        torch.testing.assert_close(got, state["visual.positional_embedding"], rtol=1e-6, atol=1e-6)
    assert resize_positions(weight[1:], 6).shape == (36, 8)  # no class token


@torch.no_grad()
@pytest.mark.parametrize("config", [OPENAI, SIGLIP, CLIPConfig(RESNET, CAUSAL, WIDTH)])
def test_a_model_takes_pictures_of_another_size(config: CLIPConfig) -> None:
    model = filled(config)
    size = 2 * config.vision.picture_size
    larger = model.at_picture_size(size)
    assert larger.embed_images(torch.rand(2, 3, size, size)).shape == (2, config.width)
    back = model.at_picture_size(config.vision.picture_size)
    images, tokens = inputs(config.vision.picture_size)
    assert back.embed_images(images).equal(model.embed_images(images))
    assert larger.embed_texts(tokens).equal(model.embed_texts(tokens))


@torch.no_grad()
def test_a_region_gathered_by_a_query_is_made_of_its_own_patches() -> None:
    vision = VisionTransformer(SIGLIP.vision).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.double)
    whole, part = torch.ones(16, dtype=torch.double), torch.zeros(16, dtype=torch.double)
    part[[3, 7]] = 1
    seen = vision.look(images)
    got = vision.pool_regions(seen, torch.tensor([0, 1, 1]), torch.stack([whole, part, whole]))
    torch.testing.assert_close(got[[0, 2]], vision(images), rtol=1e-9, atol=1e-9)
    alone = vision.head(vision.post_layernorm(vision.hidden(images)[1:, [3, 7]]))
    # the other 14 patches keep a weight of a millionth each
    torch.testing.assert_close(got[1], alone[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_region_of_everything_is_the_picture_for_a_resnet_too() -> None:
    tower = ModifiedResNet(RESNET, WIDTH).double().eval()
    images = torch.rand(3, 3, 64, 64, dtype=torch.double)
    got = tower.pool_regions(tower.look(images), torch.tensor([0, 2]), torch.ones(2, 4, dtype=torch.double))
    torch.testing.assert_close(got, tower(images)[[0, 2]], rtol=1e-9, atol=1e-9)


def test_a_resnet_refuses_to_look_at_some_patches() -> None:
    tower = ModifiedResNet(RESNET, WIDTH)
    kept = (KeptPatches(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), 4.0)),)
    with pytest.raises(ValueError, match="leave skip_flat and patch_dropout"):
        tower.look(torch.rand(1, 3, 64, 64), kept)


@pytest.mark.parametrize("kind", ["frozen", "group"])
def test_without_statistics_of_the_batch_a_picture_is_seen_alone(kind: Any) -> None:
    tower = ModifiedResNet(replace(RESNET, norm=kind), WIDTH).double().train()
    images = torch.rand(3, 3, 64, 64, dtype=torch.double)
    before = {name: value.clone() for name, value in tower.named_buffers()}
    alone = torch.cat([tower(image[None]) for image in images])
    torch.testing.assert_close(tower(images), alone, rtol=1e-9, atol=1e-9)
    assert all(value.equal(before[name]) for name, value in tower.named_buffers())


@pytest.mark.parametrize("kind", ["batch", "frozen", "group"])
def test_a_resnet_trains_in_bf16(kind: Any) -> None:
    tower = ModifiedResNet(replace(RESNET, norm=kind), WIDTH).train()
    set_precision(tower, torch.bfloat16)
    tower(torch.rand(2, 3, 64, 64)).float().square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in tower.parameters())


def test_an_earlier_version_s_settings_open_as_they_were() -> None:
    eyes = {"picture_size": 64, "patch_size": 8, "width": 192, "layers": 6, "heads": 3, "mlp_ratio": 4.0}
    words = {"vocabulary": 9, "context": 64, "width": 128, "layers": 3, "heads": 2, "mlp_ratio": 4.0}
    written = {"vision": {**eyes, "pooling": "mean"}, "text": words, "width": 128}
    assert from_dict(CLIPConfig, written, older=True) == CLIPConfig(text=TextConfig(vocabulary=9))


@pytest.mark.parametrize("config", [OPENAI, SIGLIP, CLIPConfig(RESNET, CAUSAL, WIDTH)])
def test_settings_survive_the_way_through_json(config: CLIPConfig) -> None:
    assert from_dict(CLIPConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("layer", [0, 1, -5])
def test_a_layer_that_a_tower_does_not_have_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=r"a tower of 3 layers has layer -1 \(the last\) to -4"):
        tiny.clip(300).vision_model.hidden(torch.rand(1, 3, 32, 32), layer)


def test_texts_made_up_to_fewer_shapes_in_training_are_the_texts_alone() -> None:
    torch.manual_seed(0)
    tower = TextTransformer(replace(tiny.clip(60).config.text, vocabulary=60, context=16)).eval()
    tokens = torch.zeros(150, 16, dtype=torch.int64)
    for row, length in enumerate(torch.randint(1, 17, (150,)).tolist()):
        tokens[row, :length] = torch.randint(4, 60, (length,))
    alone = torch.cat([tower(row[None]) for row in tokens])
    torch.testing.assert_close(tower(tokens), alone, rtol=1e-4, atol=1e-5)
    tower.train()
    trained = tower(tokens)
    torch.testing.assert_close(trained, alone, rtol=1e-4, atol=1e-5)
    # the copies take nothing from the gradient and add nothing to it
    weight = tower.final_layer_norm.bias
    (together,) = torch.autograd.grad(trained.sum(), weight)
    torch.testing.assert_close(together, torch.full_like(weight, 150.0))


def test_a_region_of_a_mean_is_the_weighed_mean_of_its_patches_in_any_group() -> None:
    torch.manual_seed(0)
    vision = VisionTransformer(VisionConfig(width=32, heads=2, layers=1, picture_size=16)).eval()
    images = torch.rand(5, 3, 16, 16)
    kept = [
        KeptPatches(torch.tensor([[0, 3], [1, 2]]), None),
        KeptPatches(torch.arange(4).expand(3, 4), None),
    ]
    pictures = torch.tensor([1, 2, 2, 2, 4])  # none in the first, three in the third
    weights = torch.rand(5, 4)
    seen = vision.look(images, kept)
    got = vision.pool_regions(seen, pictures, weights)
    for row, (picture, weight) in enumerate(zip(pictures.tolist(), weights, strict=True)):
        group, place = (seen[0], picture) if picture < 2 else (seen[1], picture - 2)
        patches = group.hidden[place, vision.first :]
        assert group.kept is not None
        share = weight[group.kept.places[place]]
        wanted = vision.post_layernorm((share[:, None] * patches).sum(dim=0) / share.sum())
        torch.testing.assert_close(got[row], wanted, rtol=1e-4, atol=1e-5)
