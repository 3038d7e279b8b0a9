"""Llava: transformers judges ours, and its tiny random models open here with their own words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import tiny
from bifocal import inference
from bifocal.commands.exchange import export_command, import_command
from bifocal.config import UserError
from bifocal.data.text import TextTokenizer
from bifocal.interop.vlm import layout_for
from bifocal.models.vlm import VLM
from interop.foreign import SIGLIP, fill, pictures
from interop.vlms import asked, llava_directory, logits_of, opened

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}  # of logits of a few units in float32
CONVERSATION = [
    {"role": "system", "content": "say little"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "compare"},
            {"type": "image", "image": pictures()[0]},
            {"type": "text", "text": "\nwith"},
            {"type": "text", "text": "this"},
            {"type": "image", "image": pictures()[1]},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "an owl"}]},
    {"role": "user", "content": "is <image> or </s> a token?"},
]


def ours(words: TextTokenizer | None = None, **changes: Any) -> VLM:
    words = words or tiny.tokenizer()
    shape = replace(tiny.vlm("continuous").config, number_pictures=True)
    language = replace(shape.language, vocabulary=len(words), **changes.pop("language", {}))
    model = VLM(replace(shape, language=language, first_box=words.boxes.start, **changes))
    fill(model)
    return model


def finished(place: Path, model: VLM, words: TextTokenizer | None = None) -> Path:
    place.mkdir()
    inference.save(place, model, words or tiny.tokenizer())
    return place


def there(place: Path) -> tuple[Any, Any]:
    model, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        place, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval(), transformers.AutoProcessor.from_pretrained(place)


def agree(place: Path, messages: list[dict[str, Any]], sanitize: bool = True, **template: Any) -> None:
    """Tokens are equal, logits to the tolerance. What a user types is text there too, if it is to be sanitized."""
    model, processor = there(place)
    given = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        sanitize_control_tokens=sanitize,
        **template,
    )
    tokens, logits = logits_of(opened(place), messages)
    assert given["input_ids"][0].tolist() == tokens
    with torch.no_grad():
        torch.testing.assert_close(model(**given).logits[0], logits, **TOLERANCE)


QK_NORMS = [{}, {"qk_norm": True, "head_norm": "rms"}]


@pytest.mark.parametrize("language", QK_NORMS, ids=["llama", "qwen3"])
def test_a_finished_run_is_a_llava_that_says_the_same(tmp_path: Path, language: Any) -> None:
    place = finished(tmp_path / "run", ours(language=language))
    agree(place, asked(shown=2))
    agree(place, CONVERSATION)
    names = load_file(place / "model.safetensors").keys()
    # the prefixes that other engines ask for
    assert "vision_tower.vision_model.embeddings.class_embedding" in names
    assert {"language_model.lm_head.weight", "language_model.model.layers.1.mlp.up_proj.weight"} <= names


def test_a_head_that_is_the_embedding_table_is_written_once(tmp_path: Path) -> None:
    place = finished(tmp_path / "run", ours(language={"tied": True}))
    assert "language_model.lm_head.weight" not in load_file(place / "model.safetensors")
    agree(place, asked(shown=2))


def test_a_siglip_tower_stands_in_a_llava_too(tmp_path: Path) -> None:
    agree(finished(tmp_path / "run", ours(vision=SIGLIP.vision, feature_layer=-2)), asked(shown=2))


def test_pictures_are_prepared_whole_and_equal(tmp_path: Path) -> None:
    place = finished(tmp_path / "run", ours())
    _, processor = there(place)
    vlm = opened(place)
    vision = vlm.model.config.vision
    mean, deviation = (torch.tensor(row)[:, None, None] for row in (vision.mean, vision.deviation))
    wanted = (vlm._pixels(pictures(), vlm.picture_size) - mean) / deviation
    # each byte is the same; products with 1/255 differ in their last bit
    torch.testing.assert_close(
        processor.image_processor(pictures(), return_tensors="pt")["pixel_values"], wanted, rtol=0, atol=1e-6
    )
    about = json.loads((place / "preprocessor_config.json").read_text())
    assert (about["do_center_crop"], about["size"]) == (False, {"height": 32, "width": 32})


def test_a_finished_run_comes_back_as_it_was(tmp_path: Path) -> None:
    model = ours(feature_layer=-2)
    back = opened(finished(tmp_path / "run", model))
    assert back.model.config == model.config
    assert all(
        torch.equal(value, back.model.state_dict()[name]) for name, value in model.state_dict().items()
    )
    assert back.tokenizer.fingerprint_text == tiny.tokenizer().fingerprint_text


def test_greedy_answers_are_the_same(tmp_path: Path) -> None:
    place = finished(tmp_path / "run", ours())
    model, processor = there(place)
    given = processor.apply_chat_template(asked(), tokenize=True, return_dict=True, return_tensors="pt")
    vlm = opened(place)
    never = [[index] for index in vlm.tokenizer.never_said]
    said = model.generate(**given, max_new_tokens=8, do_sample=False, bad_words_ids=never)
    new = said[0, given["input_ids"].shape[1] :].tolist()
    answer = vlm.chat(asked(), max_new_tokens=8)
    assert answer.text == vlm.tokenizer.decode([index for index in new if index != vlm.tokenizer.eos])


def test_a_run_with_the_words_of_another_language_model_is_a_llava(tmp_path: Path) -> None:
    words = tiny.chat_tokenizer()
    place = finished(tmp_path / "run", ours(words), words)
    agree(place, asked(shown=2), add_generation_prompt=True)
    conversation = [*CONVERSATION[:3], {"role": "user", "content": "is <image> or <|im_end|> a token?"}]
    agree(place, conversation, add_generation_prompt=True)


def test_a_layer_norm_of_heads_stays_ours_and_is_refused_with_the_remedy(tmp_path: Path) -> None:
    place = finished(tmp_path / "run", ours(language={"qk_norm": True}))
    assert json.loads((place / "config.json").read_text())["model_type"] == "bifocal-vlm"
    with pytest.raises(UserError, match=r"no place for the QK-norm .*--language\.head-norm rms"):
        export_command(place, "llava", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision": replace(tiny.VISION, pre_norm=False)}, "the picture tower of a CLIP"),
        ({"pixel_shuffle": 2}, "no place for what this VLM has in pixel_shuffle"),
    ],
)
def test_what_the_class_has_no_place_for_stays_ours(tmp_path: Path, changes: Any, reason: str) -> None:
    place = finished(tmp_path / "run", ours(**changes))
    assert layout_for(opened(place).model) is None
    with pytest.raises(UserError, match=reason):
        export_command(place, "llava", tmp_path / "out")


def test_export_writes_a_directory_by_itself(tmp_path: Path) -> None:
    place = finished(tmp_path / "run", ours())
    export_command(place, "llava", tmp_path / "out")
    agree(tmp_path / "out", asked())
    with pytest.raises(UserError, match="this VLM is continuous: export it to llava"):
        export_command(place, "chameleon", tmp_path / "other")


# ---------------------------------------------------------------- theirs


@pytest.mark.parametrize("decoder", ["llama", "qwen3"])
def test_a_llava_directory_opens_with_its_own_words(tmp_path: Path, decoder: str) -> None:
    llava_directory(tmp_path / "theirs", decoder)
    agree(tmp_path / "theirs", asked(shown=2), sanitize=False, add_generation_prompt=True)
    turns = [
        *asked(),
        {"role": "assistant", "content": [{"type": "text", "text": "an owl"}]},
        *asked("red?", 0),
    ]
    agree(tmp_path / "theirs", turns, sanitize=False, add_generation_prompt=True)


def test_what_a_user_types_is_text_in_a_llava_directory(tmp_path: Path) -> None:
    llava_directory(tmp_path / "theirs")
    vlm = opened(tmp_path / "theirs")
    tokens, _ = logits_of(vlm, asked("is <image> in it?  \n</s>"))
    assert tokens.count(vlm.tokenizer.image) == 16 and vlm.tokenizer.eos not in tokens
    # but for these names all is as before
    other, _ = logits_of(vlm, asked("is"))
    assert tokens[: other.index(vlm.tokenizer.image) + 18] == other[: other.index(vlm.tokenizer.image) + 18]


def test_a_llava_directory_answers(tmp_path: Path) -> None:
    model = llava_directory(tmp_path / "theirs")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "theirs")
    vlm = opened(tmp_path / "theirs")
    question = "what is it?"
    given = processor.apply_chat_template(
        asked(question), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    never = [[index] for index in vlm.forbidden.nonzero().flatten().tolist()]
    said = model.generate(
        **given, max_new_tokens=8, do_sample=False, bad_words_ids=never, eos_token_id=2, pad_token_id=4
    )
    new = said[0, given["input_ids"].shape[1] :].tolist()
    answer = vlm.answer(pictures()[0], question, max_new_tokens=8)
    assert answer.text == processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_an_imported_llava_is_a_run_that_opens_there(tmp_path: Path) -> None:
    llava_directory(tmp_path / "theirs")
    import_command(tmp_path / "theirs", tmp_path / "run")
    agree(tmp_path / "run", asked(shown=2), sanitize=False, add_generation_prompt=True)


def test_a_directory_without_a_chat_template_speaks_vicuna(tmp_path: Path) -> None:
    llava_directory(tmp_path / "theirs")
    wanted, _ = logits_of(opened(tmp_path / "theirs"), asked(shown=2))
    (tmp_path / "theirs" / "chat_template.jinja").unlink()
    assert logits_of(opened(tmp_path / "theirs"), asked(shown=2))[0] == wanted


@pytest.mark.parametrize(
    ("part", "name", "value", "reason"),
    [
        (None, "vision_feature_select_strategy", "full", "vision_feature_select_strategy is 'full'"),
        (None, "vision_feature_layer", [-2, -1], "vision_feature_layer should be of the kind int"),
        (None, "vision_feature_layer", -9, "vision_feature_layer is -9, of 2 layers"),
        (None, "projector_hidden_act", "relu", "projector_hidden_act is 'relu'"),
        ("text_config", "model_type", "gemma", "the language model is a gemma"),
        ("text_config", "attention_bias", True, "attention_bias is True"),
        ("text_config", "rope_parameters", {"rope_type": "linear", "factor": 2.0}, "the type 'linear'"),
        ("vision_config", "model_type", "pixtral", "the picture tower is a pixtral"),
        (None, "image_token_index", 7, "the model looks for 7"),
        (None, "mm_vision_tower", "clip", "the layout of LLaVA's own repository"),
    ],
)
def test_what_is_not_here_is_refused(tmp_path: Path, part: Any, name: str, value: Any, reason: str) -> None:
    llava_directory(tmp_path / "theirs")
    about = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (about[part] if part else about)[name] = value
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=reason):
        opened(tmp_path / "theirs")
