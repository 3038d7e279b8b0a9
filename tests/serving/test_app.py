"""What the server has beyond the OpenAI API, and what it says of itself."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from bifocal import inference
from bifocal.config import UserError
from bifocal.data.chat import read_messages
from bifocal.data.pictures import to_pictures, to_tensor
from bifocal.generation.explain import explain
from bifocal.serving.access import Access
from bifocal.serving.app import make_app
from bifocal.serving.limits import limits_of
from bifocal.serving.run import Running, Settings
from serving_live import ask, data_url, live, picture_file, said, shown, wait_until

PICTURE = tiny.picture(0)
URL = data_url(picture_file(PICTURE))
CHAT = "/v1/chat/completions"


def post(server: Running, path: str, **body: Any) -> Any:
    status, text, _ = ask(server.url, "POST", path, body)
    assert status == 200, f"{text} {server.log.stream.getvalue()[-3000:]}"  # type: ignore[union-attr]
    return json.loads(text)


def text_part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def picture_in(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def test_given_answers_are_scored_as_the_model_scores_them(server: Running) -> None:
    vlm = server.catalogue.models["continuous"].loaded
    assert isinstance(vlm, inference.VLM)
    answers = ["yes.", "no.", "an owl and two hearts"]
    found = post(
        server, "/v1/score", model="continuous", messages=shown(URL, "is there an owl?"), answers=answers
    )
    wanted = vlm.score([PICTURE], "is there an owl?", answers)
    assert [row["logprob"] for row in found["results"]] == pytest.approx(wanted, rel=1e-5)
    assert found["best"] == int(np.argmax(wanted))
    assert sum(row["probability"] for row in found["results"]) == pytest.approx(1)


def test_labels_are_ordered_by_probability(server: Running) -> None:
    clip = server.catalogue.models["clip"].loaded
    assert isinstance(clip, inference.CLIP)
    labels = ["owl", "dog", "heart"]
    found = post(server, "/v1/classify", model="clip", images=[URL], labels=labels)["results"][0]["labels"]
    shares = dict(zip(labels, clip.classify([PICTURE], labels)[0].tolist(), strict=True))
    assert {row["label"]: row["probability"] for row in found} == pytest.approx(shares)
    assert [row["label"] for row in found] == sorted(labels, key=lambda label: -shares[label])


@pytest.mark.parametrize("name", ["vqvae", "discrete"])
def test_a_picture_goes_to_codes_and_back(server: Running, name: str) -> None:
    vqvae = server.catalogue.models[name].vqvae
    codes = post(server, "/v1/tokenize", model=name, image=URL)["codes"]
    assert codes == vqvae.encode(to_tensor([PICTURE]))[0].tolist()
    direct = post(server, "/v1/reconstruct", model=name, image=URL)
    back = post(server, "/v1/reconstruct", model=name, codes=codes)
    wanted = to_pictures(vqvae.decode(torch.tensor([codes])))[0]
    assert np.array_equal(picture_in(direct["b64_json"]), wanted)
    assert np.array_equal(picture_in(back["b64_json"]), wanted)
    assert direct["codes"] == codes and direct["psnr"] > 0


@pytest.mark.parametrize("codes", [[[0]], [[99] * 4] * 4, [[-1] * 4] * 4, []])
def test_codes_that_are_none_are_refused(server: Running, codes: list[list[int]]) -> None:
    assert ask(server.url, "POST", "/v1/reconstruct", {"model": "vqvae", "codes": codes})[0] == 400


@pytest.mark.parametrize("family", ["continuous", "discrete"])
def test_where_a_model_looked_adds_up(server: Running, family: str) -> None:
    vlm = server.catalogue.models[family].loaded
    assert isinstance(vlm, inference.VLM)
    messages = read_messages(
        [{"role": "user", "content": [{"type": "image", "image": PICTURE}, *text_part("what?")]}]
    )[1]
    talk = [*shown(URL, "what?"), {"role": "assistant", "content": "an owl and two hearts"}]
    found = post(server, "/v1/explain", model=family, messages=talk)
    wanted = explain(
        vlm.model, vlm.prompt(messages), vlm.tokenizer.encode("an owl and two hearts"), vlm.encode([PICTURE]),
        tokenizer=vlm.tokenizer, forbidden=vlm.forbidden, stopped=False,
    )  # fmt: skip
    assert [word["text"] for word in found["words"]] == ["an", "owl", "and", "two", "hearts"]
    for word, other in zip(found["words"], wanted, strict=True):
        np.testing.assert_allclose(word["attention"], other.attention, atol=1e-6)  # six places are sent
        assert word["probability"] == pytest.approx(other.probability)
    assert found["grid"][0] * found["grid"][1] == vlm.model.image_path.positions
    assert found["parts"] == [[0, 0, 1, 1]]
    if family == "discrete":
        assert found["seen"][0]["codes"] == vlm.vqvae.encode(to_tensor([PICTURE]))[0].tolist()
    else:
        assert found["seen"] == []


def test_a_drawing_tells_how_far_it_is(server: Running) -> None:
    body = {"model": "discrete", "prompt": "an owl", "n": 2, "seed": 3, "stream": True}
    _, text, headers = ask(server.url, "POST", "/v1/images/generations", body)
    assert headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    steps = [item["done"] for item in events if item["type"] == "image_generation.progress"]
    total = 2 * tiny.IMAGE_TOKENS.codes_per_picture
    assert steps == sorted(steps) and steps[-1] == total == events[0]["total"]
    drawn = {
        item["index"]: item["b64_json"] for item in events if item["type"] == "image_generation.completed"
    }
    whole = post(server, "/v1/images/generations", model="discrete", prompt="an owl", n=2, seed=3)["data"]
    assert [drawn[index] for index in range(2)] == [item["b64_json"] for item in whole]


def test_health_and_metrics_are_those_of_prometheus(server: Running) -> None:
    post(server, CHAT, messages=said("hi"), max_tokens=2)
    assert ask(server.url, "GET", "/health")[:2] == (200, '{"status":"ok"}')
    _, text, headers = ask(server.url, "GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    line = re.compile(r'[a-z_]+(\{[a-z_]+="[^"\n]*"(,[a-z_]+="[^"\n]*")*\})? [0-9.e+-]+')
    samples = [sample for sample in text.splitlines() if not sample.startswith("#")]
    assert all(line.fullmatch(sample) for sample in samples)
    assert f'bifocal_requests_total{{route="{CHAT}",status="200"}}' in text
    assert 'bifocal_request_seconds_bucket{le="+Inf"}' in text


def test_every_route_has_an_example_and_its_errors_in_the_document(server: Running) -> None:
    document = json.loads(ask(server.url, "GET", "/openapi.json")[1])
    posts = {path: about["post"] for path, about in document["paths"].items() if "post" in about}
    assert len(posts) == 8
    for path, about in posts.items():
        name = about["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        example = document["components"]["schemas"][name]["examples"][0]
        status, text, _ = ask(server.url, "POST", path, {**example, "model": None})
        assert status == 200, f"{path}: {text}"
        assert {"400", "401", "429", "503"} <= set(about["responses"])


def test_a_request_leaves_one_line_without_what_was_said() -> None:
    with live(Settings(port=0, grace=1)) as running:
        secret = "a word that nobody should read"
        headers = {"X-Request-Id": "mine-1"}
        _, _, sent = ask(running.url, "POST", CHAT, {"messages": said(secret), "max_tokens": 3}, headers)
        assert sent["x-request-id"] == "mine-1"
        wait_until(lambda: "mine-1" in running.log.stream.getvalue())  # type: ignore[union-attr]
        lines = [json.loads(line) for line in running.log.stream.getvalue().splitlines()]  # type: ignore[union-attr]
    line = next(line for line in lines if line.get("request_id") == "mine-1")
    assert line["status"] == 200 and line["route"] == CHAT and line["completion_tokens"] <= 3
    assert secret not in json.dumps(lines)


def test_contents_are_logged_only_when_asked_for() -> None:
    with live(Settings(port=0, grace=1, log_contents=True)) as running:
        ask(running.url, "POST", CHAT, {"messages": shown(URL, "a word to read"), "max_tokens": 3})
        wait_until(lambda: '"request"' in running.log.stream.getvalue())  # type: ignore[union-attr]
        text = running.log.stream.getvalue()  # type: ignore[union-attr]
    assert "a word to read" in text and "base64" not in text


def gone(server: Running, body: dict[str, Any], read: int) -> None:
    """Ask, read so many bytes, leave."""
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(server.socket.getsockname()[:2]) as client:
        client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        if read:
            client.recv(read)


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_leaves_frees_the_slots(server: Running, stream: bool) -> None:
    before = server.metrics.value("bifocal_jobs_total", how="cancelled")
    body = {"messages": said("what?"), "max_tokens": 1000, "n": 8, "temperature": 2.0, "stream": stream}
    gone(server, body, read=300 if stream else 0)
    wait_until(lambda: server.metrics.value("bifocal_jobs_total", how="cancelled") > before)
    wait_until(lambda: not server.engine.busy)
    assert server.engine.used("continuous") == 0


def test_every_route_but_the_page_and_health_wants_the_key() -> None:
    from fastapi.routing import APIRoute

    with live(Settings(port=0, access=Access(keys=("k",)), grace=1)) as running:
        app = running.app.app
        assert type(app) is type(make_app(app.state.server))  # type: ignore[attr-defined]
        routes = [route for route in app.routes if isinstance(route, APIRoute)]  # type: ignore[attr-defined]
        opened = [r.path for r in routes if ask(running.url, min(r.methods), r.path, b"{}")[0] != 401]
        page = [path for path in opened if path == "/" or path.startswith("/page/")]
        assert {*opened} - {*page} == {"/health"} and len(page) >= 2
        header = {"Authorization": "Bearer k"}
        assert ask(running.url, "GET", "/v1/models", None, header)[0] == 200


def test_the_page_may_run_nothing_but_its_own_files(server: Running) -> None:
    _, text, headers = ask(server.url, "GET", "/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    for address in re.findall(r'(?:src|href)="([^"#]+)"', text):
        assert address == "data:," or (
            address.startswith("/page/") and ask(server.url, "GET", address)[0] == 200
        ), address
    assert "http" not in re.sub(r"https?-equiv", "", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pictures", "NAME=VALUE"),
        ("picture=1", "did you mean 'pictures'"),
        ("queue=-1", "above 0"),
        ("queue=x", "integer"),
    ],
)
def test_a_limit_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        limits_of([text])


def test_limits_are_settings() -> None:
    limits = limits_of(["pictures=2", "request_seconds=1.5"])
    assert (limits.pictures, limits.request_seconds, limits.queue) == (2, 1.5, 256)
