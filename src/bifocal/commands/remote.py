"""``bifocal ask`` and ``draw`` with ``--url``: the same questions put to a server that runs already."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from PIL import Image

from bifocal.config import UserError
from bifocal.data.pictures import read_picture
from bifocal.data.sample import Box
from bifocal.generation.telling import AnswerOptions, AnswerSettings
from bifocal.inference import Answer
from bifocal.serving.access import refuse_unsendable

SECONDS = 600.0
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
KEY = "BIFOCAL_KEY"


def ask_server(
    url: str,
    model: str,
    pictures: Sequence[Path],
    question: str,
    **options: Unpack[AnswerOptions],
) -> Answer:
    """The answer of a server's model to a question about pictures.

    ``options`` are those fields of ``AnswerSettings`` that are about words; without a seed the server draws one.
    """
    settings = AnswerSettings(**options)
    shown = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}],
        "max_completion_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "stop": list(settings.stop),
        "logprobs": True,
    }
    if settings.seed is not None:
        body["seed"] = settings.seed
    answer = post(url, "/v1/chat/completions", body)
    with understood(url):
        choice = answer["choices"][0]
        # a server that is not ours has no boxes, and may have no log-probabilities
        return Answer(
            choice["message"]["content"] or "",
            tuple(Box(*box["normalized"]) for box in choice["message"].get("boxes") or ()),
            finish_reason=choice["finish_reason"],
            logprobs=tuple(token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or ()),
        )


def draw_on_server(
    url: str, model: str, prompt: str, *, n: int, guidance: float | None, seed: int | None
) -> list[Image.Image]:
    """Drawings of a server's model, which has a guidance of its own where none is given."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "n": n}
    body |= {name: value for name, value in (("guidance", guidance), ("seed", seed)) if value is not None}
    answer = post(url, "/v1/images/generations", body)
    with understood(url):
        return [Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) for item in answer["data"]]


@contextlib.contextmanager
def understood(url: str) -> Iterator[None]:
    """While an answer is read: one of another form than asked for becomes a sentence."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"what answers at {url} is no bifocal server, and not enough like one: its answer is of another form"
        ) from error


def data_url(path: Path) -> str:
    """A picture's file, as it is, in an address; one of a format that servers do not take as PNG."""
    array = read_picture(path)
    with Image.open(path) as picture:
        kind = TYPES.get(picture.format or "")
    if kind is not None:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def post(url: str, route: str, body: dict[str, Any]) -> Any:
    """What a server answers, with the key that the environment holds. Raises ``UserError`` with its sentence."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url!r} is no address of a server: give one such as http://127.0.0.1:8000")
    request = urllib.request.Request(
        url.rstrip("/") + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    if key := os.environ.get(KEY, "").partition(",")[0]:
        refuse_unsendable(key, f"the key in {KEY}")
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            reason = json.load(error)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            reason = error.reason
        raise UserError(f"the server at {url} says: {reason} (status {error.code})") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise UserError(f"the server at {url} cannot be reached: {getattr(error, 'reason', error)}") from None
    except ValueError:
        raise UserError(f"what answers at {url} is no bifocal server") from None
