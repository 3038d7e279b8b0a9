"""transformers' CLIPModel and SiglipModel, there and here, from pictures and texts to vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bifocal
import tiny
from bifocal import inference
from bifocal.commands.exchange import export_command, import_command
from bifocal.config import UserError
from bifocal.interop import clip_transformers
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.text import TextConfig
from interop.foreign import (
    CAUSAL,
    CONTEXT,
    PLAIN,
    SIGLIP,
    TEXTS,
    TOLERANCE,
    WIDTH,
    clip_directory,
    clip_model,
    fill,
    ours,
    pictures,
    sizes,
    vocabulary,
)  # fmt: skip

transformers = pytest.importorskip("transformers")


def opened(place: Path) -> inference.CLIP:
    clip = bifocal.load(place, dtype="float32")
    assert isinstance(clip, inference.CLIP)
    return clip


@torch.no_grad()
def agree(place: Path, model: Any, processor: Any) -> inference.CLIP:
    """A directory opened here gives the vectors that transformers' processor and model give; what was opened."""
    clip = opened(place)
    batch = processor(
        text=TEXTS[: len(pictures())], images=pictures(), return_tensors="pt", padding="max_length",
        max_length=clip.model.config.text.context,
    )  # fmt: skip
    there = model(**batch)
    torch.testing.assert_close(clip.embed_images(pictures()), there.image_embeds, **TOLERANCE)
    torch.testing.assert_close(clip.embed_texts(TEXTS[: len(pictures())]), there.text_embeds, **TOLERANCE)
    logits = clip.model.logit_scale.exp() * there.image_embeds @ there.text_embeds.T
    if clip.model.config.logit_bias:
        logits = logits + clip.model.logit_bias
    torch.testing.assert_close(there.logits_per_image, logits, rtol=1e-5, atol=1e-4)  # a scale of 14
    return clip


# ---------------------------------------------------------------- theirs, here


@pytest.mark.parametrize(
    ("settings", "image_settings"),
    [
        ({}, {}),
        ({"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu", "layer_norm_eps": 1e-6}}, {}),
        ({"vision": {"hidden_act": "gelu_pytorch_tanh"}}, {"size": {"shortest_edge": 40}, "resample": 2}),
        ({}, {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
        ({}, {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}),
        ({}, {"do_normalize": False}),
    ],
    ids=["openai's", "gelu", "one tower's gelu", "squashed", "mean and deviation", "not normalised"],
)
def test_a_clip_directory_opens_as_it_is(tmp_path: Path, settings: Any, image_settings: Any) -> None:
    model = clip_model(**settings)
    place = clip_directory(tmp_path / "theirs", model, **image_settings)
    agree(place, model, transformers.CLIPProcessor.from_pretrained(place))


def test_an_imported_directory_is_a_run_that_says_the_same(tmp_path: Path) -> None:
    model = clip_model()
    place = clip_directory(tmp_path / "theirs", model)
    import_command(place, tmp_path / "run")
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "run")
    agree(tmp_path / "run", transformers.CLIPModel.from_pretrained(tmp_path / "run"), processor)
    assert torch.equal(opened(tmp_path / "run").embed_texts(TEXTS), opened(place).embed_texts(TEXTS))


def test_a_file_that_leaves_out_what_is_usual_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    model = clip_model()
    place = clip_directory(tmp_path / "theirs", model)
    about = json.loads((place / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        for name in ("hidden_act", "layer_norm_eps", "num_channels"):
            about[part].pop(name, None)
    (place / "config.json").write_text(json.dumps(about))
    there = transformers.CLIPModel.from_pretrained(place)
    clip = agree(place, there, transformers.CLIPProcessor.from_pretrained(place))
    assert clip.model.config.text.activation == "quick_gelu"


def test_settings_said_again_in_an_old_file_count(tmp_path: Path) -> None:
    model = clip_model(text={"hidden_act": "gelu"})
    place = clip_directory(tmp_path / "theirs", model)
    about = json.loads((place / "config.json").read_text())
    about["text_config_dict"] = {
        name: value
        for name, value in about["text_config"].items()
        if name not in ("hidden_act", "model_type")
    }
    (place / "config.json").write_text(json.dumps(about))
    there = transformers.CLIPModel.from_pretrained(place)
    assert there.config.text_config.hidden_act == "quick_gelu"
    agree(place, there, transformers.CLIPProcessor.from_pretrained(place))


def test_the_old_end_id_means_the_highest_id_of_a_text(tmp_path: Path) -> None:
    model = clip_model(text={"eos_token_id": 2})
    place = clip_directory(tmp_path / "theirs", model)
    there = transformers.CLIPModel.from_pretrained(place)
    clip = agree(place, there, transformers.CLIPProcessor.from_pretrained(place))
    # on ids that no tokenizer made too
    tokens = torch.randint(0, 400, (6, CONTEXT), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(
            there.get_text_features(input_ids=tokens).pooler_output, dim=-1
        )
        torch.testing.assert_close(clip.model.embed_texts(tokens), wanted, **TOLERANCE)


def test_the_old_end_id_is_never_written(tmp_path: Path) -> None:
    model = clip_model(text={"eos_token_id": 2})
    place = clip_directory(tmp_path / "theirs", model)
    import_command(place, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["text_config"]["eos_token_id"] == vocabulary()[0]["<|endoftext|>"]
    there = transformers.CLIPModel.from_pretrained(tmp_path / "run")
    agree(tmp_path / "run", there, transformers.CLIPProcessor.from_pretrained(tmp_path / "run"))


def test_an_end_id_that_is_another_tokenizer_s_is_refused(tmp_path: Path) -> None:
    place = clip_directory(tmp_path / "theirs", clip_model())
    about = json.loads((place / "config.json").read_text())
    about["text_config"]["eos_token_id"] = 7
    (place / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="pools texts at the token 7, and its tokenizer ends them with"):
        bifocal.load(place)
    about["text_config"]["eos_token_id"] = 49407
    (place / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="eos_token_id 49407, which the vocabulary"):
        bifocal.load(place)


def test_the_old_end_id_with_tokens_above_the_end_is_refused(tmp_path: Path) -> None:
    model = clip_model(text={"eos_token_id": 2, "vocab_size": len(vocabulary()[0]) + 1})
    place = clip_directory(tmp_path / "theirs", model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(place)
    with pytest.raises(UserError, match="pools texts at their highest id"):
        bifocal.load(place)


def test_without_a_tokenizer_pictures_are_seen_and_text_is_refused(tmp_path: Path) -> None:
    model = clip_model()
    model.save_pretrained(tmp_path / "theirs")
    clip = opened(tmp_path / "theirs")
    assert clip.embed_images(pictures()).shape == (4, WIDTH)
    with pytest.raises(
        UserError, match=r"opened without a tokenizer, and text is needed: put the model's tokenizer"
    ):
        clip.embed_texts(["an owl"])
    with pytest.raises(UserError, match="opened without a tokenizer"):
        clip.classify(pictures(), ["owl", "dog"])


def test_the_two_plain_files_of_openai_s_tokenizer_do(tmp_path: Path) -> None:
    place = clip_directory(tmp_path / "theirs", clip_model())
    wanted = opened(place).embed_texts(TEXTS)
    tokens, merges = vocabulary()
    (place / "tokenizer.json").unlink()
    (place / "vocab.json").write_text(json.dumps(tokens))
    (place / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    assert torch.equal(opened(place).embed_texts(TEXTS), wanted)


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    model = clip_model()
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert not (tmp_path / "theirs" / "model.safetensors").exists()
    assert opened(tmp_path / "theirs").embed_images(pictures()).shape == (4, WIDTH)


def siglip_model() -> Any:
    config = transformers.SiglipConfig(
        text_config=sizes(vocab_size=340, max_position_embeddings=CONTEXT, projection_size=32),
        vision_config=sizes(image_size=32, patch_size=8),
    )
    return fill(transformers.SiglipModel(config))


@torch.no_grad()
def test_a_siglip_directory_opens_as_it_is(tmp_path: Path) -> None:
    model = siglip_model()
    model.save_pretrained(tmp_path / "theirs")
    images = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.save_pretrained(tmp_path / "theirs")
    clip = opened(tmp_path / "theirs")
    tokens = torch.randint(0, 340, (4, CONTEXT))
    there = model(input_ids=tokens, pixel_values=images(pictures(), return_tensors="pt").pixel_values)
    torch.testing.assert_close(clip.embed_images(pictures()), there.image_embeds, **TOLERANCE)
    texts = clip.model.embed_texts(tokens)
    torch.testing.assert_close(texts, there.text_embeds, **TOLERANCE)
    logits = (
        clip.model.logit_scale.exp() * clip.embed_images(pictures()).clone() @ texts.T + clip.model.logit_bias
    )
    torch.testing.assert_close(logits, there.logits_per_image, rtol=1e-5, atol=1e-4)
    assert clip.model.config.logit_bias


# ---------------------------------------------------------------- ours, there


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_finished_causal_clip_is_a_clip_model(tmp_path: Path, activation: Any) -> None:
    words = tiny.tokenizer()
    config = CLIPConfig(
        replace(PLAIN, activation=activation, mean=(0.1, 0.2, 0.3)),
        replace(CAUSAL, activation=activation),
        WIDTH,
    )
    model = ours(config)
    run = tmp_path / "run"
    run.mkdir()
    inference.save(run, model, words)
    there, report = transformers.CLIPModel.from_pretrained(run, output_loading_info=True)
    assert not any(report.values()), report
    assert there.config.text_config.eos_token_id == words.eos != 2
    clip = agree(run, there, transformers.CLIPProcessor.from_pretrained(run))
    assert clip.model.config == config
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in clip.model.state_dict().items()
    )
    before = model.embed_texts(inference.clip_tokens(TEXTS, words, CONTEXT))
    assert torch.equal(clip.embed_texts(TEXTS), before)


def test_what_a_user_types_never_becomes_a_special_token_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    words = tiny.tokenizer()
    inference.save(tmp_path / "run", ours(CLIPConfig(PLAIN, CAUSAL, WIDTH)), words)
    there = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    assert there("an owl</s>").input_ids == words.sequences(["an owl</s>"])[0]


@torch.no_grad()
def test_a_finished_siglip_is_a_siglip_model(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    model = ours(SIGLIP)
    inference.save(tmp_path / "run", model, tiny.tokenizer())
    there, report = transformers.SiglipModel.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not any(report.values()), report
    assert there.logit_scale.shape == there.logit_bias.shape == (1,)
    images = transformers.SiglipImageProcessorPil.from_pretrained(tmp_path / "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    tokens = tokenizer(TEXTS, return_tensors="pt", padding="max_length", max_length=CONTEXT).input_ids
    result = there(input_ids=tokens, pixel_values=images(pictures(), return_tensors="pt").pixel_values)
    clip = opened(tmp_path / "run")
    torch.testing.assert_close(clip.embed_images(pictures()), result.image_embeds, **TOLERANCE)
    torch.testing.assert_close(clip.embed_texts(TEXTS), result.text_embeds, **TOLERANCE)
    assert clip.model.config == SIGLIP


def test_an_exported_directory_opens_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    inference.save(tmp_path / "run", ours(CLIPConfig(PLAIN, CAUSAL, WIDTH)), tiny.tokenizer())
    export_command(tmp_path / "run", "transformers", tmp_path / "out")
    there = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    agree(tmp_path / "out", there, transformers.CLIPProcessor.from_pretrained(tmp_path / "out"))


@pytest.mark.parametrize(
    "config",
    [
        CLIPConfig(PLAIN, replace(CAUSAL, causal=False, pooling="first"), WIDTH),
        CLIPConfig(replace(PLAIN, pooling="mean"), CAUSAL, WIDTH),
        CLIPConfig(PLAIN, CAUSAL, WIDTH, logit_bias=True),
        replace(SIGLIP, logit_bias=False),
    ],
    ids=["both directions", "mean of patches", "a bias", "siglip without a bias"],
)
def test_what_neither_class_can_be_is_refused(tmp_path: Path, config: CLIPConfig) -> None:
    (tmp_path / "run").mkdir()
    inference.save(tmp_path / "run", ours(config), tiny.tokenizer())
    assert not (tmp_path / "run" / "preprocessor_config.json").exists()
    with pytest.raises(UserError, match="this CLIP is neither: export it to open_clip"):
        export_command(tmp_path / "run", "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_end_token_of_the_id_two_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    model = ours(CLIPConfig(PLAIN, replace(CAUSAL, end=2), WIDTH))
    with pytest.raises(UserError, match="the end token of this CLIP has the id 2"):
        clip_transformers.write(tmp_path / "run", model, begin=1, end=2, pad=0)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config.hidden_act": "swish"}, "hidden_act 'swish' is none of"),
        ({"vision_config.num_channels": 1}, "pictures of 1 channels"),
        ({"vision_config.image_size": [32, 64]}, "must be square"),
        ({"text_config.hidden_size": "wide"}, "hidden_size should be of the kind int"),
        ({"vision_config.num_hidden_layers": 1}, "do not fit its configuration"),
    ],
)
def test_a_configuration_that_is_not_here_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    clip_model().save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    about = json.loads(path.read_text())
    for name, value in changes.items():
        part, key = name.split(".")
        about[part][key] = value
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match=message) as caught:
        bifocal.load(tmp_path / "theirs")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_resize": False}, "do_resize is False"),
        ({"do_rescale": False}, "do_rescale is False"),
        ({"rescale_factor": 1 / 127.5}, "only 1/255 is supported"),
        ({"size": {"shortest_edge": 24}}, "would be cropped to 32"),
        ({"crop_size": {"height": 28, "width": 28}}, "which gives no square of the model's 32 pixels"),
        ({"do_center_crop": False}, "which gives no square of the model's 32 pixels"),
        ({"image_processor_type": "ViTImageProcessor"}, "prepared by ViTImageProcessor"),
        ({"image_mean": [0.5, 0.5]}, "image_mean should be three numbers"),
        ({"resample": 9}, "none of Pillow's filters"),
    ],
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_pictures_prepared_in_a_way_that_is_not_here_are_refused(
    tmp_path: Path, settings: Any, message: str, name: str
) -> None:
    clip_model().save_pretrained(tmp_path / "theirs")
    square = {"height": 32, "width": 32}
    about = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": square}
    about |= settings
    written = about if name.startswith("pre") else {"image_processor": about}
    (tmp_path / "theirs" / name).write_text(json.dumps(written))
    with pytest.raises(UserError, match=message):
        bifocal.load(tmp_path / "theirs")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    clip_model().save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").rename(tmp_path / "theirs" / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle"):
        bifocal.load(tmp_path / "theirs")


def test_half_precision_weights_and_stored_positions_are_read(tmp_path: Path) -> None:
    clip_model().save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = {name: value.half() for name, value in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    save_file(tensors, file)
    model, _ = inference.load_model(tmp_path / "theirs")
    assert isinstance(model, CLIPModel) and {value.dtype for value in model.parameters()} == {torch.float32}
    assert isinstance(model.config.text, TextConfig)
