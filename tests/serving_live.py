"""Servers for the tests and benchmarks of serving: tiny models of random weights behind a real socket."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

import tiny
from bifocal import inference
from bifocal.serving.catalogue import Catalogue, Served, abilities_of
from bifocal.serving.guard import Log
from bifocal.serving.media import Media
from bifocal.serving.run import Running, Settings

CPU = torch.device("cpu")
PRIVATE = "a sentence that must not be logged"


def catalogue() -> Catalogue:
    """One of each: continuous, discrete, clip, vqvae."""
    words = tiny.tokenizer()
    models: list[inference.Loaded] = [
        inference.VLM(tiny.vlm("continuous"), words, "continuous", CPU),
        inference.VLM(tiny.vlm("discrete"), words, "discrete", CPU),
        inference.CLIP(tiny.clip(len(words), context=24), words, "clip", CPU),
        inference.VQVAE(tiny.vqvae(), "vqvae", CPU),
    ]
    return Catalogue([Served(model.name, model, abilities_of(model)) for model in models])


@contextlib.contextmanager
def live(
    settings: Settings, models: Catalogue | None = None, media: Media | None = None
) -> Iterator[Running]:
    """A server that listens, in a thread; its log is ``running.log.stream``."""
    log = Log(io.StringIO(), contents=settings.log_contents)
    running = Running(models or catalogue(), settings, log, media)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        wait_until(lambda: running.web.started)
        yield running
    finally:
        running.stop()
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"


def wait_until(done: Any, seconds: float = 10) -> None:
    """Come back when ``done()`` is true; fail when it takes too long."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.005)


def ask(
    url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of an answer; a body that is neither bytes nor None goes as JSON."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method, path, data, {**kind, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


def picture_file(array: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture's file."""
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    """A file in an address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def shown(url: str, text: str = "what is it?") -> list[dict[str, Any]]:
    """A user's message with one picture."""
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
        }
    ]


def said(text: str) -> list[dict[str, Any]]:
    """A user's message of words alone."""
    return [{"role": "user", "content": text}]


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What each call returns, all of them made at once."""
    found: list[Any] = [None] * len(calls)

    def do(index: int) -> None:
        found[index] = calls[index]()

    threads = [threading.Thread(target=do, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found
