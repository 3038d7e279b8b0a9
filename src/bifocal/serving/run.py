"""From runs to a server that listens, and from a signal to one that has ended well."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from bifocal.config import UserError
from bifocal.serving.access import Access
from bifocal.serving.app import make_app
from bifocal.serving.catalogue import Catalogue, open_all
from bifocal.serving.conversation import Reader
from bifocal.serving.engine import Engine, EngineSettings
from bifocal.serving.guard import Guard, Log
from bifocal.serving.limits import Limits
from bifocal.serving.media import Media
from bifocal.serving.metrics import Metrics
from bifocal.serving.remote import remote_of
from bifocal.serving.server import Server

LONGEST_GRACE = 86_400


@dataclass(frozen=True)
class Settings:
    """All that decides how a server behaves, apart from its models."""

    port: int = 8000
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    engine: EngineSettings = field(default_factory=EngineSettings)
    picture_hosts: tuple[str, ...] = ()
    log_contents: bool = False
    grace: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.grace <= LONGEST_GRACE:
            raise UserError(f"--grace must be from 0 to {LONGEST_GRACE} seconds, got {self.grace:g}")


class Running:
    """A server around a catalogue: the guarded application, the engine behind it, and the socket in front of it."""

    def __init__(
        self, catalogue: Catalogue, settings: Settings, log: Log | None = None, media: Media | None = None
    ) -> None:
        self.settings, self.catalogue = settings, catalogue
        self.log = log or Log(contents=settings.log_contents)
        self.metrics = Metrics()
        limits = settings.limits
        media = media or Media(limits, remote_of(settings.picture_hosts))
        # its memory before the port, so that nobody comes to what cannot be; its thread after it, which a port that is
        # taken would leave behind
        self.engine = Engine(catalogue, settings.engine, limits, self.metrics, self.log)
        self.socket = _listen(settings.access.host, settings.port)
        self.engine.start()
        server = Server(catalogue, self.engine, Reader(media, limits), limits, self.metrics, self.log)
        self.app = Guard(make_app(server), settings.access, limits, self.metrics, self.log)
        self.web = _Web(self)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until a signal, or ``stop``; what runs then has ``grace`` seconds to end."""
        _logs_to(self.log)
        try:
            self.web.run(sockets=[self.socket])
        finally:
            self.stop()
            self.engine.join()
            self.socket.close()

    def stop(self) -> None:
        """Take no more, and end."""
        self.engine.stop(self.settings.grace)
        self.web.should_exit = True


class _Web(uvicorn.Server):
    """uvicorn, of which a signal also reaches the engine."""

    def __init__(self, running: Running) -> None:
        settings = running.settings
        super().__init__(
            uvicorn.Config(
                running.app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=settings.limits.connections,
                # the engine fails what is not done after the grace, and the last events must still go out
                timeout_graceful_shutdown=int(settings.grace) + 5,
            )
        )
        self.running = running

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would send itself the signal again at the end, and die of it
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        # not in the handler itself, which may have interrupted whoever holds the engine's lock
        threading.Thread(target=self.running.stop).start()


def serve(runs: Sequence[Path], settings: Settings, *, device: str = "cpu", dtype: str = "auto") -> None:
    """Open every run, then the port; return when a signal has ended it."""
    running = Running(open_all(runs, device=device, dtype=dtype), settings)
    print(f"bifocal serves {', '.join(running.catalogue.models)} at {running.url}", flush=True)
    running.run()


def _listen(host: str, port: int) -> socket.socket:
    name = host.strip("[]")
    try:
        return socket.create_server(
            (name, port), family=socket.AF_INET6 if ":" in name else socket.AF_INET, backlog=2048
        )
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the server cannot listen at {host} port {port}: {reason}") from None


class _Handler(logging.Handler):
    """What uvicorn has to say, as lines of our log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.write("uvicorn", level=record.levelname.lower(), message=record.getMessage())


def _logs_to(log: Log) -> None:
    logger = logging.getLogger("uvicorn")
    logger.handlers[:] = [_Handler(log)]
    logger.propagate = False
