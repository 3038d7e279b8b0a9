"""Answers that arrive bit by bit, and the news that nobody waits for them any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bifocal.serving.errors import ApiError

T = TypeVar("T")
DONE = "data: [DONE]\n\n"


def event(data: dict[str, Any], name: str | None = None) -> str:
    """One server-sent event (HTML standard, section 9.2)."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class EventStream(Response):
    """Sends events as they come; ``cancel`` is called at the end, whoever ends it.

    It listens to the client all the while: one who leaves while his request is queued or read, when there is nothing
    to send yet, is noticed too.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], cancel: Callable[[], None]) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        self.events, self.cancel = events, cancel
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async for piece in self.events:
                await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            if not await _first(write(), receive):
                scope["state"]["about"]["finish_reason"] = "client went away"
        finally:
            await self.events.aclose()
            self.cancel()


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; where the client leaves before, the work is cancelled and ``ApiError`` 499 raised."""
    found: list[T] = []

    async def do() -> None:
        found.append(await work)

    if not await _first(do(), request.receive):
        raise ApiError(499, "the client went away")
    return found[0]


async def _first(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Whether the work was done before the client left; whichever is later is cancelled and waited for."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
