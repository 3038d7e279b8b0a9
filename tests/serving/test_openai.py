"""The official client, unchanged, gets what the models say when they are asked directly."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

import tiny
from bifocal import inference
from bifocal.data.boxes import boxes_from_text
from bifocal.models.parti import DecoderConfig, PartiConfig, PartiModel
from bifocal.models.text import TextConfig
from bifocal.serving.catalogue import Catalogue, Served, abilities_of
from bifocal.serving.run import Running, Settings
from serving_live import CPU, data_url, live, picture_file, said, shown, together

PICTURES = [tiny.picture(seed) for seed in range(3)]
URLS = [data_url(picture_file(picture)) for picture in PICTURES]
FAMILIES = ["continuous", "discrete"]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def vlm(server: Running, name: str) -> inference.VLM:
    model = server.catalogue.models[name].loaded
    assert isinstance(model, inference.VLM)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_about_a_picture_is_the_model_s(
    client: openai.OpenAI, server: Running, family: str
) -> None:
    found = client.chat.completions.create(model=family, messages=shown(URLS[0]), max_tokens=16)
    wanted = vlm(server, family).answer(PICTURES[0], "what is it?", max_new_tokens=16)
    choice = found.choices[0]
    assert (choice.message.content, choice.finish_reason) == (wanted.text, wanted.finish_reason)
    positions = vlm(server, family).model.image_path.positions
    usage = found.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.model_dump()["image_tokens"] == positions
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > positions


@pytest.mark.parametrize("family", FAMILIES)
def test_every_picture_is_seen(client: openai.OpenAI, server: Running, family: str) -> None:
    parts = [{"type": "image_url", "image_url": url} for url in URLS]  # the bare string is taken too
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "which?"}]}]
    found = client.chat.completions.create(model=family, messages=messages, max_tokens=12)
    wanted = vlm(server, family).answer(PICTURES, "which?", max_new_tokens=12)
    assert found.choices[0].message.content == wanted.text


def test_a_stream_ends_up_at_the_same_text_and_counts(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="continuous", messages=shown(URLS[0]), max_tokens=24)
    chunks = list(
        client.chat.completions.create(
            model="continuous",
            messages=shown(URLS[0]),
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "length"
    ]
    assert whole.usage is not None and chunks[-1].usage is not None and chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24


def test_sampling_is_that_of_its_seed(client: openai.OpenAI, server: Running) -> None:
    def sampled(seed: int) -> str | None:
        return client.chat.completions.create(
            model="discrete", messages=shown(URLS[0]), max_tokens=16, temperature=1.0, seed=seed
        ).choices[0].message.content  # fmt: skip

    wanted = vlm(server, "discrete").answer(
        PICTURES[0], "what is it?", max_new_tokens=16, temperature=1.0, seed=5
    )
    assert sampled(5) == wanted.text
    assert len({sampled(seed) for seed in range(5)}) > 1


def test_n_answers_are_those_of_n_seeds(client: openai.OpenAI) -> None:
    several = client.chat.completions.create(
        model="continuous", messages=said("what?"), max_tokens=12, temperature=1.0, seed=3, n=4
    )
    single = [
        client.chat.completions.create(
            model="continuous", messages=said("what?"), max_tokens=12, temperature=1.0, seed=3 + index
        ).choices[0].message.content
        for index in range(4)
    ]  # fmt: skip
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.message.content for choice in several.choices] == single
    assert several.usage is not None and several.usage.completion_tokens <= 48


def test_a_stop_text_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="continuous", messages=said("what?"), max_tokens=24)
    text = whole.choices[0].message.content
    assert text is not None and len(text) > 8
    stop = text[4:7]
    for stream in (False, True):
        found = client.chat.completions.create(
            model="continuous",
            messages=said("what?"),
            max_tokens=24,
            stop=[stop, "never said"],
            stream=stream,
        )
        if stream:
            parts = [chunk.choices[0] for chunk in found]
            got, reason = "".join(part.delta.content or "" for part in parts), parts[-1].finish_reason
        else:
            got, reason = found.choices[0].message.content, found.choices[0].finish_reason
        assert (got, reason) == (text[: text.index(stop)], "stop")


def test_logprobs_are_the_model_s_and_in_order(client: openai.OpenAI, server: Running) -> None:
    found = client.chat.completions.create(
        model="continuous", messages=shown(URLS[0]), max_tokens=8, logprobs=True, top_logprobs=3
    )
    wanted = vlm(server, "continuous").answer(PICTURES[0], "what is it?", max_new_tokens=8)
    assert found.choices[0].logprobs is not None
    tokens = found.choices[0].logprobs.content
    assert tokens is not None
    # one step of a slot and one of a batch may add up in another order
    np.testing.assert_allclose([token.logprob for token in tokens], wanted.logprobs, rtol=1e-4, atol=1e-5)
    for token in tokens:
        likely = [other.logprob for other in token.top_logprobs]
        assert len(likely) == 3 and likely == sorted(likely, reverse=True)
        assert math.isclose(likely[0], token.logprob, rel_tol=1e-6)  # greedy takes the first


@pytest.mark.parametrize("family", FAMILIES)
def test_a_schema_is_kept_to(client: openai.OpenAI, family: str) -> None:
    schema = {
        "type": "object",
        "properties": {
            "thing": {"enum": ["owl", "heart"]},
            "count": {"type": "integer", "maximum": 9, "minimum": 0},
        },
        "required": ["thing", "count"],
        "additionalProperties": False,
    }
    found = client.chat.completions.create(
        model=family,
        messages=shown(URLS[0]),
        max_tokens=64,
        n=3,
        seed=1,
        temperature=1.0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "things", "schema": schema, "strict": True},
        },
    )
    for choice in found.choices:
        about = json.loads(choice.message.content or "")
        assert about["thing"] in ("owl", "heart") and about["count"] in range(10) and len(about) == 2
        assert choice.finish_reason == "stop"


def test_any_json_object_can_be_asked_for(client: openai.OpenAI) -> None:
    for seed in range(3):
        choice = client.chat.completions.create(
            model="continuous", messages=said("what?"), max_tokens=200, temperature=1.0, seed=seed, stop="}",
            response_format={"type": "json_object"},
        ).choices[0]  # fmt: skip
        assert (choice.message.content or "").startswith("{")


def test_a_second_turn_goes_on_from_what_is_cached(client: openai.OpenAI, server: Running) -> None:
    first = client.chat.completions.create(model="continuous", messages=shown(URLS[2]), max_tokens=8)
    encoded = server.metrics.value("bifocal_image_cache_misses_total")
    talk = [*shown(URLS[2]), first.choices[0].message.model_dump(), *said("and then?")]
    second = client.chat.completions.create(model="continuous", messages=talk, max_tokens=8)
    assert server.metrics.value("bifocal_image_cache_misses_total") == encoded
    usage = second.usage
    assert first.usage is not None and usage is not None and usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens - 1
    turns = [
        {
            "role": "user",
            "content": [{"type": "image", "image": PICTURES[2]}, {"type": "text", "text": "what is it?"}],
        },
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "and then?"},
    ]
    assert second.choices[0].message.content == vlm(server, "continuous").chat(turns, max_new_tokens=8).text


def test_boxes_come_in_pixels_of_the_picture_as_it_was_sent() -> None:
    model = inference.VLM(tiny.vlm("continuous"), tiny.tokenizer(), "boxes", CPU)
    model.forbidden[:] = True
    model.forbidden[model.tokenizer.boxes.start : model.tokenizer.boxes.stop] = (
        False  # it says boxes and nothing else
    )
    wide = np.repeat(np.repeat(PICTURES[0], 3, axis=0), 5, axis=1)  # 96 high, 160 wide
    with (
        live(Settings(port=0, grace=1), Catalogue([Served("boxes", model, abilities_of(model))])) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        found = client.chat.completions.create(
            model="boxes",
            messages=shown(data_url(picture_file(wide))),
            max_tokens=40,
            temperature=2.0,
            seed=1,
            n=4,
        )
    count = 0
    for choice in found.choices:
        wanted = boxes_from_text(choice.message.content or "", 8)
        count += len(wanted)
        boxes = (choice.message.model_extra or {})["boxes"]
        assert [box["normalized"] for box in boxes] == [list(box) for box in wanted]
        for box, (x1, y1, x2, y2) in zip(boxes, wanted, strict=True):
            assert box["pixels"] == pytest.approx([x1 * 160, y1 * 96, x2 * 160, y2 * 96])
            assert box["picture"] == 0
    assert count > 0


def test_embeddings_are_clip_s(client: openai.OpenAI, server: Running) -> None:
    clip = server.catalogue.models["clip"].loaded
    assert isinstance(clip, inference.CLIP)
    texts = ["an owl", "two hearts"]
    found = client.embeddings.create(model="clip", input=texts)  # the client asks for base64
    wanted = clip.embed_texts(texts)
    torch.testing.assert_close(torch.tensor([item.embedding for item in found.data]), wanted, rtol=0, atol=0)
    plain = client.embeddings.create(model="clip", input="an owl", encoding_format="float")
    assert plain.data[0].embedding == clip.embed_texts(["an owl"])[0].tolist()
    assert plain.usage.prompt_tokens == 4  # begin, two words, end


def test_a_picture_is_embedded_from_a_message(client: openai.OpenAI, server: Running) -> None:
    clip = server.catalogue.models["clip"].loaded
    assert isinstance(clip, inference.CLIP)
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URLS[0]}}]}
    found = client.post(
        "/embeddings",
        cast_to=object,
        body={"model": "clip", "messages": [message], "encoding_format": "float"},
    )
    assert found["data"][0]["embedding"] == pytest.approx(clip.embed_images([PICTURES[0]])[0].tolist())  # type: ignore[index]


def test_drawings_are_those_of_the_seed(client: openai.OpenAI, server: Running) -> None:
    found = client.images.generate(
        model="discrete", prompt="draw an owl.", n=2, size="32x32", extra_body={"seed": 7, "guidance": 1.5}
    )
    wanted = vlm(server, "discrete").draw("draw an owl.", n=2, guidance=1.5, seed=7)
    assert found.data is not None
    for item, picture in zip(found.data, wanted, strict=True):
        got = Image.open(io.BytesIO(base64.b64decode(item.b64_json or "")))
        assert np.array_equal(np.asarray(got), np.asarray(picture))


def test_a_continuous_model_says_why_it_cannot_draw(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"continuous VLM.*cannot draw; discrete can"):
        client.images.generate(model="continuous", prompt="draw an owl.")


def test_models_say_what_they_take_and_give(client: openai.OpenAI) -> None:
    models = {model.id: model.model_extra or {} for model in client.models.list()}
    assert list(models) == ["continuous", "discrete", "clip", "vqvae"]
    assert models["discrete"]["architecture"] == {
        "input_modalities": ["text", "image"], "output_modalities": ["text", "image"],
    }  # fmt: skip
    assert models["continuous"]["architecture"]["output_modalities"] == ["text"]
    assert client.models.retrieve("clip").id == "clip"
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.chat.completions.create(model="gpt-4o", messages=said("hi"))


def test_what_is_not_supported_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tool_choice is not supported") as caught:
        client.chat.completions.create(model="continuous", messages=said("hi"), tool_choice="auto")
    assert caught.value.param == "tool_choice"


def test_a_parti_draws_what_it_draws_and_others_are_answered_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = tiny.tokenizer()
    torch.manual_seed(4)
    text = TextConfig(
        vocabulary=len(words), context=16, width=32, layers=1, heads=2, causal=False, padding=words.pad
    )
    decoder = DecoderConfig(width=32, layers=1, heads=2, hidden=48)
    config = PartiConfig(text=text, decoder=decoder, vqvae=tiny.IMAGE_TOKENS)
    models: list[inference.Loaded] = [
        inference.Parti(PartiModel(config).eval(), words, "parti", CPU),
        inference.VLM(tiny.vlm("continuous"), words, "continuous", CPU),
    ]
    served = Catalogue([Served(model.name, model, abilities_of(model)) for model in models])
    with (
        live(Settings(port=0, grace=1), served) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        found = client.images.generate(model="parti", prompt="an owl", n=2, extra_body={"seed": 5})
        again = client.images.generate(prompt="an owl", n=2, extra_body={"seed": 5, "model": "parti"})
        with pytest.raises(openai.BadRequestError, match="does not fit this model"):
            client.images.generate(model="parti", prompt="owl " * 40)
        parti = models[0]
        assert isinstance(parti, inference.Parti)
        draw, begun, answered = parti.draw, threading.Event(), threading.Event()
        gone_on: list[bool] = []

        def until_answered(*given: Any, progress: Any, **named: Any) -> Any:
            end = time.monotonic() + 20
            while not answered.is_set() and time.monotonic() < end:
                progress(inference.Partial(0, 16, list))
                begun.set()
                time.sleep(0.01)
            gone_on.append(answered.is_set())
            return draw(*given, progress=progress, **named)

        def ask() -> Any:
            assert begun.wait(20)
            talk = client.chat.completions.create(model="continuous", messages=said("what?"), max_tokens=4)
            answered.set()
            return talk

        monkeypatch.setattr(parti, "draw", until_answered)
        third, talk = together(
            lambda: client.images.generate(
                model="parti", prompt="an owl", n=2, extra_body={"seed": 5}, timeout=60
            ),
            ask,
        )
        monkeypatch.undo()
    assert (
        gone_on == [True] and talk.choices[0].finish_reason in ("stop", "length") and third.data == found.data
    )
    wanted = parti.draw("an owl", n=2, seed=5)
    assert found.data is not None and again.data is not None and found.data == again.data
    for item, picture in zip(found.data, wanted, strict=True):
        got = Image.open(io.BytesIO(base64.b64decode(item.b64_json or "")))
        assert np.array_equal(np.asarray(got), np.asarray(picture))
