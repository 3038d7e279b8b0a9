"""``bifocal serve`` as a process, and ``ask`` and ``draw`` with ``--url``."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from bifocal import inference
from bifocal.cli import main
from bifocal.commands import remote
from bifocal.models.language import LanguageModel
from bifocal.serving.run import Running
from bifocal.serving.work import png
from serving_live import said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "continuous"
    place.mkdir()
    inference.save(place, tiny.vlm("continuous"), tiny.tokenizer())
    return place


@pytest.fixture
def process(run: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server with a key from the environment, and the port that it says it is at."""
    command = [
        sys.executable,
        "-m",
        "bifocal",
        "serve",
        str(run),
        "--port",
        "0",
        "--grace",
        "0",
        "--dtype",
        "float32",
    ]
    environment = {
        **os.environ,
        "BIFOCAL_KEY": "k1,k2",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("bifocal serves continuous at http://127.0.0.1:"), line
        yield server, int(line.rpartition(":")[2])
        server.kill()


def test_a_signal_in_mid_stream_ends_every_stream_with_a_reason(
    process: tuple[subprocess.Popen[str], int],
) -> None:
    server, port = process
    body = {"messages": said("what?"), "max_tokens": 1000, "temperature": 2.0, "n": 8, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer k2"}
    clients = [http.client.HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(4)]
    answers = []
    for client in clients:
        client.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answers.append(client.getresponse())
    assert answers[0].read(20)  # it has begun
    server.send_signal(signal.SIGTERM)
    for answer in answers:
        last = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")][-1]
        assert last == "data: [DONE]" or "the server" in json.loads(last[6:])["error"]["message"]
    assert server.wait(20) == 0
    assert server.stderr is not None
    lines = [json.loads(line) for line in server.stderr.read().splitlines()]
    assert sum(line["event"] == "request" for line in lines) == 4
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_a_damaged_run_is_refused_before_the_port_opens(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "damaged"
    place.mkdir()
    for file in run.iterdir():
        content = file.read_bytes()
        (place / file.name).write_bytes(
            content[: len(content) // 2] if file.suffix == ".safetensors" else content
        )
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: pytest.fail("the port was opened"))
    assert main(["serve", str(run), str(place)]) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "give it a key"),
        (["--limit", "pictures"], "NAME=VALUE"),
        (["--slots", "0"], "must each be at least 1"),
        (["--grace", "inf"], "--grace must be from 0 to 86400 seconds, got inf"),
        (["--grace", "-1"], "--grace must be from 0"),
        (["--name", "http://a.org"], "no name of a server"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(run), *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_slots_that_do_not_fit_into_memory_are_said_before_the_port_opens(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(LanguageModel, "new_cache", none_left)
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: pytest.fail("the port was opened"))
    words = ["--slots", "1000", "--context", "1000000", "--dtype", "float32"]
    assert main(["serve", str(run), *words]) == 2
    # keys and values of two layers with two heads of eight numbers of four bytes
    size = 2 * 2 * 2 * 8 * 4 * 10**9 / 2**30
    assert f"for continuous take {size:.1f} GiB, which cannot be had" in capsys.readouterr().err


def test_a_server_that_is_not_ours_answers_as_far_as_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(tiny.picture(0)).save(tmp_path / "a.png")
    words = ["ask", "gpt", str(tmp_path / "a.png"), "what?", "--url", "http://x"]
    choice: dict[str, Any] = {"message": {"content": "an owl"}, "finish_reason": "stop", "logprobs": None}
    monkeypatch.setattr(remote, "post", lambda *_: {"choices": [choice]})
    assert main(words) == 0 and capsys.readouterr().out == "an owl\n"
    monkeypatch.setattr(remote, "post", lambda *_: {"choices": []})
    assert main(words) == 2
    assert "what answers at http://x is no bifocal server" in capsys.readouterr().err
    monkeypatch.setattr(remote, "post", lambda *_: {"data": [{"url": "http://x/1.png"}]})
    assert main(["draw", "dall-e", "an owl", "-o", str(tmp_path / "o.png"), "--url", "http://x"]) == 2
    assert "its answer is of another form" in capsys.readouterr().err


@pytest.mark.parametrize("given", [None, 1.5])
def test_the_guidance_that_is_usual_is_left_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: float | None
) -> None:
    bodies: list[dict[str, Any]] = []

    def post(url: str, route: str, body: dict[str, Any]) -> Any:
        bodies.append(body)
        return {"data": [{"b64_json": png(tiny.picture(0))}]}

    monkeypatch.setattr(remote, "post", post)
    flags = [] if given is None else ["--guidance", str(given)]
    assert main(["draw", "parti", "an owl", "-o", str(tmp_path / "o.png"), "--url", "http://x", *flags]) == 0
    assert bodies[0].get("guidance") == given


def test_a_port_that_is_taken_is_one_sentence(
    run: Path, server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    port = server.socket.getsockname()[1]
    assert main(["serve", str(run), "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err


def test_ask_puts_the_question_to_a_server(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(tiny.picture(0)).save(tmp_path / "a.bmp")  # which no server takes as it is
    words = [str(tmp_path / "a.bmp"), "what is it?", "--max-new-tokens", "8", "--json"]
    assert main(["ask", "continuous", *words, "--url", server.url]) == 0
    found = json.loads(capsys.readouterr().out)
    vlm = server.catalogue.models["continuous"].loaded
    assert isinstance(vlm, inference.VLM)
    wanted = vlm.answer([tiny.picture(0)], "what is it?", max_new_tokens=8)
    assert (found["text"], found["finish_reason"]) == (wanted.text, wanted.finish_reason)
    np.testing.assert_allclose(found["logprobs"], wanted.logprobs, rtol=1e-4, atol=1e-5)


def test_a_server_is_told_how_to_sample_and_where_to_stop(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(tiny.picture(0)).save(tmp_path / "a.png")
    settings = {"temperature": 1.5, "top_k": 8, "top_p": 0.9, "seed": 3, "max_new_tokens": 16}
    vlm = server.catalogue.models["continuous"].loaded
    assert isinstance(vlm, inference.VLM)
    whole = vlm.answer(tmp_path / "a.png", "what is it?", **settings).text
    stop = whole[len(whole) // 2]
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = [str(tmp_path / "a.png"), "what is it?", *flags, "--stop", stop, "--url", server.url]
    assert main(["ask", "continuous", *words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == whole.partition(stop)[0].strip()


def test_draw_lets_a_server_draw(server: Running, tmp_path: Path) -> None:
    words = ["an owl", "--seed", "3", "-o", str(tmp_path / "o.png"), "--url", server.url]
    assert main(["draw", "discrete", *words]) == 0
    vlm = server.catalogue.models["discrete"].loaded
    assert isinstance(vlm, inference.VLM)
    wanted = vlm.draw("an owl", seed=3)[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "o.png").convert("RGB")), np.asarray(wanted))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x", "no address of a server"),
        ("http://127.0.0.1:9", "cannot be reached"),
        ("", "the server at"),
    ],
)
def test_a_server_that_does_not_answer_is_one_sentence(
    server: Running, url: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # of our own server, a model that it does not have
    assert main(["draw", "nobody", "an owl", "-o", str(tmp_path / "o.png"), "--url", url or server.url]) == 2
    assert message in capsys.readouterr().err
