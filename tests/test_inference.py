"""The public face: what it opens and refuses, and what it gives."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bifocal
import tiny
from bifocal import inference
from bifocal.config import UserError
from bifocal.data.batch import encode_prompt
from bifocal.data.boxes import boxes_from_text
from bifocal.data.pictures import to_tensor
from bifocal.data.sample import Message, Picture, Sample
from bifocal.data.text import TextTokenizer
from bifocal.recipes.sources import drawing_sample

Place = dict[str, Path]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished directory of each kind, with random weights."""
    words = tiny.tokenizer()
    models = {
        "vqvae": (tiny.vqvae(), None),
        "clip": (tiny.clip(len(words), context=24), words),
        "discrete": (tiny.vlm("discrete"), words),
        "continuous": (tiny.vlm("continuous"), words),
    }
    root = tmp_path_factory.mktemp("models")
    for name, (model, tokenizer) in models.items():
        (root / name).mkdir()
        inference.save(root / name, model, tokenizer)
    return {name: root / name for name in models}


def vlm(place: Path) -> inference.VLM:
    model = bifocal.load(place, dtype="float32")
    assert isinstance(model, inference.VLM)
    return model


def clip(place: Path) -> inference.CLIP:
    model = bifocal.load(place, dtype="float32")
    assert isinstance(model, inference.CLIP)
    return model


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize("name", ["vqvae", "clip", "discrete", "continuous"])
def test_a_saved_model_loads_with_the_same_weights(places: Place, name: str) -> None:
    before = {
        "vqvae": tiny.vqvae,
        "clip": lambda: tiny.clip(len(tiny.tokenizer()), context=24),
        "discrete": lambda: tiny.vlm("discrete"),
        "continuous": lambda: tiny.vlm("continuous"),
    }[name]()
    after, _ = inference.load_model(places[name])
    assert after.config == before.config
    wanted = before.state_dict()
    assert after.state_dict().keys() == wanted.keys()
    # what training keeps beside a codebook is not kept of one that is frozen inside a VLM
    training = (
        "quantize.initialised",
        "quantize.idle_steps",
        "quantize.average_counts",
        "quantize.average_sums",
    )
    same = [key for key in wanted if name != "discrete" or not key.endswith(training)]
    assert all(torch.equal(after.state_dict()[key], wanted[key]) for key in same)
    assert not after.training


def test_a_loaded_vqvae_reconstructs_as_before(places: Place) -> None:
    before = tiny.vqvae()
    after = bifocal.load(places["vqvae"], dtype="float32")
    assert isinstance(after, inference.VQVAE)
    images = torch.rand(2, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE)
    codes = after.encode(images)
    assert torch.equal(codes, before.encode(images))
    with torch.no_grad():
        assert torch.equal(after.decode(codes), before.decode(codes))
    assert (after.kind, after.name, after.picture_size, after.codebook_size) == (
        "vqvae", "vqvae", tiny.PICTURE_SIZE, tiny.CODES,
    )  # fmt: skip


def test_a_loaded_clip_embeds_as_before(places: Place) -> None:
    before, after = tiny.clip(len(tiny.tokenizer()), context=24), clip(places["clip"])
    pictures = [tiny.picture(seed) for seed in range(3)]
    with torch.no_grad():
        assert torch.equal(after.embed_images(pictures), before.embed_images(to_tensor(pictures)))
        tokens = inference.clip_tokens(["an owl"], tiny.tokenizer(), 24)
        assert torch.equal(after.embed_texts(["an owl"]), before.embed_texts(tokens))


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_a_loaded_vlm_says_what_it_said(places: Place, family: str) -> None:
    words = tiny.tokenizer()
    before = inference.VLM(tiny.vlm(family), words, "before", torch.device("cpu"))
    after = vlm(places[family])
    assert (after.kind, after.family, after.name) == ("vlm", family, family)
    picture = tiny.picture(0)
    assert after.answer(picture, "what?") == before.answer(picture, "what?")


def test_bf16_changes_the_precision_and_nothing_else(places: Place) -> None:
    model = bifocal.load(places["clip"], dtype="bfloat16")
    assert isinstance(model, inference.CLIP)
    assert model.model.visual_projection.weight.dtype == torch.bfloat16
    embedded = model.embed_images([tiny.picture(0)])
    assert embedded.dtype == torch.float32
    # bf16 keeps 8 bits; a few layers of it leave about 1% of an entry
    exact = clip(places["clip"]).embed_images([tiny.picture(0)])
    assert torch.nn.functional.cosine_similarity(embedded, exact).item() > 0.99


def broken(places: Place, tmp_path: Path, name: str = "vqvae") -> Path:
    return Path(shutil.copytree(places[name], tmp_path / "broken"))


def refused(place: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        bifocal.load(place)
    assert "\n" not in str(caught.value)


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere is not a finished model: it does not exist")


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, r"no config.json \(is its training done\?\)")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "not a finished model")


def test_a_half_written_run_is_refused(places: Place, tmp_path: Path) -> None:
    place = broken(places, tmp_path)
    (place / "model.safetensors").unlink()
    refused(place, "no model.safetensors: its training did not finish; resume it")


def test_cut_off_weights_are_refused(places: Place, tmp_path: Path) -> None:
    place = broken(places, tmp_path)
    content = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(place, "model.safetensors does not fit its config.json or is damaged")


def test_weights_of_another_shape_are_refused(places: Place, tmp_path: Path) -> None:
    place = broken(places, tmp_path)
    about = json.loads((place / "config.json").read_text())
    about["latent_channels"] = 64
    (place / "config.json").write_text(json.dumps(about))
    refused(place, "model.safetensors does not fit its config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "model_type None"),
        ('{"model_type": "llama"}', "model_type 'llama'; this version opens bifocal-vqvae"),
        ('{"model_type": "bifocal-vqvae"}', "config.json"),
    ],
)
def test_a_damaged_config_is_refused(places: Place, tmp_path: Path, content: str, message: str) -> None:
    place = broken(places, tmp_path)
    (place / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        bifocal.load(place)


def test_a_damaged_tokenizer_is_refused(places: Place, tmp_path: Path) -> None:
    place = broken(places, tmp_path, "discrete")
    (place / "tokenizer.json").write_text("{")
    refused(place, "tokenizer.json is damaged")


def test_a_tokenizer_of_more_words_than_the_model_is_refused(places: Place, tmp_path: Path) -> None:
    place = broken(places, tmp_path, "discrete")
    words = TextTokenizer.train(tiny.TEXTS * 4, size=400, codes=999, box_bins=8)
    words.write(place / "tokenizer.json")
    refused(place, f"is damaged: its tokenizer names {len(words)} tokens and the model has ")


def test_a_missing_tokenizer_is_refused(places: Place, tmp_path: Path) -> None:
    place = broken(places, tmp_path, "discrete")
    (place / "tokenizer.json").unlink()
    refused(place, "no tokenizer.json, and text is needed")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "toaster"}, "no device 'toaster'"),
        ({"dtype": "float8"}, "'float8' is none of auto, float32"),
    ],
)
def test_a_device_or_precision_that_is_none_is_refused(
    places: Place, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        bifocal.load(places["vqvae"], **settings)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_a_picture_of_one_pixel_is_answered(places: Place, family: str) -> None:
    pixel = np.full((1, 1, 3), 200, np.uint8)
    whole = np.full((tiny.PICTURE_SIZE, tiny.PICTURE_SIZE, 3), 200, np.uint8)
    model = vlm(places[family])
    assert model.answer(pixel, "what?") == model.answer(whole, "what?")


def test_a_picture_of_16_bits_is_answered_as_its_8_bits(places: Place, tmp_path: Path) -> None:
    grey = tiny.picture(0)[:, :, 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    model = vlm(places["continuous"])
    plain = model.answer(np.repeat(grey[:, :, None], 3, axis=2), "what?")
    assert model.answer(tmp_path / "deep.png", "what?") == plain


def test_every_way_to_hand_over_a_picture_is_the_same(places: Place, tmp_path: Path) -> None:
    array = tiny.picture(0)
    Image.fromarray(array).save(tmp_path / "a.png")
    ways = [
        array, [array], Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
    ]  # fmt: skip
    model = vlm(places["continuous"])
    answers = [model.answer(way, "what?") for way in ways]
    assert all(answer == answers[0] for answer in answers)
    scores = [model.score(way, "what?", ["owl", "two hearts"]) for way in ways]
    assert all(score == scores[0] for score in scores)


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_an_array_that_is_no_picture_is_refused(places: Place, array: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"must be \(H, W, 3\) uint8 RGB"):
        vlm(places["continuous"]).answer(array, "what?")


# ---------------------------------------------------------------- CLIP


def test_probabilities_of_labels_sum_to_one(places: Place) -> None:
    pictures = [tiny.picture(seed) for seed in range(3)]
    shares = clip(places["clip"]).classify(pictures, ["owl", "dog", "mushroom"])
    assert shares.shape == (3, 3)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3), rtol=1e-6, atol=1e-6)


def test_the_order_of_labels_does_not_matter(places: Place) -> None:
    model, pictures = clip(places["clip"]), [tiny.picture(0)]
    one = model.classify(pictures, ["owl", "dog", "heart"])
    other = model.classify(pictures, ["heart", "owl", "dog"])
    torch.testing.assert_close(one[:, [2, 0, 1]], other, rtol=1e-5, atol=1e-6)


def test_the_classifier_follows_labels_and_templates(places: Place) -> None:
    model = clip(places["clip"])
    first = model.classifier(["owl", "dog"])
    assert torch.equal(model.classifier(["owl", "dog"]), first)
    assert not torch.allclose(model.classifier(["owl", "dog"], ["two of {}"]), first)
    alone = model.embed_texts(["a dog"])
    assert torch.allclose(model.classifier(["owl", "dog"], ["{a}"])[1], alone[0], atol=1e-6)


def test_no_labels_are_refused(places: Place) -> None:
    with pytest.raises(UserError, match="no labels"):
        clip(places["clip"]).classify([tiny.picture(0)], [])


def test_a_text_longer_than_the_context_is_refused(places: Place) -> None:
    with pytest.raises(UserError, match=r"a text of \d+ tokens does not fit this model's 22: 'owl owl"):
        clip(places["clip"]).embed_texts(["owl " * 40])


def test_nothing_to_embed_gives_nothing(places: Place) -> None:
    model = clip(places["clip"])
    assert model.embed_images([]).shape == (0, 16)
    assert model.embed_texts([]).shape == (0, 16)


# ---------------------------------------------------------------- VLM


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_a_batch_is_answered_as_each_alone(places: Place, family: str) -> None:
    model = vlm(places[family])
    requests = [
        ([tiny.picture(0)], "what is in the picture?"),
        ([], "hello"),
        ([tiny.picture(1), tiny.picture(2)], "same?"),
        ([tiny.picture(3)], "where is the owl?"),
    ]
    together = model.answer_batch(requests, max_new_tokens=8, batch_size=3)
    alone = [model.answer(pictures, question, max_new_tokens=8) for pictures, question in requests]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.finish_reason for answer in together] == [answer.finish_reason for answer in alone]


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_a_picture_that_comes_several_times_is_encoded_once(
    places: Place, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vlm(places[family])
    path, seen = model.model.image_path, list[int]()
    encode = path.encode
    monkeypatch.setattr(path, "encode", lambda images: (seen.append(len(images)), encode(images))[1])
    one, other = tiny.picture(0), tiny.picture(1)
    together = model.encode([one, other, one.copy(), other, one])
    assert together is not None and seen == [2]
    distinct = encode(model._pixels([one, other], model.picture_size))
    assert torch.equal(together, distinct[[0, 1, 0, 1, 0]])


def test_pictures_of_a_batch_stand_where_their_messages_have_them(places: Place) -> None:
    model = vlm(places["continuous"])
    shown = [tiny.picture(0), tiny.picture(1)]
    between = (Message("user", ("is", Picture(0), "more than", Picture(1), "?")),)
    asked = [{"type": "text", "text": "is"}, {"type": "image", "image": shown[0]}]
    asked += [{"type": "text", "text": "more than"}, {"type": "image", "image": shown[1]}]
    chat = [{"role": "user", "content": [*asked, {"type": "text", "text": "?"}]}]
    placed, in_front = model.answer_batch([(shown, between), (shown, "is more than?")], max_new_tokens=8)
    assert placed.text == model.chat(chat, max_new_tokens=8).text
    assert placed.logprobs != in_front.logprobs


def test_an_answer_says_why_it_ended(places: Place) -> None:
    model = vlm(places["continuous"])
    answer = model.answer(tiny.picture(0), "what?", max_new_tokens=3)
    assert answer.finish_reason in ("stop", "length")
    assert (answer.finish_reason == "length") == (len(answer.logprobs) == 3)
    assert all(logprob <= 0 for logprob in answer.logprobs)
    assert answer.boxes == tuple(boxes_from_text(answer.text, 8))


def test_an_answer_is_words_and_boxes_only(places: Place) -> None:
    model = vlm(places["discrete"])
    forbidden = {index for index, never in enumerate(model.forbidden.tolist()) if never}
    words = model.tokenizer
    assert forbidden == {*words.codes, *(set(words.special.values()) - {words.eos})}


def test_a_chat_of_one_question_is_that_answer(places: Place) -> None:
    model, array = vlm(places["discrete"]), tiny.picture(0)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    wanted = model.answer(array, "what?")
    for part in (
        {"type": "image", "image": array},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
    ):
        content = [part, {"type": "text", "text": "what?"}]
        assert model.chat([{"role": "user", "content": content}]) == wanted


def test_earlier_turns_are_heard(places: Place) -> None:
    model = vlm(places["continuous"])

    def chat(said: str) -> inference.Answer:
        picture = {"type": "image", "image": tiny.picture(0)}
        return model.chat(
            [
                {"role": "user", "content": [picture, {"type": "text", "text": "what?"}]},
                {"role": "assistant", "content": said},
                {"role": "user", "content": "is it red?"},
            ]
        )

    assert chat("an owl").logprobs != chat("two hearts").logprobs


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "last message must be the user's"),
        ([{"role": "assistant", "content": "hi"}], "last message must be the user's"),
        ([{"content": "hi"}], "message 0 needs a role"),
        ([{"role": "user"}], "message 0 needs content"),
        ([{"role": "user", "content": [{"type": "video"}]}], "part of type 'video'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "'text' without 'text'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "http://a/b.png"}]}], "base64"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,#"}]}],
            "base64 is broken",
        ),
    ],
)
def test_messages_that_are_none_are_refused(
    places: Place, messages: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        vlm(places["continuous"]).chat(messages)


def test_scores_are_log_probabilities_of_each_answer_alone(places: Place) -> None:
    model, picture = vlm(places["continuous"]), tiny.picture(0)
    both = model.score([picture], "what?", ["owl", "two hearts"])
    assert all(score < 0 for score in both)
    alone = [model.score([picture], "what?", [text])[0] for text in ("owl", "two hearts")]
    assert both == pytest.approx(alone, rel=1e-5)  # float32; in company the sums are in another order


def test_a_discrete_model_draws(places: Place) -> None:
    model = vlm(places["discrete"])
    pictures = model.draw("an owl", n=2, seed=1)
    assert [picture.size for picture in pictures] == [(tiny.PICTURE_SIZE, tiny.PICTURE_SIZE)] * 2
    again = model.draw("an owl", n=2, seed=1)
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in again]
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_a_continuous_model_says_that_it_cannot_draw(places: Place) -> None:
    with pytest.raises(UserError, match=r"continuous VLM: .* cannot draw; use a discrete VLM"):
        vlm(places["continuous"]).draw("an owl")


def test_only_a_discrete_model_has_a_vqvae(places: Place) -> None:
    assert vlm(places["discrete"]).vqvae.codebook_size == tiny.CODES
    with pytest.raises(UserError, match="it has no VQ-VAE"):
        _ = vlm(places["continuous"]).vqvae


# ---------------------------------------------------------------- how an answer is told


def asked(text: str = "what?", seed: int = 0) -> list[dict[str, object]]:
    picture = {"type": "image", "image": tiny.picture(seed)}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_stop_text_ends_an_answer_before_it(places: Place, temperature: float) -> None:
    model = vlm(places["continuous"])
    free = model.chat(asked(), temperature=temperature, max_new_tokens=30)
    stop = free.text[len(free.text) // 2 :][:3]
    ended = model.chat(asked(), temperature=temperature, max_new_tokens=30, stop=["never said", stop])
    assert ended.text == free.text[: free.text.index(stop)].strip()
    assert ended.finish_reason == "stop"
    assert ended.logprobs == pytest.approx(free.logprobs[: len(ended.logprobs)], abs=1e-4)
    assert len(ended.logprobs) < len(free.logprobs)


@pytest.mark.parametrize("stop", ["owl", ["owl", ""]])
def test_stop_texts_that_are_none_are_refused(places: Place, stop: object) -> None:
    with pytest.raises(ValueError, match="stop must be a list of texts that are not empty"):
        vlm(places["continuous"]).chat(asked(), stop=stop)  # type: ignore[arg-type]


def test_the_likeliest_tokens_stand_beside_each(places: Place) -> None:
    model = vlm(places["continuous"])
    answer = model.answer(tiny.picture(0), "what?", max_new_tokens=6, top_logprobs=3)
    assert len(answer.top_logprobs) == len(answer.logprobs)
    for logprob, likely in zip(answer.logprobs, answer.top_logprobs, strict=True):
        assert likely[0][1] == pytest.approx(logprob, abs=1e-6)  # greedy: the likeliest is what was said
        assert [value for _, value in likely] == sorted((value for _, value in likely), reverse=True)
        assert len(likely) == 3 and all(isinstance(text, str) for text, _ in likely)
    assert model.answer(tiny.picture(0), "what?").top_logprobs == ()


def test_of_several_answers_each_is_that_of_its_seed(places: Place) -> None:
    model = vlm(places["continuous"])
    several = model.chat(asked(), n=3, temperature=1.5, seed=7, max_new_tokens=10)
    alone = [model.chat(asked(), temperature=1.5, seed=7 + i, max_new_tokens=10) for i in range(3)]
    assert [answer.text for answer in several] == [answer.text for answer in alone]
    assert len({answer.text for answer in several}) > 1
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        model.chat(asked(), n=0)


def test_a_seed_gives_the_same_answer_whatever_the_batch(places: Place) -> None:
    model = vlm(places["discrete"])
    conversations = [asked("what?", 1), asked("is there an owl?", 2), asked("what?", 3), asked("same?", 1)]
    options = {"temperature": 1.3, "seed": 5, "max_new_tokens": 10}
    alone = [model.chat(messages, **options).text for messages in conversations]  # type: ignore[call-overload]
    for batch_size in (1, 3, 4):
        batch = model.chat_batch(conversations, batch_size=batch_size, **options)  # type: ignore[arg-type]
        assert [answer.text for answer in batch] == alone


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_a_stream_is_the_answer_in_pieces(places: Place, family: str) -> None:
    model = vlm(places[family])
    options = {"temperature": 1.2, "seed": 2, "max_new_tokens": 20}
    whole = model.chat(asked(), **options)  # type: ignore[call-overload]
    told = list(model.stream(asked(), **options))  # type: ignore[arg-type]
    assert "".join(piece.text for piece in told).strip() == whole.text
    assert [piece.finish_reason for piece in told] == [None] * (len(told) - 1) + [whole.finish_reason]
    assert tuple(value for piece in told for value in piece.logprobs) == pytest.approx(
        whole.logprobs, abs=1e-4
    )


def test_a_stream_holds_back_what_may_become_a_stop_text(places: Place) -> None:
    model = vlm(places["continuous"])
    free = model.chat(asked(), max_new_tokens=30).text
    stop = free[len(free) // 2 :][:4]
    told = list(model.stream(asked(), max_new_tokens=30, stop=[stop]))
    assert "".join(piece.text for piece in told).strip() == free[: free.index(stop)].strip()
    assert told[-1].finish_reason == "stop"


def test_an_answer_may_hold_pictures_and_a_picture_be_drawn_anew(places: Place) -> None:
    model = vlm(places["discrete"])
    words = model.tokenizer
    with torch.no_grad():
        model.model.language_model.lm_head.weight.mul_(
            0.02
        )  # nearly all tokens alike, so that it draws now and then
    for seed in range(40):
        drawn = model.chat(
            asked("draw an owl"), may_draw=True, temperature=1.0, seed=seed, max_new_tokens=400
        )
        if drawn.images:
            break
    assert drawn.images and all(image.size == (tiny.PICTURE_SIZE,) * 2 for image in drawn.images)
    assert words.decode([words.image_begin]) == ""  # pictures leave no trace in the text
    conversation = [
        *asked("draw an owl"),
        {"role": "assistant", "content": [{"type": "image", "image": drawn.images[0]}]},
        {"role": "user", "content": "draw it anew"},
    ]
    for seed in range(40):
        options = {"may_draw": True, "temperature": 1.0, "seed": seed, "max_new_tokens": 200}
        again = model.chat(conversation, **options)  # type: ignore[call-overload]
        if again.images:
            break
    assert again.images and all(image.size == (tiny.PICTURE_SIZE,) * 2 for image in again.images)
    (streamed, *_) = (image for told in model.stream(conversation, **options) for image in told.images)  # type: ignore[arg-type]
    assert streamed.tobytes() == again.images[0].tobytes()
    (batched,) = model.chat_batch([conversation], **options)  # type: ignore[arg-type]
    assert [image.tobytes() for image in batched.images] == [image.tobytes() for image in again.images]
    without = model.chat(asked("draw an owl"), temperature=1.0, seed=seed, max_new_tokens=400)
    assert without.images == ()


def test_a_picture_is_drawn_from_words_about_another(places: Place) -> None:
    model = vlm(places["discrete"])
    shown = [[tiny.picture(0)], [tiny.picture(1), tiny.picture(2)], []]
    together = model.draw_batch(["make it red"] * 3, pictures=shown, seed=4)
    alone = [model.draw("make it red", pictures=some, seed=4 + place)[0] for place, some in enumerate(shown)]
    assert [image.tobytes() for image in together] == [image.tobytes() for image in alone]
    others = {model.draw("make it red", pictures=[tiny.picture(n)], seed=4)[0].tobytes() for n in (0, 1, 2)}
    assert len(others) == 3  # what is shown counts


def test_guidance_leads_away_from_the_conversation_without_its_words(places: Place) -> None:
    """At guidance 0 the words do not count and the picture does: so a dropped prompt was trained."""
    model = vlm(places["discrete"])

    def drawn(words: str, seen: int) -> bytes:
        return model.draw(words, pictures=[tiny.picture(seen)], guidance=0.0, seed=3)[0].tobytes()

    assert drawn("make it red", 0) == drawn("two hearts", 0)
    assert drawn("make it red", 0) != drawn("make it red", 1)
    turns = [Message("user", (Picture(0), "make it red"))]
    empty = model.drawing(2.0, turns).empty
    blank = drawing_sample(
        Sample("s", "text-to-image", "all", ("a", "b"), (*turns, Message("assistant", (Picture(1),)))),
        blank=True,
    )
    learnt = encode_prompt(blank.messages, model.template)
    assert empty is not None and empty.tokens == learnt.tokens[: len(empty.tokens)]
    assert empty.pictures == learnt.pictures[:1]


def test_a_continuous_model_that_may_draw_is_refused(places: Place) -> None:
    with pytest.raises(UserError, match="continuous is a continuous VLM: it reads pictures as vectors"):
        vlm(places["continuous"]).chat(asked(), may_draw=True)


def test_drawings_are_those_of_their_seeds_and_a_clip_puts_them_in_order(places: Place) -> None:
    model, judge = vlm(places["discrete"]), clip(places["clip"])
    drawn = model.draw("an owl", n=3, seed=4)
    alone = [model.draw("an owl", seed=4 + i)[0] for i in range(3)]
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in alone]
    ordered = model.draw("an owl", n=3, seed=4, rerank=judge)
    cosines = judge.embed_images(ordered) @ judge.embed_texts(["an owl"])[0]
    assert cosines.tolist() == sorted(cosines.tolist(), reverse=True)
    assert {image.tobytes() for image in ordered} == {image.tobytes() for image in drawn}


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_scores_of_many_answers_are_those_of_each(places: Place, family: str) -> None:
    model = vlm(places[family])
    answers = ["owl", "two hearts", "a red tile", "no", ""]
    together = model.score([tiny.picture(0)], "what?", answers * 20)
    alone = [model.score([tiny.picture(0)], "what?", [answer])[0] for answer in answers]
    assert together == pytest.approx(alone * 20, rel=1e-4)
    assert model.score([tiny.picture(0)], "what?", []) == []


# ---------------------------------------------------------------- int8


def test_an_int8_model_answers_nearly_as_before(places: Place) -> None:
    rounded, exact = bifocal.load(places["continuous"], dtype="int8"), bifocal.load(places["continuous"])
    assert isinstance(rounded, inference.VLM) and isinstance(exact, inference.VLM)
    assert rounded.model.language_model.lm_head.weight.dtype == torch.int8
    assert rounded.fingerprint != exact.fingerprint
    answers = ["owl", "two hearts", "a red tile"]
    near = [model.score([tiny.picture(0)], "what?", answers) for model in (rounded, exact)]
    assert near[0] == pytest.approx(near[1], rel=0.1)
    assert near[0] != near[1]
    assert rounded.answer(tiny.picture(0), "what?", max_new_tokens=8).logprobs


@pytest.mark.parametrize("name", ["vqvae", "clip"])
def test_int8_leaves_what_has_no_decoder_as_it_is_and_says_so(
    places: Place, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bifocal.load(places[name], dtype="int8").fingerprint == bifocal.load(places[name]).fingerprint
    assert f"{places[name]} has no decoder to round to int8" in capsys.readouterr().err


def test_int8_is_refused_beyond_a_cpu(places: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bifocal.inference.files.open_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("bifocal.inference.files.fast_dtype", lambda *_: torch.float32)
    with pytest.raises(UserError, match="int8 is for the decoder of a VLM on a CPU"):
        bifocal.load(places["continuous"], device="cuda", dtype="int8")
