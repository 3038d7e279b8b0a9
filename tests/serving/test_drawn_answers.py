"""Answers with pictures in them: the same as the model gives in Python, whole and as a stream, alone and in company."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

import tiny
from bifocal import inference
from bifocal.generation import slots
from bifocal.serving.catalogue import Catalogue, Served, abilities_of
from bifocal.serving.engine import EngineSettings
from bifocal.serving.run import Running, Settings
from serving_live import CPU, ask, data_url, live, picture_file, said, shown, together

CHAT = "/v1/chat/completions"
BOTH = ["text", "image"]
LONGEST = 120


def models() -> Catalogue:
    """A discrete VLM that finds nearly all tokens alike, so that it draws now and then, and a continuous one."""
    discrete, words = tiny.vlm("discrete"), tiny.tokenizer()
    with torch.no_grad():
        discrete.language_model.lm_head.weight.mul_(0.02)
    loaded = [
        inference.VLM(discrete, words, "discrete", CPU),
        inference.VLM(tiny.vlm("continuous"), words, "continuous", CPU),
    ]
    return Catalogue([Served(model.name, model, abilities_of(model)) for model in loaded])


def one(slots: int = 4) -> Any:
    return live(Settings(port=0, engine=EngineSettings(slots, 512, 32), grace=2), models())


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with one() as server:
        yield server


@dataclass
class Known:
    """What the model says in Python, with a seed with which it draws."""

    vlm: inference.VLM
    seed: int
    answer: inference.Answer

    def body(self, **changes: Any) -> dict[str, Any]:
        body = {"model": "discrete", "messages": said("draw an owl"), "temperature": 1.0, "seed": self.seed}
        return {**body, "max_completion_tokens": LONGEST, "modalities": BOTH, **changes}


@pytest.fixture(scope="module")
def known(running: Running) -> Known:
    vlm = running.catalogue.models["discrete"].loaded
    assert isinstance(vlm, inference.VLM)
    for seed in range(200):
        answer = vlm.chat(
            said("draw an owl"), may_draw=True, temperature=1.0, seed=seed, max_new_tokens=LONGEST
        )
        if answer.images and answer.text:
            return Known(vlm, seed, answer)
    raise AssertionError("no seed draws")


def picture(entry: dict[str, Any]) -> np.ndarray:
    kind, data = entry["image_url"]["url"].split(",")
    assert (entry["type"], kind) == ("image_url", "data:image/png;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def same(entries: list[dict[str, Any]], images: tuple[Image.Image, ...]) -> bool:
    return len(entries) == len(images) and all(
        np.array_equal(picture(entry), np.asarray(image))
        for entry, image in zip(entries, images, strict=True)
    )


def asked(server: Running, body: dict[str, Any]) -> dict[str, Any]:
    status, text, _ = ask(server.url, "POST", CHAT, body)
    assert status == 200, text
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_official_client_gets_the_words_and_pictures_of_the_model(running: Running, known: Known) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        found = client.chat.completions.create(**known.body())
        message = found.choices[0].message.model_dump()
        assert message["content"].strip() == known.answer.text
        assert same(message["images"], known.answer.images)
        assert found.choices[0].finish_reason == known.answer.finish_reason
        positions = known.vlm.model.image_path.positions
        assert found.usage is not None
        details = found.usage.model_dump()["completion_tokens_details"]
        assert details["image_tokens"] == positions * len(known.answer.images) > 0
        assert found.usage.completion_tokens == len(known.answer.logprobs)


def test_a_stream_shows_a_picture_when_it_is_there(running: Running, known: Known) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        chunks = [chunk.model_dump() for chunk in client.chat.completions.create(**known.body(), stream=True)]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == known.answer.text
    assert same([image for delta in deltas for image in delta.get("images") or []], known.answer.images)
    assert chunks[-1]["choices"][0]["finish_reason"] == known.answer.finish_reason


def test_log_probabilities_are_of_words_alone(running: Running, known: Known) -> None:
    found = asked(running, known.body(logprobs=True, top_logprobs=2))["choices"][0]
    words = found["logprobs"]["content"]
    drawn = len(known.answer.images) * (known.vlm.model.image_path.positions + 2)
    assert len(words) == len(known.answer.logprobs) - drawn > 0
    assert not any(entry["token"].startswith("IMG") for entry in words)


def test_without_the_word_for_it_nothing_is_drawn(running: Running, known: Known) -> None:
    body = known.body()
    del body["modalities"]
    found = asked(running, body)
    assert "images" not in found["choices"][0]["message"]
    assert "completion_tokens_details" not in found["usage"]


def test_company_and_a_step_that_fails_change_no_picture(
    running: Running, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [
        known.body(),
        known.body(seed=known.seed + 1),
        known.body(guidance=1),
        known.body(modalities=["text"]),
    ]
    alone = [asked(running, body)["choices"] for body in bodies]
    assert together(*[lambda body=body: asked(running, body)["choices"] for body in bodies]) == alone  # type: ignore[misc]
    step, steps = slots.Slots.step, iter(range(10**6))

    def failing(self: slots.Slots, prefill: int | None = None) -> Any:
        if next(steps) == 40:
            raise RuntimeError("a bit fell over")
        return step(self, prefill)

    monkeypatch.setattr(slots.Slots, "step", failing)
    assert together(*[lambda body=body: asked(running, body)["choices"] for body in bodies]) == alone  # type: ignore[misc]
    assert running.engine.used("discrete") == 0 and not running.engine.busy


def test_several_answers_have_a_seed_each(running: Running, known: Known) -> None:
    choices = asked(running, known.body(n=2, seed=known.seed - 1))["choices"]
    assert same(choices[1]["message"]["images"], known.answer.images)


def test_what_was_drawn_is_sent_back_and_seen(running: Running, known: Known) -> None:
    drawn = asked(running, known.body())["choices"][0]["message"]
    again = [*said("draw an owl"), drawn, *said("what is it?")]
    found = asked(running, {"model": "discrete", "messages": again, "max_tokens": 12})
    images = [{"type": "image", "image": image} for image in known.answer.images]
    parts = [{"type": "text", "text": drawn["content"]}, *images]
    conversation = [*said("draw an owl"), {"role": "assistant", "content": parts}, *said("what is it?")]
    wanted = known.vlm.chat(conversation, max_new_tokens=12)
    assert found["choices"][0]["message"]["content"].strip() == wanted.text
    positions = known.vlm.model.image_path.positions
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == positions * len(known.answer.images)


URL = data_url(picture_file(tiny.picture(0)))
IMAGE = {"type": "image_url", "image_url": {"url": URL}}


@pytest.mark.parametrize(
    ("changes", "said_of_it"),
    [
        ({"model": "continuous"}, "continuous VLM, which reads pictures as vectors and predicts words only"),
        (
            {"modalities": ["image"]},
            "an answer has words: for pictures alone there is /v1/images/generations",
        ),
        ({"modalities": ["audio"]}, "modalities"),
        ({"modalities": ["text"], "guidance": 2.0}, "guidance is for requests with modalities"),
        ({"response_format": {"type": "json_object"}}, "an answer that is JSON has no pictures"),
        ({"max_completion_tokens": 17}, "an answer of at most 17 tokens holds no picture, which takes 18"),
        (
            {"messages": [{"role": "user", "content": "a", "images": [IMAGE]}]},
            "images are what an assistant drew",
        ),
        ({"max_completion_tokens": 505}, "and the answer up to 505, and this server holds 512"),
    ],
)
def test_what_cannot_be_is_refused(
    running: Running, known: Known, changes: dict[str, Any], said_of_it: str
) -> None:
    status, text, _ = ask(running.url, "POST", CHAT, known.body(**changes))
    assert status == 400 and said_of_it in json.loads(text)["error"]["message"]


def test_only_a_model_that_draws_has_drawn(running: Running) -> None:
    body = {
        "model": "continuous",
        "messages": [*said("a"), {"role": "assistant", "content": "", "images": [IMAGE]}],
    }
    body["messages"] += said("b")
    status, text, _ = ask(running.url, "POST", CHAT, body)
    assert status == 400 and "messages[1].images[0] is a picture in a turn of the assistant" in text


def test_pictures_are_not_explained(running: Running) -> None:
    messages = [*shown(URL), {"role": "assistant", "content": "here", "images": [IMAGE]}]
    status, text, _ = ask(running.url, "POST", "/v1/explain", {"model": "discrete", "messages": messages})
    assert status == 400 and "words are explained, and no pictures" in text


def test_guidance_takes_a_second_slot_and_without_it_one_is_enough(known: Known) -> None:
    with one(slots=1) as server:
        status, text, _ = ask(server.url, "POST", CHAT, known.body())
        assert status == 400 and "takes two slots, and this server has one: give guidance 1" in text
        found = asked(server, known.body(guidance=1))["choices"][0]["message"]
        wanted = known.vlm.chat(
            said("draw an owl"),
            may_draw=True,
            guidance=1.0,
            temperature=1.0,
            seed=known.seed,
            max_new_tokens=LONGEST,
        )
        assert found["content"].strip() == wanted.text and same(found["images"], wanted.images)
        assert server.engine.used("discrete") == 0
