"""Who may speak to a server: keys, the names it answers to, and the pages that may call it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bifocal.config import UserError
from bifocal.serving.errors import ApiError
from bifocal.serving.page import FILES

# What the page is made of, and whether the server is well: nothing in them is worth a key.
OPEN = frozenset({*FILES, "/health"})
_NAME = re.compile(r"[a-z0-9_.-]+|\[[0-9a-f:.]+\]")
LOCAL = ("localhost", "127.0.0.1", "[::1]")
ANYWHERE = ("0.0.0.0", "::", "")  # where a server listens at all addresses: no name of its own


@dataclass(frozen=True)
class Access:
    """Without a key a server speaks to its own machine only, and to no page but its own.

    ``names`` are what a request may call the server in its Host header, beside ``host`` itself; without any it may use
    this machine's names, and where there is a key and the host is not of this machine alone, any.
    """

    host: str = "127.0.0.1"
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.keys and not is_loopback(self.host):
            raise UserError(
                f"a server at {self.host} can be reached from other machines: give it a key (--key, or BIFOCAL_KEY "
                "in the environment)"
            )
        if any(not key.strip() or key != key.strip() for key in self.keys):
            raise UserError("a key must not be empty, nor begin or end with white space")
        for key in self.keys:
            refuse_unsendable(key, "a key")
        for name in self.names:
            if not _NAME.fullmatch(host_in(name)):
                raise UserError(
                    f"{name!r} is no name of a server: write it as bifocal.example.org, without http://"
                )
        for origin in self.origins:
            scheme, mark, host = origin.partition("://")
            if scheme not in ("http", "https") or not mark or not host or set(host) & set("/*?#@ "):
                raise UserError(
                    f"{origin!r} is no origin of a page: write it as https://example.org, without path and without *"
                )

    def check_host(self, header: str) -> None:
        """Refuse a request that was meant for another name.

        A page whose own name is made to resolve to 127.0.0.1 (DNS rebinding) is of one origin with the server in the
        eyes of a browser; its Host header still says where it came from.
        """
        known = self.names or (() if self.keys and not is_loopback(self.host) else LOCAL)
        own = () if self.host.strip("[]") in ANYWHERE else (self.host,)
        if known and host_in(header) not in {host_in(name) for name in (*known, *own)}:
            raise ApiError(421, "this server does not go by the name in the Host header (see --name)")

    def check_origin(self, origin: str | None, host: str) -> bool:
        """Whether the answer may be read across origins; refuses pages that are neither the server's own nor listed."""
        if origin is None or origin in (f"http://{host}", f"https://{host}"):
            return False
        if origin not in self.origins:
            raise ApiError(403, "pages of that origin may not call this server (see --origin)")
        return True

    def check_key(self, path: str, authorization: bytes | None) -> None:
        """Refuse a request without one of the keys, in a time that says nothing about them."""
        if not self.keys or path in OPEN:
            return
        given = authorization or b""
        given = given[7:] if given[:7].lower() == b"bearer " else b""
        # every key is compared, and digests of equal length are; a client may write a key in either encoding
        matches = [hmac.compare_digest(_digest(given), known) for known in self._digests()]
        if not any(matches):
            raise ApiError(
                401,
                "this server wants a key: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _digests(self) -> list[bytes]:
        return [_digest(key.encode(encoding)) for key in self.keys for encoding in ("utf-8", "latin-1")]


def host_in(text: str) -> str:
    """The host that a Host header or a user names: in small letters, without port, IPv6 in brackets."""
    bare = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    try:
        return f"[{ipaddress.IPv6Address(bare)}]"
    except ValueError:
        pass
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isdecimal() or not port):
        return text.lower()
    return host_in(host) if host.endswith("]") else host.lower()


def refuse_unsendable(key: str, what: str) -> None:
    """Raise ``UserError`` for a key that no program can send: a header holds Latin-1 without control characters."""
    if any(not 32 <= ord(letter) < 256 or ord(letter) == 127 for letter in key):
        raise UserError(
            f"{what} holds a letter that cannot be sent in a header: use letters of Latin-1, best a to z, 0 to 9 and -"
        )


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def keys_of(flags: Sequence[str], environment: str | None) -> tuple[str, ...]:
    """Keys given by flag, and those that the environment names, separated by commas."""
    return (*flags, *(key for key in (environment or "").split(",") if key))


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
