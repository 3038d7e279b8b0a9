"""Fetching a picture from an address that a stranger gave, where the server's owner has allowed its host.

What has to hold is that no request can make the server speak to a machine that its owner did not name (server-side
request forgery, OWASP A10:2021): the host must stand in the list letter by letter, what it resolves to must be public,
the connection goes to the very address that was checked, and every redirect is checked as if it had been asked for.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

from bifocal.config import UserError
from bifocal.serving.errors import refused

REDIRECTS = 3
PIECE = 64 * 1024
AnySocket = TypeVar("AnySocket", bound=socket.socket)
_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?:\.(?!-)[a-z0-9-]{1,63})*\.[a-z][a-z0-9-]*", re.ASCII)
_PLAIN = re.compile(r"[!-~]+", re.ASCII)  # no space, no control character, nothing beyond ASCII
# Networks of IPv6 in which an IPv4 address is wrapped, which may be a private one.
_WRAPPING = [
    ipaddress.IPv6Network(network)
    for network in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
]


def is_public(address: str) -> bool:
    """Whether an IP address, as text, is one of the open internet."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # with a zone, as in fe80::1%eth0
        return False
    if isinstance(ip, ipaddress.IPv6Address) and any(ip in network for network in _WRAPPING):
        return False
    return ip.is_global and not ip.is_multicast


def addresses_of(host: str, port: int) -> list[str]:
    """What a host's name resolves to."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def connect_to(address: str, port: int, seconds: float) -> socket.socket:
    """A connection to an address, never to a name."""
    return socket.create_connection((address, port), timeout=seconds)


@dataclass(frozen=True)
class Remote:
    """Fetches from these hosts over HTTP and HTTPS at their usual ports, and from nowhere else."""

    hosts: tuple[str, ...]
    seconds: float = 5.0
    resolve: Callable[[str, int], Sequence[str]] = addresses_of
    connect: Callable[[str, int, float], socket.socket] = connect_to

    def __post_init__(self) -> None:
        for host in self.hosts:
            if not _NAME.fullmatch(host):
                raise UserError(
                    f"{host!r} is no host that pictures can be fetched from: give a full name such as "
                    "images.example.org, in small letters, without port or address"
                )

    def fetch(self, url: str, limit: int, param: str) -> bytes:
        """The bytes at ``url``, at most ``limit`` of them, within ``seconds`` altogether.

        Raises ``ApiError`` 400 in a sentence that says nothing of what lies behind the address.
        """
        lifeline = Lifeline(self.seconds)
        try:
            for _ in range(REDIRECTS + 1):
                found = self._get(url, limit, param, lifeline)
                if isinstance(found, bytes):
                    return found
                url = found
            raise refused(f"{param} was redirected more than {REDIRECTS} times", param)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if lifeline.cut:
                raise refused(f"{param} did not arrive within {self.seconds:g} seconds", param) from None
            raise refused(f"{param} could not be fetched", param) from error
        finally:
            lifeline.end()

    def _get(self, url: str, limit: int, param: str, lifeline: Lifeline) -> bytes | str:
        """The body, or where a redirect leads."""
        secure, host, target = self._parts(url, param)
        port = 443 if secure else 80
        addresses = list(self.resolve(host, port))
        if not addresses or not all(is_public(address) for address in addresses):
            raise refused(f"{param} is at a host that is not on the open internet", param)
        with contextlib.closing(lifeline.hold(self.connect(addresses[0], port, self.seconds))) as plain:
            stream: socket.socket = plain
            if secure:  # the handshake waits until the lifeline holds the socket it is made on
                context = ssl.create_default_context()
                wrapped = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
                lifeline.hold(wrapped).do_handshake()
                stream = wrapped
            with contextlib.closing(stream):
                connection = http.client.HTTPConnection(host, port)
                connection.sock = stream
                # without compression the length that arrives is the length that is kept
                connection.request(
                    "GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity"}
                )
                answer = connection.getresponse()
                if answer.status in (301, 302, 303, 307, 308):
                    return urljoin(url, answer.getheader("Location") or "")
                if answer.status != 200 or answer.getheader("Content-Encoding", "identity") != "identity":
                    raise refused(f"{param} could not be fetched", param)
                body = bytearray()
                # one byte beyond the limit tells; what the header says of the length is not believed
                while len(body) <= limit and (piece := answer.read1(PIECE)):
                    body += piece
                if lifeline.cut:
                    raise TimeoutError
                if len(body) > limit:
                    raise refused(f"{param} is longer than {limit} bytes", param)
                return bytes(body)

    def _parts(self, url: str, param: str) -> tuple[bool, str, str]:
        """Whether it is HTTPS, the host, path and query; what two parsers could read in two ways is refused."""
        wrong = refused(
            f"{param} is not at a host that this server fetches from ({', '.join(self.hosts)})", param
        )
        if not _PLAIN.fullmatch(url) or "\\" in url:
            raise wrong
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.netloc not in self.hosts:
            raise wrong
        return (
            parts.scheme == "https",
            parts.netloc,
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        )


class Lifeline:
    """Cuts whatever connection is open when the time is over, at the header as well as at the body."""

    def __init__(self, seconds: float) -> None:
        self.cut = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def hold(self, connection: AnySocket) -> AnySocket:
        """From now on this one."""
        self._socket = connection
        if self.cut:
            self._cut()
        return connection

    def _cut(self) -> None:
        self.cut = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """The time does not matter any more."""
        self._timer.cancel()


def remote_of(hosts: Sequence[str]) -> Remote | None:
    """None where no host is allowed: nothing is ever fetched then."""
    return Remote(tuple(hosts)) if hosts else None
