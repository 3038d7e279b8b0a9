"""The routes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from bifocal import __version__
from bifocal.config import UserError
from bifocal.data.sample import Picture
from bifocal.inference import CLIP, VLM, Parti
from bifocal.serving import work
from bifocal.serving.catalogue import Served
from bifocal.serving.chat import SEEDS, answer_tokens, chat, waiting
from bifocal.serving.conversation import address_of, parts_of
from bifocal.serving.drawings import drawing_events, drawing_jobs, drawings
from bifocal.serving.errors import ApiError, error_body, refused
from bifocal.serving.jobs import Meanwhile, Outbox, Result, Task
from bifocal.serving.metrics import CONTENT_TYPE
from bifocal.serving.page import FILES
from bifocal.serving.schemas import (
    ClassifyRequest,
    DrawRequest,
    EmbeddingRequest,
    ExplainRequest,
    ReconstructRequest,
    ScoreRequest,
    TokenizeRequest,
)
from bifocal.serving.server import Server
from bifocal.serving.streams import EventStream, until_gone

EXPLAINED = 1_000_000  # numbers in one explanation
ERROR = {"application/json": {"example": error_body(400, "n is 9, and the limit is 8", "n")}}
WRONG: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be answered as it is.", "content": ERROR},
    401: {"description": "A key is wanted.", "content": ERROR},
    403: {"description": "Pages of that origin may not call.", "content": ERROR},
    404: {"description": "There is no such model.", "content": ERROR},
    408: {"description": "The body did not arrive in time.", "content": ERROR},
    413: {"description": "The body is too long.", "content": ERROR},
    415: {"description": "The body is not JSON.", "content": ERROR},
    421: {"description": "The Host header names another server.", "content": ERROR},
    429: {"description": "The queue is full; Retry-After says for how long.", "content": ERROR},
    503: {"description": "The server stops, or did not find the time.", "content": ERROR},
}


def make_app(server: Server) -> FastAPI:
    """The application without its guard."""
    app = FastAPI(
        title="bifocal",
        version=__version__,
        description="Visual-language models behind the OpenAI API, and what only bifocal has.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.server = server
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _broken)
    for path, (content, kind) in FILES.items():
        app.get(path, include_in_schema=False)(_file(content, kind))
    app.get("/health", summary="Whether the engine runs", responses={503: WRONG[503]})(health)
    app.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)(metrics)
    app.get("/v1/models", summary="What is served", responses={401: WRONG[401]})(models)
    app.get("/v1/models/{name}", summary="One model", responses={401: WRONG[401], 404: WRONG[404]})(model)
    posts: dict[str, tuple[Callable[..., Any], str]] = {
        "/v1/chat/completions": (chat, "Answer questions about pictures"),
        "/v1/embeddings": (embeddings, "Texts or a picture as vectors of unit norm"),
        "/v1/images/generations": (draw, "Draw a prompt"),
        "/v1/classify": (classify, "Which label fits a picture"),
        "/v1/score": (score, "How likely given answers are"),
        "/v1/explain": (explain, "Where a model looked, and what it saw"),
        "/v1/tokenize": (tokenize, "A picture as codes"),
        "/v1/reconstruct": (reconstruct, "What codes keep of a picture"),
    }
    for path, (go, summary) in posts.items():
        app.post(path, summary=summary, response_class=JSONResponse, response_model=None, responses=WRONG)(go)
    return app


# ---------------------------------------------------------------- what needs no model


def _file(content: bytes, kind: str) -> Callable[[], Any]:
    async def file() -> Response:
        return Response(content, headers={"content-type": kind})

    return file


async def health(request: Request) -> JSONResponse:
    """200 where the engine runs, 503 where it does not or is about to stop."""
    state = request.app.state.server.engine.state
    return JSONResponse({"status": state}, 200 if state == "ok" else 503)


async def metrics(request: Request) -> Response:
    """In Prometheus's text format."""
    return Response(request.app.state.server.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def models(request: Request) -> dict[str, Any]:
    """All models, with what they take and what they give."""
    server: Server = request.app.state.server
    return {"object": "list", "data": [served.describe() for served in server.catalogue.models.values()]}


async def model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    server: Server = request.app.state.server
    if name not in server.catalogue.models:
        raise ApiError(404, "there is no such model here", param="model", code="model_not_found")
    return server.catalogue.models[name].describe()


# ---------------------------------------------------------------- what does


async def embeddings(request: Request, asked: EmbeddingRequest) -> JSONResponse:
    """Texts, or what one message holds: a picture or a text."""
    server, served = _picked(request, asked.model, "embed")
    clip = served.loaded
    assert isinstance(clip, CLIP)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    picture = None
    if asked.messages is not None:
        parts = parts_of(asked.messages[0])
        if len(asked.messages) != 1 or len(parts) != 1 or not parts[0]:
            raise refused("messages must be one message with one part: a picture or a text", "messages")
        if isinstance(parts[0], str):
            texts = [parts[0]]
        else:
            picture = (await server.reader.picture(address_of(parts[0]), "messages", clip)).pixels
    if texts is not None:
        texts = server.reader.texts(texts, "input")
        if not texts:
            raise refused("input is empty", "input")

    def embed() -> tuple[Any, int]:
        if picture is not None:
            return clip.embed_images([picture]), 1
        assert texts is not None
        return work.embed_texts(clip, texts)

    vectors, tokens = await _done(request, served, lambda _: embed())
    data = [
        {"object": "embedding", "index": index, "embedding": work.embedding(vector, asked.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})


async def classify(request: Request, asked: ClassifyRequest) -> JSONResponse:
    """Zero-shot classification of pictures."""
    server, served = _picked(request, asked.model, "classify")
    clip = served.loaded
    assert isinstance(clip, CLIP)
    labels = server.reader.texts(asked.labels, "labels")
    templates = None if asked.templates is None else server.reader.texts(asked.templates, "templates")
    if len(labels) * len(templates or [""]) > server.limits.texts * 4:
        raise refused("labels times templates are too many", "templates")
    if len(set(labels)) < len(labels):
        raise refused("a label stands there twice", "labels")
    pictures = await server.reader.pictures(asked.images, "images", clip)
    results = await _done(request, served, lambda _: work.classify(clip, pictures, labels, templates))
    return JSONResponse({"object": "classification", "model": served.name, "results": results})


async def score(request: Request, asked: ScoreRequest) -> JSONResponse:
    """Multiple choice: the log-probability of each answer after a conversation."""
    server, served = _picked(request, asked.model, "score")
    vlm = served.loaded
    assert isinstance(vlm, VLM)
    answers = server.reader.texts(asked.answers, "answers")
    conversation = await server.reader.conversation(asked.messages, vlm)
    prompt = vlm.prompt(conversation.messages)
    longest = len(prompt.tokens) + max(len(vlm.tokenizer.encode(answer)) for answer in answers)
    server.engine.check_length(served, longest, "answers")

    def go(meanwhile: Meanwhile) -> dict[str, Any]:
        encoded = server.engine.encode(served, conversation.pictures)
        return work.score(vlm, prompt, encoded, answers, server.engine.settings.slots, meanwhile)

    return JSONResponse({"object": "score", "model": served.name, **await _done(request, served, go)})


async def explain(request: Request, asked: ExplainRequest) -> JSONResponse:
    """The last message is the answer that is explained, whoever gave it."""
    server, served = _picked(request, asked.model, "chat")
    vlm = served.loaded
    assert isinstance(vlm, VLM)
    conversation = await server.reader.conversation(asked.messages, vlm, last="assistant")
    if not conversation.pictures:
        raise refused("there is no picture in these messages to look at", "messages")
    if any(isinstance(part, Picture) for part in conversation.messages[-1].parts):
        raise refused("words are explained, and no pictures: leave those of the last message out", "messages")
    prompt, tokens = answer_tokens(vlm, conversation)
    server.engine.check_length(served, len(prompt.tokens) + len(tokens), "messages")
    numbers = len(tokens) * len(conversation.shown) * vlm.model.image_path.positions
    if numbers > EXPLAINED:
        raise refused(f"{numbers} shares of attention are too many: explain a part of the answer", "messages")

    def go(meanwhile: Meanwhile) -> dict[str, Any]:
        encoded = server.engine.encode(served, conversation.pictures)
        found = work.looked(vlm, prompt, encoded, tokens, asked.top)
        return {
            **found,
            "parts": [list(one.part) for one in conversation.shown],
            "seen": work.seen(vlm, encoded),
        }

    return JSONResponse({"object": "explanation", "model": served.name, **await _done(request, served, go)})


async def tokenize(request: Request, asked: TokenizeRequest) -> JSONResponse:
    """The codes of a VQ-VAE, or of the one inside a discrete VLM."""
    server, served = _picked(request, asked.model, "tokenize")
    picture = (await server.reader.picture(asked.image, "image", served.vqvae)).pixels
    found = await _done(request, served, lambda _: work.tokenize(served.vqvae, picture))
    return JSONResponse({"object": "codes", "model": served.name, **found})


async def reconstruct(request: Request, asked: ReconstructRequest) -> JSONResponse:
    """Picture to codes to picture, or the last half of the way."""
    server, served = _picked(request, asked.model, "tokenize")
    picture = None
    if asked.image is not None:
        picture = (await server.reader.picture(asked.image, "image", served.vqvae)).pixels
    found = await _done(request, served, lambda _: work.reconstruct(served.vqvae, picture, asked.codes))
    return JSONResponse({"object": "reconstruction", "model": served.name, **found})


async def draw(request: Request, asked: DrawRequest) -> Response:
    """One picture for each of n, whole or with news of how far it is."""
    server, served = _picked(request, asked.model, "draw")
    if asked.n > server.limits.choices:
        raise refused(f"n is {asked.n}, and the limit is {server.limits.choices}", "n")
    assert isinstance(served.loaded, VLM | Parti)
    side = served.loaded.picture_size
    if asked.size not in (None, "auto", f"{side}x{side}"):
        raise refused(f"{served.name} draws at {side}x{side}: leave size out, or give that", "size")
    prompt = server.reader.texts([asked.prompt], "prompt")[0]
    seed = (secrets.randbelow(SEEDS) if asked.seed is None else asked.seed) % SEEDS
    jobs = drawing_jobs(served, prompt, asked, seed, server, waiting(request))
    outbox = jobs[0].outbox
    server.engine.submit(jobs)
    cancel = partial(server.engine.cancel, outbox)
    if asked.stream:
        return EventStream(drawing_events(outbox, len(jobs), request.state.about), cancel)
    try:
        pictures = await until_gone(request, drawings(outbox, len(jobs)))
    finally:
        cancel()
    data = [{"b64_json": picture} for picture in pictures]
    return JSONResponse(
        {"created": int(time.time()), "output_format": "png", "size": f"{side}x{side}", "data": data}
    )


# ---------------------------------------------------------------- what they share


def _picked(request: Request, name: str | None, ability: str) -> tuple[Server, Served]:
    server: Server = request.app.state.server
    served = server.catalogue.pick(name, ability)
    request.state.about["model"] = served.name
    return server, served


async def _result(outbox: Outbox) -> Any:
    while not isinstance(item := await outbox.get(), Result):
        pass  # news of how far it is
    return item.value


async def _done(request: Request, served: Served, go: Callable[[Meanwhile], Any]) -> Any:
    """What ``go`` returns, which the engine's thread calls when its turn comes, with what to call now and then."""
    server: Server = request.app.state.server
    task = Task(served, *waiting(request), go=go)
    server.engine.submit([task])
    try:
        return await until_gone(request, _result(task.outbox))
    finally:
        server.engine.cancel(task.outbox)


# ---------------------------------------------------------------- errors


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _user_error(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(400, str(error)), 400)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {
        400: "the body cannot be read as JSON",
        404: "there is no such route",
        405: "this route is not called so",
    }
    message = known.get(error.status_code, error.detail)
    return JSONResponse(error_body(error.status_code, message), error.status_code, headers=error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    """Whoever stands around the application logs it."""
    message = f"something went wrong in the server; its log has {request.state.request_id}"
    return JSONResponse(error_body(500, message), 500)


async def _invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request, named as the client wrote it, without the value it has."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        message = f"{place[-1]} is not supported by this server"
    elif first["type"] == "json_invalid":
        message, param = "the body is not JSON", None
    else:
        message = f"{param or 'the body'}: {first['msg']}"
    return JSONResponse(error_body(400, message, param, first["type"]), 400)
