"""Chameleon: transformers judges ours, and its tiny random models open here with their own words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import bifocal
import tiny
from bifocal import inference
from bifocal.commands.exchange import export_command, import_command
from bifocal.config import UserError
from bifocal.data.pictures import to_tensor
from bifocal.interop.vlm import layout_for
from bifocal.interop.vqgan import read_vqgan
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.vlm import VLM
from interop.foreign import fill, pictures
from interop.vlms import CODES, asked, chameleon_directory, logits_of, opened

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}  # of logits of a few units in float32
CONVERSATION = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "compare"},
            {"type": "image", "image": pictures()[0]},
            {"type": "image", "image": pictures()[1]},
        ],
    },
    {"role": "assistant", "content": "an owl"},
    {"role": "user", "content": "is <image>, IMGIMGBZ or </s> a token?"},
]


def ours(quantizer: Any = None, vqvae: Any = None, **language: Any) -> VLM:
    """A discrete VLM whose codebook lies among what its encoder says."""
    shape = replace(tiny.vlm("discrete").config, number_pictures=True)
    codes = QuantizerConfig(**{"codes": tiny.CODES, "width": 4, **(quantizer or {})})
    shape = replace(
        shape,
        language=replace(shape.language, **language),
        vqvae=replace(shape.vqvae, quantizer=codes, **(vqvae or {})),
    )
    model = VLM(shape)
    fill(model.language_model)
    path: Any = model.image_path
    path.vqmodel.train()(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def finished(place: Path, model: VLM) -> Path:
    place.mkdir()
    inference.save(place, model, tiny.tokenizer())
    return place


def there(place: Path) -> tuple[Any, Any]:
    model, report = transformers.ChameleonForConditionalGeneration.from_pretrained(
        place, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval(), transformers.AutoProcessor.from_pretrained(place)


def given_to(processor: Any, messages: list[dict[str, Any]]) -> Any:
    # ChameleonProcessor keeps no template, its tokenizer does
    return processor.apply_chat_template(
        messages, chat_template=processor.tokenizer.chat_template, tokenize=True, return_dict=True,
        return_tensors="pt", sanitize_control_tokens=True,
    )  # fmt: skip


def compare(model: Any, vlm: inference.VLM, given: Any, messages: list[dict[str, Any]]) -> None:
    """Tokens equal, and the logits of all but codes, which their class masks, to the tolerance."""
    tokens, logits = logits_of(vlm, messages)
    assert given["input_ids"][0].tolist() == tokens
    with torch.no_grad():
        wanted = model(**given).logits[0]
    words = torch.ones(logits.shape[1], dtype=torch.bool)
    words[list(vlm.tokenizer.codes)] = False
    assert not torch.equal(wanted[:, ~words], logits[:, ~words])
    torch.testing.assert_close(wanted[:, words], logits[:, words], **TOLERANCE)


def test_a_finished_run_is_a_chameleon_that_says_the_same(tmp_path: Path) -> None:
    place = finished(tmp_path / "run", ours())
    model, processor = there(place)
    for messages in (asked(shown=2), CONVERSATION):
        compare(model, opened(place), given_to(processor, messages), messages)
    by_hand = processor(images=pictures()[:1], text="<s>1<image>what is in the picture?", return_tensors="pt")
    compare(model, opened(place), by_hand, asked())


def test_its_pictures_become_the_same_pixels_and_codes(tmp_path: Path) -> None:
    place = finished(tmp_path / "run", ours())
    model, processor = there(place)
    pixels: Tensor = processor.image_processor(pictures(), return_tensors="pt")["pixel_values"]
    vlm = opened(place)
    # each byte is the same; products with 2/255 differ in their last bit
    torch.testing.assert_close(pixels, 2 * vlm._pixels(pictures(), 32) - 1, rtol=0, atol=1e-6)
    codes = vlm._encode(pictures())
    assert codes is not None and len(codes.unique()) > 10
    assert torch.equal(model.get_image_tokens(pixels), codes + vlm.tokenizer.codes.start)


def test_a_finished_run_comes_back_as_it_was_and_draws(tmp_path: Path) -> None:
    model = ours(quantizer={"update": "ema"})
    back = opened(finished(tmp_path / "run", model))
    assert back.model.config == model.config
    before = inference.VLM(model, tiny.tokenizer(), "before", torch.device("cpu"))
    one, other = (each.draw("an owl", seed=1)[0] for each in (before, back))
    assert one.tobytes() == other.tobytes()
    assert back.vqvae.codebook_size == tiny.CODES


@pytest.mark.parametrize("changes", [{"normalise": True}, {"kind": "simvq"}], ids=["unit norm", "simvq"])
def test_other_codebooks_are_written_as_the_plain_one_that_gives_the_same_codes(
    tmp_path: Path, changes: Any
) -> None:
    place = finished(tmp_path / "run", ours(quantizer=changes))
    # what a map of the codebook has learnt would be lost with it
    kind = json.loads((place / "config.json").read_text())["model_type"]
    assert kind == ("bifocal-vlm" if "kind" in changes else "chameleon")
    export_command(place, "chameleon", tmp_path / "out")
    model, processor = there(tmp_path / "out")
    compare(model, opened(place), given_to(processor, asked()), asked())
    images = to_tensor([tiny.picture(0)])
    codes = opened(place).vqvae.encode(images)
    assert torch.equal(opened(tmp_path / "out").vqvae.encode(images), codes)
    torch.testing.assert_close(
        opened(tmp_path / "out").vqvae.decode(codes), opened(place).vqvae.decode(codes)
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qk_norm": False}, r"always has a QK-norm.*--language\.qk-norm true"),
        ({"head_norm": "rms"}, r"no place for the QK-norm.*--language\.head-norm layer"),
        (
            {"quantizer": {"kind": "fsq", "codes": 24, "width": 2, "levels": (6, 4)}},
            'of the kind "fsq" has no',
        ),
        ({"vqvae": {"likelihood": "logit-laplace"}}, "logit-Laplace"),
    ],
)
def test_what_the_class_has_no_place_for_stays_ours_and_is_refused(
    tmp_path: Path, changes: Any, reason: str
) -> None:
    place = finished(tmp_path / "run", ours(**changes))
    assert json.loads((place / "config.json").read_text())["model_type"] == "bifocal-vlm"
    assert layout_for(opened(place).model) is None
    with pytest.raises(UserError, match=reason):
        export_command(place, "chameleon", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_discrete_vlm_is_no_llava(tmp_path: Path) -> None:
    place = finished(tmp_path / "run", ours())
    with pytest.raises(UserError, match="this VLM is discrete: export it to chameleon"):
        export_command(place, "llava", tmp_path / "out")


# ---------------------------------------------------------------- theirs


def test_a_chameleon_directory_opens_with_its_own_words_and_codes(tmp_path: Path) -> None:
    model = chameleon_directory(tmp_path / "theirs")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "theirs")
    vlm = opened(tmp_path / "theirs")
    shown = pictures()[:1]
    given = processor(images=shown, text="<image>what is it?", return_tensors="pt")
    codes = vlm._encode(shown)
    assert codes is not None and len(codes.unique()) > 5
    assert torch.equal(model.get_image_tokens(given["pixel_values"]), codes + vlm.tokenizer.codes.start)
    compare(model, vlm, given, asked("what is it?"))


def test_a_chameleon_directory_answers_and_says_why_it_does_not_draw(tmp_path: Path) -> None:
    model = chameleon_directory(tmp_path / "theirs")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "theirs")
    vlm = opened(tmp_path / "theirs")
    given = processor(images=pictures()[:1], text="<image>what?", return_tensors="pt")
    never = [[index] for index in vlm.tokenizer.never_said]
    said = model.generate(**given, max_new_tokens=8, do_sample=False, bad_words_ids=never)
    new = said[0, given["input_ids"].shape[1] :]
    answer = vlm.answer(pictures()[0], "what?", max_new_tokens=8)
    assert answer.text == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    with pytest.raises(ValueError, match="without a decoder"):
        vlm.draw("an owl")


def test_an_imported_chameleon_is_a_run_that_opens_there(tmp_path: Path) -> None:
    chameleon_directory(tmp_path / "theirs")
    import_command(tmp_path / "theirs", tmp_path / "run")
    model, processor = there(tmp_path / "run")
    given = processor(images=pictures()[:1], text="<image>what is it?", return_tensors="pt")
    compare(model, opened(tmp_path / "run"), given, asked("what is it?"))


def test_the_vqvae_inside_is_taken_alone_when_asked_for(tmp_path: Path) -> None:
    chameleon_directory(tmp_path / "theirs")
    images = to_tensor([tiny.picture(0)])
    wanted = read_vqgan(tmp_path / "theirs").encode(images)
    import_command(tmp_path / "theirs", tmp_path / "run", legacy_beta=True)
    alone = bifocal.load(tmp_path / "run", dtype="float32")
    assert isinstance(alone, inference.VQVAE) and torch.equal(alone.encode(images), wanted)
    run = finished(tmp_path / "discrete", ours())
    export_command(run, "chameleon-vq", tmp_path / "out")
    exported = bifocal.load(tmp_path / "out", dtype="float32")
    assert isinstance(exported, inference.VQVAE)
    assert torch.equal(exported.encode(images), opened(run).vqvae.encode(images))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("swin_norm", True, "swin_norm is True"),
        ("vocabulary_map", {"<image>": 5}, f"should name {CODES} codes, IMGIMGAZ to IMGIMGDJZ"),
        ("vq_config", {"double_latent": True}, "double_latent"),
    ],
)
def test_what_is_not_here_is_refused(tmp_path: Path, name: str, value: Any, reason: str) -> None:
    chameleon_directory(tmp_path / "theirs")
    about = json.loads((tmp_path / "theirs" / "config.json").read_text())
    about[name] = value
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=reason):
        opened(tmp_path / "theirs")
