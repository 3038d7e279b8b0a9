"""``POST /v1/chat/completions``: from a request to jobs of the engine, and from what they say to OpenAI's objects."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bifocal.data.boxes import boxes_from_text
from bifocal.generation.prompt import Prompt
from bifocal.generation.sampling import GUIDANCE, Sampling
from bifocal.generation.telling import Likely
from bifocal.inference import VLM
from bifocal.serving.catalogue import Served
from bifocal.serving.conversation import Conversation
from bifocal.serving.errors import ApiError, refused
from bifocal.serving.grammar import ANY_OBJECT
from bifocal.serving.jobs import Ended, Outbox, Said, Speech
from bifocal.serving.limits import Limits
from bifocal.serving.schemas import ChatRequest
from bifocal.serving.server import Server
from bifocal.serving.streams import DONE, EventStream, event, until_gone
from bifocal.serving.work import png

SEEDS = 2**63


async def chat(request: Request, asked: ChatRequest) -> Response:
    """Answer a conversation, whole or bit by bit."""
    server: Server = request.app.state.server
    served = server.catalogue.pick(asked.model, "chat")
    vlm = served.loaded
    assert isinstance(vlm, VLM)
    about = request.state.about
    about["model"] = served.name
    check(asked, server.limits)
    if asked.may_draw:
        server.catalogue.pick(served.name, "draw")
    conversation = await server.reader.conversation(asked.messages, vlm)
    # beside the loop: a long conversation or a large schema must not keep others waiting
    jobs = await asyncio.to_thread(speeches, asked, served, conversation, server, waiting(request))
    reply = Reply(asked, served, conversation, jobs)
    about.update(prompt_tokens=reply.prompt_tokens, pictures=len(conversation.shown))
    if server.log.contents:
        about["messages"] = [
            {"role": message.role, "text": "".join(part for part in message.parts if isinstance(part, str))}
            for message in conversation.messages
        ]
    server.engine.submit(jobs)
    outbox = jobs[0].outbox
    if asked.stream:
        return EventStream(reply.events(outbox, about, server), lambda: server.engine.cancel(outbox))
    try:
        return JSONResponse(await until_gone(request, reply.whole(outbox, about, server)))
    finally:
        server.engine.cancel(outbox)


def waiting(request: Request) -> tuple[Outbox, str, float]:
    """Where an answer will arrive, whose it is, and until when it is waited for.

    One key is one client, and without keys one address.
    """
    server: Server = request.app.state.server
    client = request.headers.get("authorization") or (request.client.host if request.client else "")
    return Outbox(), client, time.monotonic() + server.limits.request_seconds


def check(asked: ChatRequest, limits: Limits) -> None:
    """Raise ``ApiError`` 400 for what goes beyond the limits, or for what cannot be done together."""
    if asked.n > limits.choices:
        raise refused(f"n is {asked.n}, and the limit is {limits.choices}", "n")
    if asked.top_logprobs > limits.alternatives:
        raise refused(
            f"top_logprobs is {asked.top_logprobs}, and the limit is {limits.alternatives}", "top_logprobs"
        )
    stops = stops_of(asked)
    if len(stops) > limits.stops:
        raise refused(f"stop holds {len(stops)} texts, and the limit is {limits.stops}", "stop")
    if any(not 0 < len(stop) <= limits.stop_characters for stop in stops):
        raise refused(f"a stop text must have 1 to {limits.stop_characters} characters", "stop")
    wanted = wanted_tokens(asked)
    if wanted is not None and wanted > limits.new_tokens:
        name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
        raise refused(f"{name} is {wanted}, and the limit is {limits.new_tokens}", name)


def stops_of(asked: ChatRequest) -> list[str]:
    """None, one or several."""
    return [asked.stop] if isinstance(asked.stop, str) else asked.stop or []


def wanted_tokens(asked: ChatRequest) -> int | None:
    """By either of its names."""
    return asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens


def speeches(
    asked: ChatRequest,
    served: Served,
    conversation: Conversation,
    server: Server,
    waits: tuple[Outbox, str, float],
) -> list[Speech]:
    """One job for each of the n answers; where n is more than one, each has a seed of its own."""
    vlm = served.loaded
    assert isinstance(vlm, VLM)
    prompt = vlm.prompt(conversation.messages)
    context = server.engine.settings.context
    room = context - len(prompt.tokens)
    wanted = wanted_tokens(asked)
    picture = vlm.model.image_path.positions + 2 if asked.may_draw else 1
    if room < (wanted or picture):
        raise refused(
            f"the conversation takes {len(prompt.tokens)} tokens and the answer up to {wanted or picture}, and this "
            f"server holds {context}",
            "messages",
            code="context_length_exceeded",
        )
    longest = wanted or min(room, server.limits.new_tokens)
    if longest < picture:
        raise refused(
            f"an answer of at most {longest} tokens holds no picture, which takes {picture}: give a larger "
            "max_completion_tokens, or leave out modalities",
            "max_completion_tokens",
        )
    constrain = None
    form = asked.response_format
    if form is not None and form.type != "text":
        schema = ANY_OBJECT if form.json_schema is None else form.json_schema.schema_
        constrain = functools.partial(server.grammars(served).start, schema, server.limits)
        constrain()  # here, so that a schema that is none is refused at once
    seed = secrets.randbelow(SEEDS) if asked.seed is None else asked.seed % SEEDS
    drawing = None
    if asked.may_draw:
        guidance = GUIDANCE[vlm.kind] if asked.guidance is None else asked.guidance
        drawing = vlm.drawing(guidance, conversation.messages)
    return [
        Speech(
            served,
            *waits,
            prompt=prompt,
            pictures=conversation.pictures,
            sampling=Sampling(
                max_new_tokens=longest,
                temperature=asked.temperature,
                top_p=asked.top_p,
                top_k=asked.top_k,
                seed=(seed + choice) % SEEDS,
            ),
            choice=choice,
            stops=stops_of(asked),
            top=asked.top_logprobs,
            constrain=constrain,
            drawing=drawing,
        )
        for choice in range(asked.n)
    ]


class Reply:
    """The answers to one request, as they grow."""

    def __init__(
        self, asked: ChatRequest, served: Served, conversation: Conversation, jobs: Sequence[Speech]
    ) -> None:
        assert isinstance(served.loaded, VLM)
        self.asked, self.served, self.vlm = asked, served, served.loaded
        self.shown = conversation.shown
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.prompt_tokens = len(jobs[0].prompt.tokens)
        self.texts = [""] * asked.n
        self.images: list[list[dict[str, Any]]] = [[] for _ in range(asked.n)]
        self.logprobs: list[list[dict[str, Any]]] = [[] for _ in range(asked.n)]
        self.ended: dict[int, Ended] = {}

    def take(self, item: Said | Ended) -> None:
        """Add what was said."""
        if isinstance(item, Ended):
            self.ended[item.choice] = item
            return
        self.texts[item.choice] += item.text
        self.images[item.choice] += map(image_json, item.images)
        if self.asked.logprobs and item.likely:
            self.logprobs[item.choice].append(token_json(item.likely))

    async def whole(self, outbox: Outbox, about: dict[str, Any], server: Server) -> dict[str, Any]:
        """The object of an answer that is not streamed."""
        while len(self.ended) < self.asked.n:
            self.take(await outbox.get())  # type: ignore[arg-type]
        self.note(about, server)
        choices = []
        for index, text in enumerate(self.texts):
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            message["boxes"] = self.boxes(text)
            if self.asked.may_draw:
                message["images"] = self.images[index]
            logprobs = {"content": self.logprobs[index], "refusal": None} if self.asked.logprobs else None
            reason = self.ended[index].reason
            choices.append(
                {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}
            )
        return {**self.head("chat.completion"), "choices": choices, "usage": self.usage()}

    async def events(self, outbox: Outbox, about: dict[str, Any], server: Server) -> AsyncGenerator[str]:
        """The chunks of a stream: the role of each answer, its text bit by bit, why it ended, and what it took."""
        head = self.head("chat.completion.chunk")
        usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage
        if usage:
            head["usage"] = None

        def chunk(choice: int, delta: dict[str, Any], reason: str | None, logprobs: Any = None) -> str:
            about_choice = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return event({**head, "choices": [about_choice]})

        for choice in range(self.asked.n):
            yield chunk(choice, {"role": "assistant", "content": ""}, None)
        try:
            while len(self.ended) < self.asked.n:
                item = await outbox.get()
                assert isinstance(item, Said | Ended)
                self.take(item)
                if isinstance(item, Ended):
                    boxes = self.boxes(self.texts[item.choice])
                    yield chunk(item.choice, {"boxes": boxes} if boxes else {}, item.reason)
                    continue
                logprobs = None
                if self.asked.logprobs and item.likely:
                    logprobs = {"content": self.logprobs[item.choice][-1:], "refusal": None}
                if item.text or logprobs:
                    yield chunk(item.choice, {"content": item.text}, None, logprobs)
                if item.images:
                    yield chunk(item.choice, {"images": self.images[item.choice][-len(item.images) :]}, None)
        except ApiError as error:
            about["error"] = error.message
            yield event(error.body())
            return
        self.note(about, server)
        if usage:
            yield event({**head, "choices": [], "usage": self.usage()})
        yield DONE

    def head(self, kind: str) -> dict[str, Any]:
        """What all objects of an answer begin with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": f"fp_{self.vlm.fingerprint[:12]}",
        }

    def boxes(self, text: str) -> list[dict[str, Any]]:
        """The boxes of an answer in pixels of the last picture as it was sent."""
        if not self.shown:
            return []
        width, height = self.shown[-1].width, self.shown[-1].height
        return [
            {
                "picture": len(self.shown) - 1,
                "pixels": [box.x1 * width, box.y1 * height, box.x2 * width, box.y2 * height],
                "normalized": list(box),
            }
            for box in boxes_from_text(text, len(self.vlm.tokenizer.boxes))
        ]

    def usage(self) -> dict[str, Any]:
        """Image positions are tokens of the prompt."""
        image = len(self.shown) * self.vlm.model.image_path.positions
        completion = sum(ended.tokens for ended in self.ended.values())
        drawn = sum(map(len, self.images)) * self.vlm.model.image_path.positions
        details = {"completion_tokens_details": {"image_tokens": drawn}} if self.asked.may_draw else {}
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {
                "image_tokens": image,
                "text_tokens": self.prompt_tokens - image,
                "cached_tokens": min(ended.cached for ended in self.ended.values()),
                "audio_tokens": 0,
            },
            **details,
        }

    def note(self, about: dict[str, Any], server: Server) -> None:
        """Leave in the log what came of it."""
        about["completion_tokens"] = sum(ended.tokens for ended in self.ended.values())
        about["cached_tokens"] = min(ended.cached for ended in self.ended.values())
        about["finish_reason"] = ",".join(self.ended[index].reason for index in range(self.asked.n))
        if self.asked.may_draw:
            about["drawn"] = sum(map(len, self.images))
        if server.log.contents:
            about["answers"] = self.texts


def token_json(likely: Sequence[Likely]) -> dict[str, Any]:
    """An entry of ``logprobs.content``: the token that was said, and the likeliest ones."""

    def entry(text: str, logprob: float) -> dict[str, Any]:
        # a token can be half a letter, whose bytes are not known
        letters = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": letters}

    said, *others = (entry(*one) for one in likely)
    return {**said, "top_logprobs": others}


def image_json(picture: Image.Image) -> dict[str, Any]:
    """A picture that was drawn, as a message shows one."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(picture)}"}}


def answer_tokens(vlm: VLM, conversation: Conversation) -> tuple[Prompt, list[int]]:
    """A conversation that ends with an answer -> the prompt before it, and the answer's tokens without its end."""
    before = vlm.prompt(conversation.messages[:-1])
    whole = vlm.prompt(conversation.messages)
    return before, whole.tokens[len(before.tokens) : -len(vlm.tokenizer.after("assistant"))]
