"""The engine: nobody is lost where something fails, nobody waits for ever, nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tiny
from bifocal import inference
from bifocal.generation import slots
from bifocal.generation.telling import Telling
from bifocal.serving.catalogue import Catalogue, Served, abilities_of
from bifocal.serving.engine import Engine, EngineSettings
from bifocal.serving.features import Features
from bifocal.serving.jobs import Job, Outbox, Queue, Task
from bifocal.serving.limits import Limits
from bifocal.serving.metrics import Metrics
from bifocal.serving.run import Running, Settings
from serving_live import CPU, ask, data_url, live, picture_file, said, shown, together, wait_until

CHAT = "/v1/chat/completions"


def one_model(slots: int = 4, **limits: Any) -> Any:
    """A server of one VLM."""
    model = inference.VLM(tiny.vlm("continuous"), tiny.tokenizer(), "continuous", CPU)
    models = Catalogue([Served("continuous", model, abilities_of(model))])
    settings = Settings(port=0, engine=EngineSettings(slots, 512, 32), limits=Limits(**limits), grace=2)
    return live(settings, models)


@pytest.fixture
def running() -> Iterator[Running]:
    with one_model() as server:
        yield server


def asked(server: Running, text: str, **changes: Any) -> tuple[int, str]:
    body = {"messages": said(text), "max_tokens": 12, "temperature": 1.0, "seed": 1, **changes}
    return ask(server.url, "POST", CHAT, body)[:2]


def content(answer: tuple[int, str]) -> str:
    assert answer[0] == 200, answer[1]
    return str(json.loads(answer[1])["choices"][0]["message"]["content"])


def test_company_does_not_change_an_answer(running: Running) -> None:
    texts = [f"{'what is in the picture? ' * (index % 5)}{index}" for index in range(12)]
    alone = [content(asked(running, text)) for text in texts]
    crowd = together(*[lambda text=text: asked(running, text) for text in texts])  # type: ignore[misc]
    assert [content(answer) for answer in crowd] == alone
    assert not running.engine.busy and running.engine.used("continuous") == 0


def poisoned(monkeypatch: pytest.MonkeyPatch, poison: str, after: int) -> None:
    """A step that fails while a certain question is answered and has ``after`` tokens."""
    words = tiny.tokenizer().encode(poison)
    step = slots.Slots.step

    def failing(self: slots.Slots, prefill: int | None = None) -> Any:
        for sequence in self.sequences:
            if sequence.prompt.tokens[1 : 1 + len(words)] == words and len(sequence.tokens) == after:
                raise RuntimeError("out of memory")
        return step(self, prefill)

    monkeypatch.setattr(slots.Slots, "step", failing)


@pytest.mark.parametrize("after", [0, 5])
def test_a_step_that_fails_takes_down_only_who_is_at_fault(
    running: Running, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    texts = ["an owl", "two hearts", "a dog"]
    alone = [content(asked(running, text)) for text in texts]
    poisoned(monkeypatch, "a red tile", after)
    calls = [lambda text=text: asked(running, text) for text in ["a red tile", *texts]]  # type: ignore[misc]
    bad, *good = together(*calls)
    assert bad[0] == 500 and "failed on this request" in bad[1] and "memory" not in bad[1]
    assert [content(answer) for answer in good] == alone
    assert running.metrics.value("bifocal_failed_steps_total") >= 1
    assert content(asked(running, "an owl")) == alone[0] and running.engine.used("continuous") == 0


def test_a_step_that_fails_once_costs_nobody_an_answer(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["an owl", "two hearts", "a dog"]
    alone = [content(asked(running, text)) for text in texts]
    step, steps = slots.Slots.step, iter(range(10**6))

    def failing(self: slots.Slots, prefill: int | None = None) -> Any:
        if next(steps) == 6:
            raise RuntimeError("a bit fell over")
        return step(self, prefill)

    monkeypatch.setattr(slots.Slots, "step", failing)
    found = together(*[lambda text=text: asked(running, text) for text in texts])  # type: ignore[misc]
    assert [content(answer) for answer in found] == alone


def test_a_model_without_memory_for_a_new_pool_fails_one_request_and_comes_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = content(asked(running, "an owl"))
    make, tries = Engine._pool, []

    def none_left(self: Engine, served: Served, count: int) -> Any:
        tries.append(count)
        if len(tries) <= 2:  # that of the one who is tried alone, and that of all
            raise RuntimeError("out of memory")
        return make(self, served, count)

    poisoned(monkeypatch, "a red tile", 3)
    monkeypatch.setattr(Engine, "_pool", none_left)
    assert asked(running, "a red tile")[0] == 500
    assert not tries  # alone it was at fault, and nobody needs a pool
    assert asked(running, "two hearts")[0] == 500 and asked(running, "two hearts")[0] == 500
    assert content(asked(running, "an owl")) == alone
    assert ask(running.url, "GET", "/health")[0] == 200 and len(tries) == 3
    assert "bifocal_slots 4" in ask(running.url, "GET", "/metrics")[1]


@pytest.mark.parametrize("path", ["/v1/images/generations", CHAT])
def test_a_picture_that_cannot_be_decoded_fails_one_request(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a kernel of the VQ-VAE")

    discrete = inference.VLM(tiny.vlm("discrete"), tiny.tokenizer(), "discrete", CPU)
    models = Catalogue([Served("discrete", discrete, abilities_of(discrete))])
    with live(Settings(port=0, engine=EngineSettings(4, 256, 32), grace=2), models) as server:
        before = content(asked(server, "what?"))
        monkeypatch.setattr(inference.VLM, "picture_of", broken)
        body: dict[str, Any] = {"prompt": "an owl", "seed": 1}
        if path == CHAT:
            monkeypatch.setattr(Telling, "take", broken)
            body = {"messages": said("draw an owl"), "modalities": ["text", "image"]}
        status, text, _ = ask(server.url, "POST", path, body)
        assert status == 500 and "failed on this request" in text and "kernel" not in text
        monkeypatch.undo()
        assert content(asked(server, "what?")) == before and server.engine.used("discrete") == 0
        assert ask(server.url, "GET", "/health")[0] == 200


def test_an_engine_that_dies_says_so_and_fails_what_it_had(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(self: slots.Slots, prefill: int | None = None) -> Any:
        raise SystemExit

    monkeypatch.setattr(slots.Slots, "step", dying)
    status, text = asked(running, "an owl")
    assert status == 503 and "stopped" in text
    assert ask(running.url, "GET", "/health")[0] == 503
    assert asked(running, "an owl")[0] == 503


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with one_model(request_seconds=0.001) as server:
        status, text = asked(server, "an owl", max_tokens=400)
        assert status == 503 and "not answered within 0.001 seconds" in text
        wait_until(lambda: not server.engine.busy)
        assert server.engine.used("continuous") == 0


def test_the_pictures_of_a_request_are_encoded_once(running: Running) -> None:
    url = data_url(picture_file(tiny.picture(3)))
    for _ in range(3):
        assert ask(running.url, "POST", CHAT, {"messages": shown(url), "max_tokens": 2})[0] == 200
    assert running.metrics.value("bifocal_image_cache_misses_total") == 1


def test_features_are_given_up_when_there_is_no_room() -> None:
    metrics = Metrics()
    features = Features(1000, metrics)
    pictures = [tiny.picture(seed, 8) for seed in range(5)]

    def encode(some: Any) -> torch.Tensor:
        return torch.stack([torch.full((100,), float(picture.sum())) for picture in some])

    for picture in [*pictures, pictures[4], pictures[0]]:
        found = features.of("m", [picture, picture], encode)
        assert found is not None and torch.equal(found, encode([picture, picture]))
        assert features.bytes <= 1000
    assert metrics.value("bifocal_image_cache_misses_total") == 6  # the first was forgotten, the last was not


def jobs(clients: str) -> list[Job]:
    """A job of each client."""
    model = inference.VQVAE(tiny.vqvae(), "vqvae", CPU)
    served = Served("vqvae", model, abilities_of(model))
    outbox = Outbox()
    return [
        Task(served, outbox, client, time.monotonic() + 9, go=lambda meanwhile: None) for client in clients
    ]


def test_the_queue_serves_clients_in_turn() -> None:
    async def go() -> None:
        queue = Queue(9)
        assert queue.add(jobs("aaaabbc"))
        order = "".join(job.client for job in iter(lambda: queue.take(lambda job: True), None))
        assert order == "abcabaa"

    asyncio.run(go())


def test_the_queue_takes_all_jobs_of_a_request_or_none() -> None:
    async def go() -> None:
        queue = Queue(4)
        assert queue.add(jobs("aaa"))
        assert not queue.add(jobs("bb")) and len(queue) == 3
        assert queue.add(jobs("b")) and len(queue) == 4
        assert [job.client for job in queue.drop(lambda job: job.client == "a")] == ["a"] * 3
        assert len(queue) == 1

    asyncio.run(go())


def test_drawings_that_need_two_slots_are_not_overtaken_for_ever() -> None:
    discrete = inference.VLM(tiny.vlm("discrete"), tiny.tokenizer(), "discrete", CPU)
    models = Catalogue([Served("discrete", discrete, abilities_of(discrete))])
    settings = Settings(port=0, engine=EngineSettings(2, 256, 32), grace=2)
    with live(settings, models) as server:
        chats = [lambda i=i: asked(server, f"{i}", max_tokens=30) for i in range(10)]  # type: ignore[misc]
        draw = {"prompt": "an owl", "guidance": 2.0, "seed": 1}
        found = together(*chats, lambda: ask(server.url, "POST", "/v1/images/generations", draw))
    assert [answer[0] for answer in found] == [200] * 11


def test_a_server_of_one_slot_draws_without_guidance() -> None:
    discrete = inference.VLM(tiny.vlm("discrete"), tiny.tokenizer(), "discrete", CPU)
    models = Catalogue([Served("discrete", discrete, abilities_of(discrete))])
    with live(Settings(port=0, engine=EngineSettings(1, 256, 32), grace=2), models) as server:
        path = "/v1/images/generations"
        status, text, _ = ask(server.url, "POST", path, {"prompt": "an owl", "guidance": 2.0})
        assert status == 400 and "give guidance 1" in text
        assert ask(server.url, "POST", path, {"prompt": "an owl", "guidance": 1.0})[0] == 200


def test_too_long_a_conversation_is_refused(running: Running) -> None:
    status, text = asked(running, "owl " * 600)
    assert status == 400 and json.loads(text)["error"]["code"] == "context_length_exceeded"
