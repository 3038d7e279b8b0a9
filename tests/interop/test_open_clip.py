"""open_clip's directories, there and here, from pictures and texts to vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import bifocal
import peers
import tiny
from bifocal import inference
from bifocal.commands.exchange import export_command, import_command
from bifocal.commands.interpolate import open_pair
from bifocal.config import UserError
from bifocal.models.clip import CLIPConfig, CLIPModel
from interop.foreign import (
    BOTH,
    CAUSAL,
    CONTEXT,
    PLAIN,
    RESNET,
    SIGLIP,
    TEXTS,
    TOLERANCE,
    WIDTH,
    fill,
    openai_tokenizer,
    ours,
    pictures,
    vocabulary,
)  # fmt: skip

pytest.importorskip("transformers")
library = peers.open_clip()

VIT = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8, "mlp_ratio": 1.5}
WORDS = {"context_length": CONTEXT, "vocab_size": 521, "width": 32, "heads": 4, "layers": 2}
MAPS = {"image_size": 32, "layers": [1, 2, 1, 1], "width": 8, "head_width": 32}


def opened(place: Path) -> inference.CLIP:
    clip = bifocal.load(place, dtype="float32")
    assert isinstance(clip, inference.CLIP)
    return clip


def there(place: Path) -> Any:
    """A directory as open_clip opens it: the model and its preparation of pictures."""
    model, prepare = library.create_model_from_pretrained(f"local-dir:{place}")
    return model.eval(), prepare


def directory(place: Path, *, tokenizer: bool = True, preprocess: Any = None, **cfg: Any) -> Path:
    """As open_clip writes one: its own configuration, the weights of its own model, a tokenizer."""
    place.mkdir()
    model_cfg = {"embed_dim": WIDTH, "vision_cfg": VIT, "text_cfg": WORDS, **cfg}
    if tokenizer:
        openai_tokenizer().save_pretrained(place)
        model_cfg["text_cfg"] = {"hf_tokenizer_name": "tiny", **model_cfg["text_cfg"]}
    about = {"model_cfg": model_cfg, "preprocess_cfg": preprocess or {}}
    (place / "open_clip_config.json").write_text(json.dumps(about))
    model = library.create_model(f"local-dir:{place}", load_weights=False)
    tensors = {name: value.contiguous() for name, value in fill(model).state_dict().items()}
    save_file(tensors, place / "open_clip_model.safetensors")
    return place


@torch.no_grad()
def agree(place: Path, clip: inference.CLIP) -> None:
    """``clip`` gives the vectors that open_clip gives for a directory, from the same pictures and texts."""
    model, prepare = there(place)
    tokens = library.get_tokenizer(f"local-dir:{place}")(TEXTS)
    images = torch.stack([prepare(picture) for picture in pictures()])
    torch.testing.assert_close(
        clip.embed_images(pictures()), model.encode_image(images, normalize=True), **TOLERANCE
    )
    torch.testing.assert_close(
        clip.embed_texts(TEXTS), model.encode_text(tokens, normalize=True), **TOLERANCE
    )
    torch.testing.assert_close(clip.model.logit_scale, model.logit_scale.reshape(()), rtol=0, atol=0)
    if model.logit_bias is not None:
        torch.testing.assert_close(clip.model.logit_bias, model.logit_bias.reshape(()), rtol=0, atol=0)


# ---------------------------------------------------------------- theirs, here

END = {"pool_type": "eos", "eos_id": vocabulary()[0]["<|endoftext|>"]}
MANNERS: dict[str, dict[str, Any]] = {
    "openai's": {"quick_gelu": True},
    "gelu, custom text": {"custom_text": True},
    "tanh, another epsilon": {
        "vision_cfg": {**VIT, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}},
        "text_cfg": {**WORDS, "norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 2.0},
    },
    "mean of patches, without first norm": {
        "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}
    },
    "fixed positions": {"vision_cfg": {**VIT, "pos_embed_type": "sin_cos_2d"}},
    "named end": {"text_cfg": {**WORDS, **END}},
    "last position": {"text_cfg": {**WORDS, "pool_type": "last"}},
    "both directions": {"text_cfg": {**WORDS, "no_causal_mask": True, "pool_type": "first"}},
    "siglip's text": {
        "text_cfg": {**WORDS, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "init_logit_bias": -10, "custom_text": True, "nonscalar_logit_scale": True,
    },
    "resnet": {"vision_cfg": MAPS, "quick_gelu": True},
}  # fmt: skip


@pytest.mark.parametrize("manner", MANNERS)
def test_a_directory_opens_as_it_is(tmp_path: Path, manner: str) -> None:
    place = directory(tmp_path / "theirs", **MANNERS[manner])
    agree(place, opened(place))


@pytest.mark.parametrize(
    "preprocess",
    [
        {"resize_mode": "squash", "interpolation": "bilinear"},
        {"resize_mode": "longest", "fill_color": 50},
        {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
        {"mean": 0.5, "std": 0.5},
    ],
)
def test_pictures_are_prepared_as_the_directory_says(tmp_path: Path, preprocess: Any) -> None:
    if isinstance(preprocess.get("mean"), float):  # open_clip takes one number as well
        place = directory(tmp_path / "theirs", preprocess=preprocess)
        assert opened(place).model.config.vision.mean == (0.5, 0.5, 0.5)
        return
    place = directory(tmp_path / "theirs", preprocess=preprocess)
    agree(place, opened(place))


@pytest.mark.parametrize("manner", MANNERS)
def test_an_imported_directory_is_a_run_that_opens_again(tmp_path: Path, manner: str) -> None:
    place = directory(tmp_path / "theirs", **MANNERS[manner])
    import_command(place, tmp_path / "run")
    clip, source = opened(tmp_path / "run"), opened(place)
    # three spare pixels, whose middle the tools choose differently, and a text that open_clip cleans
    seen = [*pictures(), tiny.picture(3, 35)[:32]]
    said = [*TEXTS, "tom &amp; an owl"]
    assert torch.equal(clip.embed_images(seen), source.embed_images(seen))
    assert torch.equal(clip.embed_texts(said), source.embed_texts(said))
    open_pair(place, tmp_path / "run")  # what it is trained into can be interpolated with it
    if (tmp_path / "run" / "open_clip_config.json").is_file():
        agree(tmp_path / "run", clip)


@pytest.mark.parametrize(
    "changed",
    [
        {"preprocess": {"resize_mode": "longest", "fill_color": 50}},
        {"text_cfg": {**WORDS, "pool_type": "eos", "eos_id": 2}, "tokenizer": False},
    ],
    ids=["filled up", "an end that transformers cannot say"],
)
def test_what_transformers_cannot_hold_is_finished_as_it_came(tmp_path: Path, changed: Any) -> None:
    place = directory(tmp_path / "theirs", **changed)
    import_command(place, tmp_path / "run")
    assert opened(tmp_path / "run").model.config == opened(place).model.config
    with pytest.raises(UserError, match="transformers"):
        export_command(tmp_path / "run", "transformers", tmp_path / "there")


def test_a_clip_of_openai_s_kind_goes_from_one_tool_to_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = directory(tmp_path / "theirs", **MANNERS["openai's"])
    import_command(place, tmp_path / "run")
    capsys.readouterr()
    export_command(tmp_path / "run", "transformers", tmp_path / "there")
    assert (tmp_path / "there" / "config.json").is_file()  # it is a CLIPModel now
    said = capsys.readouterr().out
    assert "one pixel beside" in said and "texts are not cleaned" in said
    export_command(tmp_path / "there", "open_clip", tmp_path / "back")
    agree(tmp_path / "back", opened(place))


def test_open_clip_s_own_tokenizer_fills_up_with_zeros(tmp_path: Path) -> None:
    place = directory(tmp_path / "theirs", text_cfg={**WORDS, "no_causal_mask": True, "pool_type": "first"})
    path = place / "open_clip_config.json"
    about = json.loads(path.read_text())
    del about["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    path.write_text(json.dumps(about))
    clip = opened(place)
    assert clip.tokenizer is not None and clip.tokenizer.pad == 0
    wanted = opened(
        directory(tmp_path / "named", text_cfg={**WORDS, "no_causal_mask": True, "pool_type": "first"})
    )
    assert not torch.allclose(clip.embed_texts(TEXTS), wanted.embed_texts(TEXTS))  # padding is attended to


def test_without_a_tokenizer_pictures_are_seen_and_text_is_refused(tmp_path: Path) -> None:
    clip = opened(directory(tmp_path / "theirs", tokenizer=False))
    assert clip.embed_images(pictures()).shape == (4, WIDTH)
    with pytest.raises(UserError, match="opened without a tokenizer"):
        clip.embed_texts(["an owl"])


@torch.no_grad()
def test_the_highest_id_is_pooled_wherever_it_stands(tmp_path: Path) -> None:
    place = directory(tmp_path / "theirs", tokenizer=False)
    tokens = torch.randint(0, 521, (8, CONTEXT), generator=torch.Generator().manual_seed(0))
    model, _ = there(place)
    torch.testing.assert_close(
        opened(place).model.embed_texts(tokens), model.encode_text(tokens, normalize=True), **TOLERANCE
    )


# ---------------------------------------------------------------- ours, there

FINISHED = {
    "as trained by default": CLIPConfig(replace(PLAIN, pooling="mean"), BOTH, WIDTH),
    "class token, both directions": CLIPConfig(PLAIN, BOTH, WIDTH),
    "causal, mean of patches": CLIPConfig(replace(PLAIN, pooling="mean"), CAUSAL, WIDTH),
    "sigmoid": CLIPConfig(PLAIN, CAUSAL, WIDTH, logit_bias=True),
    "quick gelu": CLIPConfig(
        replace(PLAIN, activation="quick_gelu"), replace(BOTH, activation="quick_gelu"), WIDTH
    ),
    "tanh in one tower": CLIPConfig(replace(PLAIN, activation="gelu_pytorch_tanh"), BOTH, WIDTH),
    "padding attended to": CLIPConfig(PLAIN, replace(BOTH, padding=None), WIDTH),
    "another mean and epsilon": CLIPConfig(
        replace(PLAIN, mean=(0.1, 0.2, 0.3), norm_eps=1e-4),
        replace(BOTH, norm_eps=1e-4, projection_bias=True),
        WIDTH,
    ),
    "resnet": CLIPConfig(RESNET, BOTH, WIDTH),
    "resnet, frozen norms": CLIPConfig(replace(RESNET, norm="frozen"), CAUSAL, WIDTH),
}


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_clip_opens_there(tmp_path: Path, name: str) -> None:
    run, model, words = tmp_path / "run", ours(FINISHED[name]), tiny.tokenizer()
    run.mkdir()
    inference.save(run, model, words)
    clip = opened(run)
    assert clip.model.config == FINISHED[name]
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in clip.model.state_dict().items())
    assert torch.equal(
        clip.embed_texts(TEXTS), model.embed_texts(inference.clip_tokens(TEXTS, words, CONTEXT))
    )
    if FINISHED[name].text.padding is None:
        # there texts are filled up with what the tokenizer says, and both count it in
        assert library.get_tokenizer(f"local-dir:{run}")(["an owl"])[0, -1] == words.pad
    agree(run, clip)


@torch.no_grad()
def test_padding_is_not_attended_to_there_either(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    (tmp_path / "run").mkdir()
    model = ours(FINISHED["as trained by default"])
    inference.save(tmp_path / "run", model, words)
    theirs, _ = there(tmp_path / "run")
    full = words.sequences(["what is in the picture? " * 9])[0]
    rows = [[*full[: length - 1], words.eos] for length in (3, CONTEXT - 1, CONTEXT)]  # up to a full context

    def filled(pad: int) -> Tensor:
        return torch.tensor([row + [pad] * (CONTEXT - len(row)) for row in rows])

    torch.testing.assert_close(
        theirs.encode_text(filled(words.eos), normalize=True),
        model.embed_texts(filled(words.pad)),
        **TOLERANCE,
    )


def test_an_exported_directory_is_named_as_the_hub_asks(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    model = ours(FINISHED["as trained by default"])
    inference.save(tmp_path / "run", model, tiny.tokenizer())
    export_command(tmp_path / "run", "open_clip", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "manifest.json",
    }  # fmt: skip
    assert "cls_emb" in " ".join(load_file(tmp_path / "out" / "open_clip_model.safetensors"))
    agree(tmp_path / "out", opened(tmp_path / "out"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SIGLIP, "pooled by attention, without class token"),
        (CLIPConfig(replace(RESNET, norm="group"), BOTH, WIDTH), "a ResNet with group norm"),
        (CLIPConfig(replace(PLAIN, activation="quick_gelu"), BOTH, WIDTH), "one alone has a QuickGELU"),
        (
            CLIPConfig(PLAIN, replace(BOTH, pooling="end"), WIDTH),
            "passes over padding and is pooled at its end",
        ),
    ],
)
def test_what_open_clip_cannot_be_is_refused(tmp_path: Path, config: CLIPConfig, message: str) -> None:
    (tmp_path / "run").mkdir()
    inference.save(tmp_path / "run", ours(config), tiny.tokenizer())
    assert opened(tmp_path / "run").model.config == config  # it is finished in another layout, or in our own
    with pytest.raises(UserError, match=f"open_clip has no layout for .*{message}"):
        export_command(tmp_path / "run", "open_clip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_somebody_changed_for_open_clip_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    inference.save(tmp_path / "run", ours(FINISHED["as trained by default"]), tiny.tokenizer())
    path = tmp_path / "run" / "open_clip_config.json"
    about = json.loads(path.read_text())
    about["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match="says two different things in model_cfg and in bifocal"):
        bifocal.load(tmp_path / "run")


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base"}, "timm_model_name is 'vit_base'"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool is True"),
        ("vision_cfg", {"pool_type": "avg"}, "normed before they are averaged"),
        ("vision_cfg", {"image_size": [32, 64]}, "must be square"),
        ("vision_cfg", {"ls_init_value": 1e-5}, "ls_init_value is 1e-05"),
        ("text_cfg", {"hf_model_name": "roberta"}, "hf_model_name is 'roberta'"),
        ("text_cfg", {"embed_cls": True}, "a class token of its own"),
        ("text_cfg", {"embed_cls": True, "no_causal_mask": True}, "a class token of its own"),
        ("text_cfg", {"pool_type": "eos", "eos_id": 600}, "which the vocabulary does not hold"),
        ("text_cfg", {"pool_type": "eos", "eos_id": 7}, "its tokenizer ends them with"),
        ("text_cfg", {"pool_type": "first"}, "sees only the begin token"),
        ("text_cfg", {"tokenizer_kwargs": {"strip_sep_token": True}}, "tokenizer_kwargs"),
        ("text_cfg", {"layers": 1}, "do not fit its configuration"),
        ("", {"multimodal_cfg": {}}, "is a CoCa"),
    ],
)
def test_a_configuration_that_is_not_here_is_refused(
    tmp_path: Path, part: str, changes: Any, message: str
) -> None:
    place = directory(tmp_path / "theirs")
    path = place / "open_clip_config.json"
    about = json.loads(path.read_text())
    (about["model_cfg"][part] if part else about["model_cfg"]).update(changes)
    path.write_text(json.dumps(about))
    if "embed_cls" in changes:
        tensors = load_file(place / "open_clip_model.safetensors")
        tensors |= {"cls_emb": torch.zeros(32), "positional_embedding": torch.randn(CONTEXT + 1, 32)}
        save_file(tensors, place / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        bifocal.load(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_cfg": {"embed_dim": 4}}'])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str) -> None:
    place = directory(tmp_path / "theirs")
    (place / "open_clip_config.json").write_text(content)
    with pytest.raises(UserError, match="it is no configuration of open_clip"):
        bifocal.load(place)


@pytest.mark.parametrize(
    ("part", "said", "reason"),
    [
        ("model_cfg", {"quick_gelu": False}, "says hidden_act 'quick_gelu'"),
        ("preprocess_cfg", {"mean": [0.5, 0.5, 0.5]}, "their mean is"),
        ("preprocess_cfg", {"resize_mode": "squash"}, "their way of making pictures square is"),
    ],
)
def test_two_configurations_that_disagree_are_refused(
    tmp_path: Path, part: str, said: dict[str, Any], reason: str
) -> None:
    place, both = directory(tmp_path / "theirs", **MANNERS["openai's"]), tmp_path / "both"
    export_command(place, "transformers", both)
    config = json.loads((place / "open_clip_config.json").read_text())
    (both / "open_clip_config.json").write_text(json.dumps(config))
    assert opened(both).model.config.text.activation == "quick_gelu"
    config[part] |= said
    (both / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{reason}.*the weights were trained with one of them"):
        bifocal.load(both)


def test_a_clip_finished_by_an_earlier_version_opens(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    model = tiny.clip(len(words), context=CONTEXT)
    (tmp_path / "old").mkdir()
    words.write(tmp_path / "old" / "tokenizer.json")
    save_file(model.state_dict(), tmp_path / "old" / "model.safetensors")
    about = {
        "model_type": "bifocal-clip", "width": 16,
        "vision": {
            "picture_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 2, "mlp_ratio": 4.0,
            "pooling": "mean",
        },
        "text": {
            "vocabulary": len(words), "context": CONTEXT, "width": 32, "layers": 1, "heads": 2, "mlp_ratio": 4.0,
        },
    }  # fmt: skip
    (tmp_path / "old" / "config.json").write_text(json.dumps(about))
    clip = opened(tmp_path / "old")
    assert isinstance(clip.model, CLIPModel)
    assert torch.equal(
        clip.embed_texts(TEXTS), model.embed_texts(inference.clip_tokens(TEXTS, words, CONTEXT))
    )
