"""The small parts: text as it grows, grammars, keys, schemas that the server trusts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from bifocal import inference
from bifocal.commands.remote import post
from bifocal.config import UserError
from bifocal.data.fitting import Fitting
from bifocal.data.sample import Box, Message
from bifocal.generation.writer import Writer
from bifocal.serving import work
from bifocal.serving.access import Access
from bifocal.serving.catalogue import open_all
from bifocal.serving.conversation import Reader, Shown
from bifocal.serving.errors import ApiError
from bifocal.serving.grammar import Grammars
from bifocal.serving.limits import Limits
from bifocal.serving.media import Media
from bifocal.serving.remote import Remote
from serving_live import CPU, data_url, picture_file

WORDS = tiny.tokenizer()


def letters(tokens: list[int]) -> str:
    """One token is one byte of UTF-8."""
    return bytes(tokens).decode("utf-8", errors="replace").strip()


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("an owl", [], "an owl"),
        ("one STOP two", ["STOP"], "one "),
        ("one STO", ["STOP"], "one STO"),
        ("one STOP two", ["two", "STOP"], "one "),
        ("Grüße, 🦉!", [], "Grüße, 🦉!"),
        ("drei STOé vier", ["STOé"], "drei "),
        ("STOP", ["STOP"], ""),
        ("aaab", ["aab"], "a"),
        ("one\ntwo", ["\n"], "one"),
    ],
)
def test_text_grows_and_is_never_taken_back(text: str, stops: list[str], wanted: str) -> None:
    writer = Writer(letters, stops)
    shown = ""
    for token in text.encode():
        shown += writer.add(token)
        assert wanted.startswith(shown) and "\ufffd" not in shown
        if writer.stopped:
            break
    shown += writer.end()
    assert shown == wanted == writer.text
    assert writer.stopped == (wanted != text)


def test_half_a_letter_at_the_end_is_shown_as_such() -> None:
    writer = Writer(letters)
    assert writer.add("é".encode()[0]) == ""
    assert writer.end() == "\ufffd"


def test_whatever_a_grammar_allows_fits_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"enum": ["yes", "no"]}, "n": {"type": "integer"},
            "l": {"type": "array", "items": {"type": "boolean"}},
        },
        "required": ["a", "n", "l"],
        "additionalProperties": False,
    }  # fmt: skip
    grammars = Grammars(WORDS.fingerprint_text, WORDS.eos, len(WORDS))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        constraint, said = grammars.start(schema, Limits()), []
        for _ in range(400):
            allowed = constraint.allowed(said).nonzero().flatten().tolist()
            token = allowed[int(torch.randint(len(allowed), (1,), generator=generator))]
            if token == WORDS.eos:
                break
            said.append(token)
        about = json.loads(WORDS.decode(said))
        assert about["a"] in ("yes", "no") and isinstance(about["n"], int) and isinstance(about["l"], list)


def test_answers_to_one_schema_do_not_meet() -> None:
    grammars = Grammars(WORDS.fingerprint_text, WORDS.eos, len(WORDS))
    schema = {"enum": ["yes", "no"]}
    one, other = grammars.start(schema, Limits()), grammars.start(schema, Limits())
    first = one.allowed([]).nonzero().flatten().tolist()[0]
    one.allowed([first])
    assert other.allowed([]).any()
    assert torch.equal(other.allowed([]), grammars.start(schema, Limits()).allowed([]))


@pytest.mark.parametrize("name", ["continuous", "discrete", "vqvae", "clip"])
def test_what_this_library_writes_is_believed(tmp_path: Path, name: str) -> None:
    models = {
        "continuous": lambda: tiny.vlm("continuous"),
        "discrete": lambda: tiny.vlm("discrete"),
        "vqvae": tiny.vqvae,
        "clip": lambda: tiny.clip(len(WORDS)),
    }
    inference.save(tmp_path, models[name](), None if name == "vqvae" else WORDS)
    assert list(open_all([tmp_path]).models) == [tmp_path.name]


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in (tmp_path / "a" / "run", tmp_path / "b" / "run"):
        place.mkdir(parents=True)
        inference.save(place, tiny.vqvae())
    models = open_all([tmp_path / "a" / "run", tmp_path / "b" / "run"]).models
    assert list(models) == ["run", "run-2"] and models["run-2"].name == "run-2"


def test_int8_is_for_the_decoders_of_vlms_and_what_is_served_beside_them_stays(tmp_path: Path) -> None:
    models = {"vlm": tiny.vlm("continuous"), "clip": tiny.clip(len(WORDS))}
    for name, model in models.items():
        (tmp_path / name).mkdir()
        inference.save(tmp_path / name, model, WORDS)
    found = open_all([tmp_path / name for name in models], dtype="int8").models
    vlm, clip = found["vlm"].loaded, found["clip"].loaded
    assert isinstance(vlm, inference.VLM)
    assert vlm.model.language_model.lm_head.weight.dtype == torch.int8
    assert clip.fingerprint == inference.load(tmp_path / "clip").fingerprint


@dataclass(frozen=True)
class Square:
    """A model that cuts out the middle."""

    picture_size: int = 32
    fitting: Fitting = field(default_factory=lambda: Fitting(mode="shortest"))


def test_a_thin_picture_is_not_blown_up_before_its_middle_is_cut_out() -> None:
    reader = Reader(Media(Limits(picture_pixels=100_000)), Limits(picture_pixels=100_000))

    def read(height: int) -> Shown:
        url = data_url(picture_file(np.zeros((height, 1, 3), np.uint8)))
        return asyncio.run(reader.picture(url, "image", Square()))

    shown = read(90)  # 32 x 2,880 pixels on the way
    assert shown.pixels.shape == (32, 32, 3) and (shown.width, shown.height) == (1, 90)
    assert shown.part == Box(0, 1424 / 2880, 1, 1456 / 2880)
    with pytest.raises(ApiError, match="image is too long for its 1 pixels"):
        read(900)


@pytest.mark.parametrize("given", [b"", b"Bearer ", b"Bearer", b"bearer x", b"Basic \xd0\xba"])
def test_what_is_no_key_is_none(given: bytes) -> None:
    with pytest.raises(ApiError, match="wants a key"):
        Access(keys=("schlüssel",)).check_key("/v1/models", given)


@pytest.mark.parametrize("key", ["ключ", "k\x7fey", "k\ney"])
def test_a_key_that_no_header_can_hold_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="a key holds a letter that cannot be sent in a header"):
        Access(keys=("k", key))
    monkeypatch.setenv("BIFOCAL_KEY", key)
    with pytest.raises(UserError, match="the key in BIFOCAL_KEY holds a letter that cannot be sent"):
        post("http://127.0.0.1:9", "/v1/models", {})


@pytest.mark.parametrize(
    ("access", "known", "strange"),
    [
        (Access(), ["127.0.0.1:8000", "LocalHost", "[::1]:8000"], ["127.0.0.2", "", "a.org", "localhost.", "[::1"]),
        (Access("127.0.0.2"), ["127.0.0.2:8000", "localhost:1"], ["127.0.0.3:8000"]),
        (Access("0.0.0.0", ("k",)), ["a.org", "10.0.0.1:8000"], []),
        (Access("0.0.0.0", ("k",), names=("A.org:8443", "::1")), ["a.ORG", "[::1]:1"], ["b.org", "0.0.0.0"]),
        (Access("10.0.0.1", ("k",), names=("a.org",)), ["a.org", "10.0.0.1:8000"], ["10.0.0.2", "xa.org"]),
    ],
)  # fmt: skip
def test_a_server_answers_to_its_names_however_they_are_written(
    access: Access, known: list[str], strange: list[str]
) -> None:
    for header in known:
        access.check_host(header)
    for header in strange:
        with pytest.raises(ApiError, match="does not go by the name"):
            access.check_host(header)


@pytest.mark.parametrize("name", ["http://a.org", "", "a.org/x", "a b", "*.a.org", "a.org:port"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no name of a server"):
        Access(names=(name,))


def test_between_the_pieces_of_a_score_others_go_on() -> None:
    vlm, done = inference.VLM(tiny.vlm("continuous"), tiny.tokenizer(), "vlm", CPU), []
    prompt = vlm.prompt([Message("user", ("what?",))])
    answers = ["an owl", "two", "hearts", "a dog", "yes"]
    found = work.score(vlm, prompt, None, answers, 2, lambda *far: done.append(far))
    assert done == [(2, 5), (4, 5)] and len(found["results"]) == 5


def test_a_key_is_taken_in_both_spellings() -> None:
    access = Access(keys=("schlüssel",))
    for encoding in ("utf-8", "latin-1"):
        access.check_key("/v1/models", b"Bearer " + "schlüssel".encode(encoding))


@pytest.mark.parametrize("key", ["", " ", " x", "x\n"])
def test_a_key_that_cannot_be_sent_is_refused(key: str) -> None:
    with pytest.raises(UserError, match="key must not be empty"):
        Access(keys=(key,))


@pytest.mark.parametrize(
    "origin", ["*", "https://*.example.org", "example.org", "https://example.org/", "null"]
)
def test_an_origin_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(UserError, match="no origin"):
        Access(origins=(origin,))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "*.example.org", "example.org:80", "Example.org", "a..org", ""]
)
def test_a_host_to_fetch_from_is_a_whole_name(host: str) -> None:
    with pytest.raises(UserError, match="no host that pictures can be fetched from"):
        Remote((host,))
