"""What stands before every route: who may come in, how long a body may be, and one line of log for each request."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TextIO

from bifocal.serving.access import Access
from bifocal.serving.errors import ApiError, error_body
from bifocal.serving.limits import Limits
from bifocal.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
# Nothing but the page's own two files is run or shown, and no other page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Log:
    """One JSON object a line; without pictures, and without texts unless ``contents`` asks for them."""

    def __init__(self, stream: TextIO | None = None, contents: bool = False) -> None:
        self.stream, self.contents = stream, contents
        self._lock = threading.Lock()

    def write(self, event: str, **about: Any) -> None:
        """Add a line."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 10**6 % 1000:03d}Z"
        line = json.dumps({"time": now, "event": event, **about}, default=str)
        with self._lock:
            print(line, file=self.stream or sys.stderr, flush=True)


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: App, access: Access, limits: Limits, metrics: Metrics, log: Log) -> None:
        self.app, self.access, self.limits, self.metrics, self.log = app, access, limits, metrics, log
        metrics.counter("bifocal_requests_total", "Requests by route and status.")
        metrics.histogram(
            "bifocal_request_seconds", "From the first byte of a request to the last of its answer."
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self.receive, self.send = guard, scope, receive, send
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:  # of a header that stands twice, the first
            self.headers.setdefault(name.lower(), value)
        asked = self._header(b"x-request-id")
        self.request_id = asked if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(12)
        self.about: dict[str, Any] = {}
        self.status = 0
        self.readable_by = b""

    def _header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")

    async def run(self) -> None:
        began = time.perf_counter()
        self.scope.setdefault("state", {}).update(about=self.about, request_id=self.request_id)
        try:
            await self._answer()
        except ApiError as error:
            await self._fail(error)
        except Exception:
            self.guard.log.write("error", request_id=self.request_id, traceback=traceback.format_exc())
            await self._fail(
                ApiError(500, f"something went wrong in the server; its log has {self.request_id}")
            )
        finally:
            route = getattr(self.scope.get("route"), "path", "other")
            seconds = time.perf_counter() - began
            self.guard.metrics.add("bifocal_requests_total", route=route, status=str(self.status or 499))
            self.guard.metrics.observe("bifocal_request_seconds", seconds)
            self.guard.log.write(
                "request",
                request_id=self.request_id,
                method=self.scope["method"],
                route=route,
                status=self.status or 499,
                seconds=round(seconds, 4),
                **self.about,
            )

    async def _answer(self) -> None:
        access, method = self.guard.access, self.scope["method"]
        host = self._header(b"host")
        access.check_host(host)
        origin = self._header(b"origin") if b"origin" in self.headers else None
        if access.check_origin(origin, host):
            self.readable_by = self.headers[b"origin"]
            if method == "OPTIONS":
                return await self._preflight()
        access.check_key(self.scope["path"], self.headers.get(b"authorization"))
        if method in ("POST", "PUT", "PATCH"):
            if self._header(b"content-type").partition(";")[0].strip().lower() != "application/json":
                raise ApiError(415, "send JSON, with Content-Type: application/json")
            if b"content-encoding" in self.headers:
                raise ApiError(415, "send the body without compression")
            body = await self._body()
            await self.guard.app(self.scope, self._replay(body), self._sent)
        else:
            await self.guard.app(self.scope, self.receive, self._sent)

    async def _body(self) -> bytes:
        """All of it, if it is not too long and arrives in time."""
        limits, body = self.guard.limits, bytearray()
        too_long = ApiError(413, f"the body is longer than {limits.body_bytes} bytes")
        length = self._header(b"content-length")
        if length.isdecimal() and int(length) > limits.body_bytes:
            raise too_long
        try:
            async with asyncio.timeout(limits.body_seconds):
                while True:
                    event = await self.receive()
                    if event["type"] == "http.disconnect":
                        raise ApiError(499, "the client went away")
                    body += event.get("body", b"")
                    if len(body) > limits.body_bytes:
                        raise too_long
                    if not event.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {limits.body_seconds:g} seconds") from None

    def _replay(self, body: bytes) -> Receive:
        """The body once, then whatever the client does: above all, going away."""
        given = False

        async def receive() -> Event:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await self.receive()

        return receive

    async def _sent(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            own = {name.lower() for name, _ in event.get("headers", [])}
            added = [(name, value) for name, value in HEADERS if name not in own]
            added.append((b"x-request-id", self.request_id.encode()))
            if self.guard.access.origins:
                added.append((b"vary", b"Origin"))
            if self.readable_by:
                added.append((b"access-control-allow-origin", self.readable_by))
                added.append((b"access-control-expose-headers", b"X-Request-Id, Retry-After"))
            event = {**event, "headers": [*event.get("headers", []), *added]}
        await self.send(event)

    async def _preflight(self) -> None:
        allowed = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"Authorization, Content-Type, X-Request-Id"),
            (b"access-control-max-age", b"600"),
        ]
        await self._sent({"type": "http.response.start", "status": 204, "headers": allowed})
        await self._sent({"type": "http.response.body", "body": b""})

    async def _fail(self, error: ApiError) -> None:
        """Say so, unless an answer has begun: a stream that ends without its last event says it too."""
        if self.status:
            return
        body = json.dumps(error_body(error.status, error.message, error.param, error.code)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        if error.status in (408, 413):
            headers.append((b"connection", b"close"))  # the rest of the body is not waited for
        await self._sent({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._sent({"type": "http.response.body", "body": body})
