"""Every attack that a server must survive, tried on one that runs; docs/security.md says what came back.

    python benchmarks/attacks.py docs/security.md

The models are tiny and of random weights: what is attacked is what stands before them. The tests run the same list.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from page import Page
from safetensors.torch import save_file

import tiny
from bifocal import inference
from bifocal.config import UserError
from bifocal.serving.access import Access
from bifocal.serving.catalogue import open_all
from bifocal.serving.limits import Limits
from bifocal.serving.media import Media
from bifocal.serving.remote import Remote
from bifocal.serving.run import Running, Settings
from serving_live import ask, data_url, live, picture_file, said, shown, wait_until

HOST, PUBLIC = "images.example.org", "93.184.215.14"
CHAT = "/v1/chat/completions"
KEY = "schlüssel-7"
HEAD = (
    f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n"
)


@dataclass(frozen=True)
class Found:
    """What came back, and whether that is what should."""

    answer: str
    held: bool


@dataclass
class Stranger:
    """A web server elsewhere, of which only the bytes matter; the fetcher believes that it is at ``PUBLIC``."""

    answers: dict[str, Sequence[bytes]] = field(default_factory=dict)
    pause: float = 0.0
    resolved: list[list[str]] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)

    def resolve(self, host: str, port: int) -> list[str]:
        return self.resolved.pop(0) if self.resolved else [PUBLIC]

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        self.connected.append(address)
        ours, theirs = socket.socketpair()
        ours.settimeout(seconds)
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            path = connection.recv(65536).split(b" ")[1].decode()
            for piece in self.answers.get(path, [b"HTTP/1.1 404 No\r\n\r\n"]):
                connection.sendall(piece)
                time.sleep(self.pause)


@dataclass
class Target:
    """The servers that are attacked: an open one that fetches from ``HOST``, and one with a key."""

    open: Running
    keyed: Running
    stranger: Stranger
    folder: Path

    def chat(self, **changes: Any) -> tuple[int, str]:
        """A question, a little changed."""
        body = {"model": "continuous", "messages": said("what?"), "max_tokens": 4, **changes}
        return ask(self.open.url, "POST", CHAT, body)[:2]

    def look(self, url: str) -> tuple[int, str]:
        """A question about the picture at ``url``."""
        return self.chat(messages=shown(url))


Attack = Callable[[Target], Found]
ATTACKS: list[tuple[str, str, Attack]] = []  # number, what is tried, and doing it


def attack(number: str, what: str) -> Callable[[Attack], Attack]:
    """Put a function into the list."""

    def enter(go: Attack) -> Attack:
        ATTACKS.append((number, what, go))
        return go

    return enter


def sentence(status: int, text: str) -> str:
    """Status and message in one cell."""
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "an answer" if status == 200 else text[:80]
    return f"{status}: {message[:150]}"


def refused(status: int, text: str, *statuses: int) -> Found:
    """Refused in one sentence that gives nothing away."""
    leak = any(word in text for word in (" at 0x", "Traceback", "/src/", "Errno", PUBLIC))
    return Found(sentence(status, text), status in (statuses or (400,)) and not leak)


def answered(status: int, text: str) -> Found:
    """Taken as what it is."""
    return Found(sentence(status, text), status == 200)


def all_of(found: Sequence[Found]) -> Found:
    """Several tries of one kind."""
    return Found("; ".join(dict.fromkeys(one.answer for one in found)), all(one.held for one in found))


def looks(target: Target, urls: Sequence[str]) -> Found:
    """Addresses of which none may be connected to."""
    target.stranger.connected.clear()
    found = all_of([refused(*target.look(url)) for url in urls])
    return Found(found.answer, found.held and not target.stranger.connected)


# ---------------------------------------------------------------- 1-10: pictures from addresses

FORBIDDEN = {
    "1": ("loopback", ["http://127.0.0.1/a.png", "http://localhost/a.png", "https://127.1.2.3/"]),
    "2": ("the metadata service of clouds", ["http://169.254.169.254/latest/meta-data/"]),
    "3": (
        "loopback in IPv6, and IPv4 wrapped in IPv6",
        ["http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/"],
    ),
    "4": ("addresses as decimal, hexadecimal, octal", ["http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/"]),
    "7": (
        "what two parsers read in two ways: backslash, user info, trailing dot, port, other spellings",
        [
            f"http://{HOST}\\@evil.org/", f"http://{HOST}@evil.org/", f"http://user:pw@{HOST}/", f"http://{HOST}./",
            f"http://{HOST}:22/", f"http://{HOST.upper()}/", f"http://{HOST}%00.evil.org/", f"http://{HOST}/\r\nX: y",
            f"http:/{HOST}/", f"http://{HOST} .evil.org/", f"http://{HOST}.evil.org/",
        ],
    ),
    "8": (
        "files of the server: other schemes, paths, NUL",
        ["file:///etc/passwd", f"ftp://{HOST}/a.png", "/etc/passwd", "../../etc/passwd", "a.png\0", "gopher://x/", ""],
    ),
}  # fmt: skip

for _number, (_what, _urls) in FORBIDDEN.items():
    attack(_number, _what)(lambda target, urls=_urls: looks(target, urls))  # type: ignore[misc]


@attack("3", "a name that resolves to a private or wrapped address")
def private_names(target: Target) -> Found:
    found = []
    for address in (
        "10.0.0.1",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "fe80::1%1",
        "224.0.0.1",
        "100.64.0.1",
        "0.0.0.0",
    ):
        target.stranger.resolved = [[address]]
        found.append(looks(target, [f"http://{HOST}/a.png"]))
    target.stranger.resolved = [[PUBLIC, "127.0.0.1"]]
    return all_of([*found, looks(target, [f"http://{HOST}/a.png"])])


def answer_of(*pieces: bytes, head: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> list[bytes]:
    """What a stranger sends."""
    return [head, *pieces]


@attack("5", "a redirect to a private address, to another host, in a circle")
def redirects(target: Target) -> Found:
    found = []
    for place in ("http://127.0.0.1/", "https://evil.org/a.png", "file:///etc/passwd", "/circle", ""):
        target.stranger.answers["/circle"] = answer_of(
            head=b"HTTP/1.1 302 No\r\nLocation: " + place.encode() + b"\r\n\r\n"
        )
        found.append(refused(*target.look(f"http://{HOST}/circle")))
    return all_of(found)


@attack("6", "DNS rebinding: a name that is public when it is checked and private a moment later")
def rebinding(target: Target) -> Found:
    target.stranger.answers["/a.png"] = answer_of(picture_file(tiny.picture(0)))
    target.stranger.resolved = [[PUBLIC], ["127.0.0.1"]]
    target.stranger.connected.clear()
    status, text = target.look(f"http://{HOST}/a.png")
    left = len(target.stranger.resolved)
    target.stranger.resolved.clear()
    # it was looked up once, and the connection went to what was checked
    return Found(
        f"{sentence(status, text)}, from {PUBLIC}",
        status == 200 and left == 1 and target.stranger.connected == [PUBLIC],
    )


@attack("9", "a server that sends a byte now and then, in the header and in the body")
def drip(target: Target) -> Found:
    found = []
    target.stranger.pause = 0.1
    for pieces in ([b"H", b"T", b"T", b"P"] + [b"/"] * 100, answer_of(*[b"\x89"] * 100)):
        target.stranger.answers["/slow"] = pieces
        began = time.monotonic()
        one = refused(*target.look(f"http://{HOST}/slow"))
        found.append(Found(one.answer, one.held and time.monotonic() - began < 3))
    target.stranger.pause = 0
    return all_of(found)


@attack("10", "no length and no end, a false length, a compressed body")
def lengths(target: Target) -> Found:
    whole = picture_file(tiny.picture(0))
    head = b"HTTP/1.1 200 OK\r\n"
    cases = {
        "/endless": answer_of(*[b"\x89PNG" + b"\0" * 65536] * 40),
        "/short": answer_of(whole[:50], head=head + b"Content-Length: 5000\r\n\r\n"),
        "/long": answer_of(whole, head=head + b"Content-Length: 9\r\n\r\n"),
        "/gzip": answer_of(zlib.compress(whole), head=head + b"Content-Encoding: gzip\r\n\r\n"),
        "/wrong": answer_of(whole, head=head + b"Content-Length: -1\r\nContent-Length: x\r\n\r\n"),
    }
    target.stranger.answers.update(cases)
    tries = [target.look(f"http://{HOST}{path}") for path in cases]
    return all_of(
        [
            answered(*one) if path == "/wrong" and one[0] == 200 else refused(*one)
            for path, one in zip(cases, tries, strict=True)
        ]
    )


# ---------------------------------------------------------------- 11-17: pictures in the request


def png(width: int, height: int, body: bytes) -> bytes:
    """A PNG that says a size, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@attack("11", "a PNG of 20,000 x 20,000 pixels, and one of 2^31 - 1 by 1")
def bomb(target: Target) -> Found:
    body = zlib.compress(b"\0" * 1_000_000, 9)
    began = time.monotonic()
    found = all_of(
        [refused(*target.look(data_url(png(w, h, body)))) for w, h in ((20_000, 20_000), (2**31 - 1, 1))]
    )
    return Found(found.answer, found.held and time.monotonic() - began < 2)


@attack("12", "formats that are rare: BMP, TIFF, ICO, PPM, PCX, TGA, SVG, EPS, PDF")
def formats(target: Target) -> Found:
    files = {
        form: picture_file(tiny.picture(0), form) for form in ("BMP", "TIFF", "ICO", "PPM", "PCX", "TGA")
    }
    files |= {
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "PDF": b"%PDF-1.7\n",
    }
    return all_of([refused(*target.look(data_url(data))) for data in files.values()])


@attack("12", "files of several frames, of which the first counts")
def frames(target: Target) -> Found:
    first, second = (Image.fromarray(tiny.picture(seed)) for seed in (0, 1))
    found = []
    for form in ("GIF", "WEBP", "PNG"):
        options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
        moving = picture_file(first, form, save_all=True, append_images=[second] * 50, **options)
        still = picture_file(first, form, **options)
        one, other = (target.look(data_url(data, form.lower())) for data in (moving, still))
        same = one[0] == 200 == other[0] and content(one[1]) == content(other[1])
        found.append(Found(sentence(*one), same))
    return all_of(found)


@attack(
    "13", "odd pictures: 1 x 1, 1 x 5,000, 16 bits, CMYK, a palette with transparency, grey with alpha, 1 bit"
)
def odd(target: Target) -> Found:
    colours = Image.fromarray(tiny.picture(0))
    palette = colours.quantize(16)
    palette.info["transparency"] = 3
    files = [
        ("png", picture_file(np.full((1, 1, 3), 9, np.uint8))),
        ("png", picture_file(np.zeros((5000, 1, 3), np.uint8))),
        ("png", picture_file(np.arange(1024, dtype=np.uint16).reshape(32, 32))),
        ("jpeg", picture_file(colours.convert("CMYK"), "JPEG")),
        ("png", picture_file(palette)),
        ("png", picture_file(colours.convert("LA"))),
        ("png", picture_file(colours.convert("1"))),
    ]
    return all_of([answered(*target.look(data_url(data, kind))) for kind, data in files])


@attack("14", "pictures that are cut off, empty or damaged")
def broken(target: Target) -> Found:
    noise = tiny.picture(0, 256)
    found = []
    for form in ("PNG", "JPEG", "WEBP", "GIF"):
        data = picture_file(noise, form)
        damaged = data[:200] + bytes(255 - byte for byte in data[200:])
        for bad in (data[: len(data) // 2], data[:20], b""):
            found.append(refused(*target.look(data_url(bad, form.lower()))))
        status, text = target.look(data_url(damaged, form.lower()))
        # what a decoder can make something of is answered, as any viewer shows it
        found.append(answered(status, text) if status == 200 else refused(status, text))
    return Found("400: one sentence for each", all(one.held for one in found))


@attack("15", "the same bytes as 30 x 100 and as 100 x 30, one after the other")
def shapes(target: Target) -> Found:
    grey = np.random.default_rng(5).integers(0, 256, 9000, dtype=np.uint8)
    before = target.open.metrics.value("bifocal_image_cache_misses_total")
    found = [
        answered(*target.look(data_url(picture_file(grey.reshape(shape)))))
        for shape in ((30, 100, 3), (100, 30, 3))
    ]
    misses = target.open.metrics.value("bifocal_image_cache_misses_total") - before
    return Found(
        f"{all_of(found).answer}; {misses:.0f} were encoded", misses == 2 and all(one.held for one in found)
    )


@attack("16", "base64 that is none, a type that is wrong or unknown, an address without data")
def addresses(target: Target) -> Found:
    good = data_url(picture_file(tiny.picture(0)))
    urls = [
        good[:-9] + "!" * 9, good[:-3], good.replace("png", "jpeg"), good.replace("image/png", "text/html"),
        good.replace(";base64", ""), "data:image/png;base64,", "data:", good.replace("png", "svg+xml"),
        good.replace("image/png;", "image/png;charset=x;"), good + "é", "data:image/png;base64," + "A" * 13_000_000,
    ]  # fmt: skip
    return all_of([refused(*target.look(url)) for url in urls])


@attack("16", "a body of 500 MB")
def long_body(target: Target) -> Found:
    headers = {"Content-Length": str(500 * 1024 * 1024)}
    status, text, _ = ask(target.open.url, "POST", CHAT, b"{}", headers)
    return refused(status, text, 413)


@attack("16", "JSON nested 100,000 deep, JSON that is none, numbers of 10,000 digits, other types of body")
def json_bodies(target: Target) -> Found:
    bodies = [
        b'{"messages":' + b"[" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b"{", b"", b"\xff\xfe", b"[]", b"null",
        b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 10_000 + b"}",
    ]  # fmt: skip
    found = [refused(*ask(target.open.url, "POST", CHAT, body)[:2]) for body in bodies]
    plain = ask(target.open.url, "POST", CHAT, b"{}", {"Content-Type": "text/plain"})[:2]
    packed = ask(target.open.url, "POST", CHAT, zlib.compress(b"{}"), {"Content-Encoding": "gzip"})[:2]
    return all_of([*found, refused(*plain, 415), refused(*packed, 415)])


@attack("17", "10,000 pictures in one message")
def many(target: Target) -> Found:
    part = {"type": "image_url", "image_url": data_url(picture_file(tiny.picture(0, 8)))}
    return refused(*target.chat(messages=[{"role": "user", "content": [part] * 10_000}]))


# ---------------------------------------------------------------- 18-22: what is asked for


@attack(
    "18", "n of a billion, top_logprobs of a million, max_tokens of 10^12, temperatures that are no number"
)
def numbers(target: Target) -> Found:
    nan = json.dumps({"messages": said("x"), "temperature": float("nan")}).encode()
    changes: list[dict[str, Any]] = [
        {"n": 10**9}, {"n": 0}, {"n": -1}, {"logprobs": True, "top_logprobs": 10**6}, {"max_tokens": 10**12},
        {"max_tokens": 0}, {"temperature": 1e300}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"n": True},
        {"seed": 1.5}, {"temperature": "hot"},
    ]  # fmt: skip
    found = [refused(*target.chat(**change)) for change in changes]
    return all_of([*found, refused(*ask(target.open.url, "POST", CHAT, nan)[:2])])


@attack("18", "seeds beyond 64 bits, positive and negative")
def seeds(target: Target) -> Found:
    return all_of([answered(*target.chat(seed=seed, temperature=1.0)) for seed in (2**64, -(2**70), -1)])


@attack("19", "10,000 stop texts, an empty one, one of a million characters")
def stops(target: Target) -> Found:
    return all_of(
        [refused(*target.chat(stop=stop)) for stop in (["x"] * 10_000, [""], "", ["x" * 1_000_000])]
    )


def schema(value: Any) -> dict[str, Any]:
    """A response_format."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


@attack(
    "20",
    "schemas that end nowhere, are huge or deep, fetch others, or have patterns that other engines hang at",
)
def schemas(target: Target) -> Found:
    deep: Any = {"type": "integer"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    impossible = [
        {"$ref": "#"}, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, deep,
        {"enum": ["x" * 10 + str(index) for index in range(5000)]}, {"$ref": "http://127.0.0.1:1/x"},
        {"type": "banana"}, {"type": "string", "pattern": "(a)\\1"}, {"type": "string", "pattern": "("},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
    ]  # fmt: skip
    possible = [
        {"type": "string", "pattern": "^(a+)+$"}, {"type": "string", "pattern": "^((a{0,100}){0,100}){0,100}$"},
        {"$defs": {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"},
        {"type": "array", "minItems": 100_000, "items": {"type": "integer"}}, {"type": "string", "maxLength": 10**9},
    ]  # fmt: skip
    began = time.monotonic()
    found = [refused(*target.chat(response_format=schema(value))) for value in impossible]
    for value in possible:
        status, text = target.chat(response_format=schema(value))
        found.append(answered(status, text) if status == 200 else refused(status, text))
    return Found(all_of(found).answer, all(one.held for one in found) and time.monotonic() - began < 5)


@attack("21", "names of special tokens in a user's words")
def literal_tokens(target: Target) -> Found:
    names = [*tiny.tokenizer().special, "<loc0001>", "<image>", "<|im_end|>"]
    status, text = target.chat(messages=said("what? " + " ".join(names)))
    vlm = target.open.catalogue.models["continuous"].loaded
    assert isinstance(vlm, inference.VLM)
    inside = vlm.tokenizer.encode(" ".join(names))
    special = {*vlm.tokenizer.special.values(), *vlm.tokenizer.boxes, *vlm.tokenizer.codes} & set(inside)
    images = json.loads(text)["usage"]["prompt_tokens_details"]["image_tokens"]
    return Found(
        f"{status}: they are words, {len(special)} special tokens",
        status == 200 and not special and images == 0,
    )


@attack("22", "a chat template, tools, functions, code or other fields in the request")
def templates(target: Target) -> Found:
    fields = {
        "chat_template": "{{ x }}",
        "tools": [],
        "functions": [],
        "logit_bias": {"1": 5},
        "extra_body": {},
        "__class__": "x",
    }
    return all_of([refused(*target.chat(**{name: value})) for name, value in fields.items()])


# ---------------------------------------------------------------- 23-25: doors


@attack("23", "every route without a key, with a wrong one, with half of one, with an empty one")
def keys(target: Target) -> Found:
    url = target.keyed.url
    routes = [
        ("GET", path) for path in ("/metrics", "/v1/models", "/v1/models/clip", "/openapi.json", "/nowhere")
    ]
    routes += [
        ("POST", f"/v1/{name}")
        for name in (
            "chat/completions",
            "embeddings",
            "images/generations",
            "classify",
            "score",
            "explain",
            "tokenize",
            "reconstruct",
        )
    ]
    found = []
    for method, path in routes:
        body = b"{}" if method == "POST" else None
        for header in (
            {},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer schl"},
            {"Authorization": "Basic x"},
        ):
            found.append(refused(*ask(url, method, path, body, header)[:2], 401))
    return all_of(found)


@attack("23", "a key that is not ASCII, in UTF-8 and in Latin-1")
def odd_keys(target: Target) -> Found:
    found = []
    for encoding in ("utf-8", "latin-1"):
        header = {"Authorization": f"Bearer {KEY.encode(encoding).decode('latin-1')}"}
        found.append(answered(*ask(target.keyed.url, "GET", "/v1/models", None, header)[:2]))
    return all_of(found)


@attack("24", "other pages: foreign origins, null, names that end or begin as an allowed one")
def origins(target: Target) -> Found:
    found = []
    for origin in (
        "https://evil.org",
        "null",
        "https://page.example.org.evil.org",
        "https://evilpage.example.org",
        "http://page.example.org",
        "",
    ):
        status, text, headers = ask(target.open.url, "POST", CHAT, {}, {"Origin": origin})
        one = refused(status, text, 403)
        found.append(
            Found(one.answer, one.held and not any(name.startswith("access-control") for name in headers))
        )
    return all_of(found)


@attack("24", "an origin that is allowed, with its preflight: no credentials, no star")
def allowed_origin(target: Target) -> Found:
    origin = {"Origin": "https://page.example.org"}
    answers = [
        ask(target.open.url, "OPTIONS", CHAT, None, origin),
        ask(target.open.url, "GET", "/v1/models", None, origin),
    ]
    good = all(
        status in (200, 204)
        and headers["access-control-allow-origin"] == origin["Origin"]
        and headers["vary"] == "Origin"
        and "access-control-allow-credentials" not in headers
        for status, _, headers in answers
    )
    return Found("204 and 200, for that origin alone", good)


@attack("24", "other names in the Host header, as after DNS rebinding")
def hosts(target: Target) -> Found:
    names = (
        "evil.org",
        "null",
        "",
        "localhost.evil.org",
        "127.0.0.1.nip.io",
        "localhost.",
        "[::1",
        "127.0.0.1@evil.org",
    )
    return all_of(
        [refused(*ask(target.open.url, "GET", "/v1/models", None, {"Host": name})[:2], 421) for name in names]
    )


def damaged(target: Target, change: Callable[[Path], None]) -> Found:
    """A directory that is refused before the port opens."""
    place = Path(tempfile.mkdtemp(dir=target.folder)) / "model"
    place.mkdir()
    inference.save(place, tiny.vlm("continuous"), tiny.tokenizer())
    change(place)
    began = time.monotonic()
    try:
        open_all([place])
    except UserError as error:
        return Found(
            str(error).replace(f"{place}/", "").replace(str(place), "it")[:130], time.monotonic() - began < 3
        )
    return Found("it was opened", False)


def configured(**changes: Any) -> Callable[[Path], None]:
    """A configuration that says something else."""

    def change(place: Path) -> None:
        about = json.loads((place / "config.json").read_text())
        for name, value in changes.items():
            about["text_config"][name] = value
        (place / "config.json").write_text(json.dumps(about))

    return change


@attack("25", "a checkpoint with a pickle for its weights")
def pickled(target: Target) -> Found:
    def change(place: Path) -> None:
        (place / "model.safetensors").unlink()
        # the opcodes of os.system("exit"), which an unpickler would run
        (place / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")

    return damaged(target, change)


@attack("25", "weights whose header is longer than the file, lies about offsets, or is none")
def offsets(target: Target) -> Found:
    def head(header: bytes, length: int | None = None) -> Callable[[Path], None]:
        data = struct.pack("<Q", len(header) if length is None else length) + header
        return lambda place: (place / "model.safetensors").write_bytes(data) and None  # type: ignore[return-value]

    far = b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,4000000000]}}'
    large = b'{"x":{"dtype":"F32","shape":[4000000000,4000000000],"data_offsets":[0,0]}}'
    return all_of(
        [
            damaged(target, head(*one))
            for one in ((b"{}", 2**60), (far,), (large,), (b"[" * 100_000,), (b"null",))
        ]
    )


@attack(
    "25",
    "a configuration that asks for a billion layers, for more memory than there is, or is nested without end",
)
def greedy(target: Target) -> Found:
    cases = [
        configured(num_hidden_layers=10**9),
        configured(hidden_size=2**22, num_attention_heads=1, num_key_value_heads=1),
        configured(vocab_size=10**12),
    ]
    found = [damaged(target, case) for case in cases]
    return all_of(
        [*found, damaged(target, lambda place: (place / "config.json").write_bytes(b"[" * 200_000) and None)]
    )  # type: ignore[return-value]


@attack("25", "a vocabulary that names tokens for which the model has no row")
def vocabulary(target: Target) -> Found:
    def change(place: Path) -> None:
        words = type(tiny.tokenizer()).train(tiny.TEXTS * 4, size=400, codes=999, box_bins=8)
        words.write(place / "tokenizer.json")

    return damaged(target, change)


@attack("25", "an archive whose entries climb out of it (zip-slip) in the place of weights")
def archive(target: Target) -> Found:
    import zipfile

    def change(place: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("../../escaped", b"x")
        (place / "model.safetensors").write_bytes(buffer.getvalue())

    return damaged(target, change)


@attack("25", "weights of other shapes than the configuration's")
def other_shapes(target: Target) -> Found:
    import torch

    return damaged(target, lambda place: save_file({"x": torch.zeros(3)}, str(place / "model.safetensors")))


# ---------------------------------------------------------------- and besides


@attack("-", "header injection by the request id, ids that are too long")
def request_ids(target: Target) -> Found:
    found = []
    for value in ("x\tSet-Cookie: a=b", "a" * 5000, "<script>", "é", "a b"):
        status, _, headers = ask(target.open.url, "GET", "/health", None, {"X-Request-Id": value})
        own = headers["x-request-id"]
        found.append(Found(f"{status}: an id of its own", status == 200 and own != value and own.isalnum()))
    return all_of(found)


@attack(
    "-",
    "100 clients that ask and leave at once: while they wait, while they are read, while they are answered",
)
def storm(target: Target) -> Found:
    body = json.dumps(
        {
            "model": "continuous",
            "messages": said("what?"),
            "max_tokens": 200,
            "stream": True,
            "temperature": 1,
        }
    ).encode()
    host, port = target.open.socket.getsockname()[:2]
    head = HEAD.format(len(body))
    for index in range(100):
        with socket.create_connection((host, port)) as client:
            client.sendall(head.encode() + (body if index % 3 else body[:20]))
            if index % 3 == 2:
                client.recv(100)
    wait_until(lambda: not target.open.engine.busy, 20)
    status, _ = target.chat()
    return Found(f"no slot is taken, and the next question gets {status}", status == 200)


@attack("-", "more answers than the queue holds")
def overflow(target: Target) -> Found:
    small = Settings(port=0, limits=Limits(queue=4), grace=1)
    with live(small) as running:
        status, text, headers = ask(running.url, "POST", CHAT, {"messages": said("x"), "n": 8})
    return Found(
        f"{sentence(status, text)} Retry-After {headers.get('retry-after')}",
        status == 429 and int(headers["retry-after"]) > 0,
    )


@attack("-", "a body that never comes")
def slow_body(target: Target) -> Found:
    with live(Settings(port=0, limits=Limits(body_seconds=0.2), grace=1)) as running:
        with socket.create_connection(running.socket.getsockname()[:2], timeout=5) as client:
            client.sendall((HEAD.format(99) + "{").encode())
            answer = client.recv(65536).decode()
    return Found(answer.splitlines()[0], " 408 " in answer.splitlines()[0])


@attack("-", "a server beyond this machine without a key")
def beyond(target: Target) -> Found:
    try:
        Access(host="0.0.0.0")
    except UserError as error:
        return Found(str(error), True)
    return Found("it was allowed", False)


def content(text: str) -> str:
    """What was said."""
    return str(json.loads(text)["choices"][0]["message"]["content"])


@contextlib.contextmanager
def targets(folder: Path) -> Iterator[Target]:
    """The servers, ready to be attacked."""
    stranger = Stranger()
    limits = Limits(picture_bytes=1024 * 1024)
    remote = Remote((HOST,), seconds=1.0, resolve=stranger.resolve, connect=stranger.connect)
    open_to = Settings(port=0, access=Access(origins=("https://page.example.org",)), limits=limits, grace=1)
    with (
        live(open_to, media=Media(limits, remote)) as first,
        live(Settings(port=0, access=Access(keys=(KEY, "another")), grace=1)) as second,
    ):
        yield Target(first, second, stranger, folder)


def main(page: tyro.conf.Positional[Path | None] = None) -> None:
    """Try every attack, print what came back, and fail if one of them had another end than it should.

    Args:
        page: a Markdown page with the marks <!-- attacks --> to write the table between.
    """
    rows, lost = [], []
    with tempfile.TemporaryDirectory() as folder, targets(Path(folder)) as target:
        for number, what, go in ATTACKS:
            found = go(target)
            rows.append(
                (int(number) if number.isdigit() else 99, number, what, found.answer.replace("|", "\\|"))
            )
            print(f"{'held' if found.held else 'LOST'}  {number:>2}  {what}: {found.answer}", flush=True)
            lost += [] if found.held else [what]
    table = ["| case | what was tried | what came back |", "| ---: | --- | --- |"]
    table += [
        f"| {number} | {what} | {answer} |"
        for _, number, what, answer in sorted(rows, key=lambda row: row[0])
    ]
    if page is not None:
        Page(page, "attacks").fill("\n".join(table))
    if lost:
        raise SystemExit(f"{len(lost)} attacks were not held: {'; '.join(lost)}")


if __name__ == "__main__":
    tyro.cli(main)
