"""A server under load: many clients, questions and answers of mixed length, some of whom leave in the middle.

    python benchmarks/serve.py runs/quickstart/vlm-continuous --seconds 60 --page docs/serving.md

Beside it the same model one request at a time, and the same weights behind the same route with the ``generate`` of
transformers. Each is a process of its own, whose clients are here. Before the load every question is put once, alone:
an answer that is another one later counts as mixed up.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from page import Page
from PIL import Image

from bifocal import inference
from bifocal.data.sample import Picture
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.data.text import TextTokenizer
from bifocal.models.language import LanguageConfig
from bifocal.models.vision import VisionConfig
from bifocal.models.vlm import VLM, VLMConfig

SENTENCE = (
    "is there an owl left of the two red hearts on a blue tile, or what else do you see in the picture?"
)
WORDS = SENTENCE.split()
SERVERS = ("batched", "one at a time", "transformers")
Kind = Literal["batched", "one at a time", "transformers"]


@dataclass
class Count:
    """What the clients of one server saw."""

    answers: int = 0
    left: int = 0
    lost: list[str] = field(default_factory=list)
    mixed: int = 0
    tokens: int = 0
    first: list[float] = field(default_factory=list)  # seconds to the first text
    seconds: float = 0.0
    memory: list[float] = field(default_factory=list)  # MiB of the server, each second
    slots: str = ""

    def row(self, name: str) -> str:
        """A line of the table."""
        p50, p99 = (np.percentile(self.first, share) * 1000 for share in (50, 99)) if self.first else (0, 0)
        early, late = (np.mean(part) for part in np.array_split(np.asarray(self.memory), 2))
        return (
            f"| {name} | {self.tokens / self.seconds:,.0f} | {self.answers / self.seconds:.1f} | {p50:,.0f} | "
            f"{p99:,.0f} | {self.answers} | {self.left} | {len(self.lost)} | {self.mixed} | "
            f"{late / early - 1:+.1%} | {self.slots} |"
        )


HEADER = (
    "| served | tokens/s | answers/s | first token p50, ms | p99 | answers | left | lost | mixed up | memory, second "
    "half | slots left taken |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def random_model(place: Path) -> None:
    """A continuous VLM of the quickstart's shape and random weights, which talks as fast as a trained one."""
    words = TextTokenizer.train([" ".join(WORDS)] * 8, size=600, codes=0, box_bins=64)
    torch.manual_seed(0)
    config = VLMConfig(
        language=LanguageConfig(vocabulary=len(words)),
        vision=VisionConfig(),
        first_code=words.codes.start,
        first_box=words.boxes.start,
        box_bins=len(words.boxes),
    )
    model = VLM(config)
    with torch.no_grad():
        for weight in model.language_model.parameters():
            if weight.ndim == 2:
                weight.mul_(4)  # so that what it says depends on what it is asked
        model.language_model.lm_head.weight[words.eos] = 0  # and is as long as it may be
    place.mkdir()
    inference.save(place, model, words)


def data_url(picture: np.ndarray) -> str:
    """A picture as clients send it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def nonsense(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Requests of 5 to 150 words, half of them with a picture of noise, that ask for 8 to 96 tokens."""
    chance = random.Random(seed)
    noise = [np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8) for index in range(8)]
    pictures = [data_url(picture) for picture in noise]
    found = []
    for _ in range(count):
        parts: list[dict[str, Any]] = []
        if chance.random() < 0.5:
            parts.append({"type": "image_url", "image_url": {"url": chance.choice(pictures)}})
        parts.append(
            {"type": "text", "text": " ".join(chance.choices(WORDS, k=chance.choice((5, 20, 50, 150))))}
        )
        messages = [{"role": "user", "content": parts}]
        found.append({"messages": messages, "max_tokens": chance.choice((8, 24, 48, 96)), "stream": True})
    return found


def questions(count: int) -> list[dict[str, Any]]:
    """What people ask about scenes that no model has seen: two descriptions, then a question and a box."""
    world = World(WorldSettings())
    sets = [
        SceneDataset(world, "test", task, count) for task in ("captioning", "vqa", "captioning", "grounding")
    ]
    found = []
    for index in range(count):
        dataset = sets[index % len(sets)]
        sample = dataset.samples[index]
        parts: list[dict[str, Any]] = []
        for part in sample.prompt:
            if isinstance(part, Picture):
                url = data_url(dataset.picture(sample.pictures[part.index]))
                parts.append({"type": "image_url", "image_url": {"url": url}})
            else:
                parts.append({"type": "text", "text": str(part)})
        messages = [{"role": "user", "content": parts}]
        found.append({"messages": messages, "max_tokens": 96, "stream": True})
    return found


async def stream(port: int, body: dict[str, Any]) -> AsyncGenerator[str]:
    """The text of an answer, bit by bit; raises for one that does not end as it should."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(status.decode().strip())
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                item = json.loads(line[6:])
                if "error" in item:
                    raise RuntimeError(item["error"]["message"])
                for choice in item["choices"]:
                    yield choice["delta"].get("content") or ""
        raise RuntimeError("the stream ended without its last event")
    finally:
        writer.close()


async def client(
    port: int, asked: Sequence[dict[str, Any]], wanted: Sequence[str], count: Count, until: float, seed: int
) -> None:
    """Asks one question after the other; leaves one answer of ten in the middle."""
    chance = random.Random(seed)
    while time.perf_counter() < until:
        index = chance.randrange(len(asked))
        leaves = chance.randrange(6) if chance.random() < 0.1 else None
        began, text, pieces = time.perf_counter(), "", 0
        answer = stream(port, asked[index])
        try:
            async for piece in answer:
                if piece:
                    if not text:
                        count.first.append(time.perf_counter() - began)
                    text, pieces = text + piece, pieces + 1
                    count.tokens += 1
                if leaves is not None and pieces >= leaves:
                    break
            if leaves is not None:
                count.left += 1
            else:
                count.answers += 1
                count.mixed += text != wanted[index]
        except (RuntimeError, OSError) as error:
            count.lost.append(str(error))
        finally:
            await answer.aclose()


async def watch(pid: int, count: Count, until: float) -> None:
    """The server's memory, each second."""
    while time.perf_counter() < until:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                count.memory.append(int(line.split()[1]) / 1024)
        await asyncio.sleep(min(1.0, max(0.0, until - time.perf_counter())))


async def load(
    port: int, pid: int, asked: Sequence[dict[str, Any]], clients: int, seconds: float, warm: float
) -> Count:
    """Every question alone, then all clients at once."""
    wanted = ["".join([piece async for piece in stream(port, body)]) for body in asked]
    if len(set(wanted)) < len(asked) // 2:
        raise RuntimeError("the answers are too much alike to tell whether any are mixed up")
    await crowd(port, asked, wanted, Count(), min(4, clients), warm)
    count = Count()
    watching = asyncio.create_task(watch(pid, count, time.perf_counter() + seconds))
    await crowd(port, asked, wanted, count, clients, seconds)
    await watching
    count.seconds = seconds
    return count


async def crowd(
    port: int,
    asked: Sequence[dict[str, Any]],
    wanted: Sequence[str],
    count: Count,
    clients: int,
    seconds: float,
) -> None:
    """So many clients for so long; what they wait for at the end counts neither as answered nor as lost."""
    until = time.perf_counter() + seconds
    tasks = [asyncio.create_task(client(port, asked, wanted, count, until, seed)) for seed in range(clients)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def slots_taken(port: int) -> str:
    """What the metrics say when all clients are gone."""
    await asyncio.sleep(0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return next(
        (line.split()[1] for line in text.splitlines() if line.startswith("bifocal_slots_used ")), "-"
    )


def serve_with_transformers(run: Path, port: int) -> None:
    """The route of a chat with the ``generate`` of transformers behind it, one request at a time."""
    import socket
    import threading

    import transformers
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    from bifocal.data.chat import read_messages
    from bifocal.generation.prompt import embed_prompt

    vlm = inference.load(run, dtype="float32")
    assert isinstance(vlm, inference.VLM)
    # a finished run is a directory of transformers too
    llava = transformers.LlavaForConditionalGeneration.from_pretrained(run, dtype=torch.float32).eval()
    turn = threading.Lock()
    never = vlm.forbidden.nonzero().flatten().tolist()

    class Pipe:
        """What ``generate`` calls a streamer."""

        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop, self.queue = loop, asyncio.Queue[int | None]()

        def put(self, value: Any) -> None:
            for token in value.flatten().tolist():
                self.loop.call_soon_threadsafe(self.queue.put_nowait, token)

        def end(self) -> None:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, None)

    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()
        pictures, messages = read_messages(body["messages"])
        pipe = Pipe(asyncio.get_running_loop())

        @torch.inference_mode()
        def work() -> None:
            with turn:
                x_TD, _ = embed_prompt(vlm.model, vlm.prompt(messages), vlm.encode(pictures), 0)
                llava.generate(
                    inputs_embeds=x_TD[None], max_new_tokens=body["max_tokens"], do_sample=False, streamer=pipe,
                    eos_token_id=vlm.tokenizer.eos, pad_token_id=vlm.tokenizer.pad, suppress_tokens=never,
                )  # fmt: skip

        threading.Thread(target=work, daemon=True).start()

        async def events() -> AsyncGenerator[str]:
            tokens: list[int] = []
            shown = ""
            while (token := await pipe.queue.get()) is not None:
                tokens.append(token)
                text = vlm.tokenizer.decode(tokens)
                yield f"data: {json.dumps({'choices': [{'delta': {'content': text[len(shown) :]}}]})}\n\n"
                shown = text
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    with socket.create_server(("127.0.0.1", port)) as listening:
        print(f"transformers at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        server.run(sockets=[listening])


def measure(
    kind: Kind, run: Path, clients: int, seconds: float, warm: float, asked: list[dict[str, Any]]
) -> Count:
    """Start a server, load it, end it."""
    if kind == "transformers":
        command = [sys.executable, __file__, "--peer", str(run)]
    else:
        slots = "16" if kind == "batched" else "1"
        command = [sys.executable, "-m", "bifocal", "serve", str(run), "--port", "0", "--dtype", "float32"]
        command += ["--slots", slots, "--context", "1024", "--grace", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().strip().rpartition(":")[2])
            count = asyncio.run(load(port, server.pid, asked, clients, seconds, warm))
            count.slots = asyncio.run(slots_taken(port)) if kind != "transformers" else "-"
        finally:
            server.kill()  # it may have a long queue of those who are gone
    return count


def main(
    run: tyro.conf.Positional[Path | None] = None,
    seconds: float = 60.0,
    warm: float = 10.0,
    clients: int = 64,
    asked: int = 40,
    servers: tuple[Kind, ...] = SERVERS,
    page: Path | None = None,
    peer: Path | None = None,
) -> None:
    """Print a line for each way to serve, and what was lost.

    Args:
        run: a finished continuous VLM, asked about unseen scenes; without, one of the quickstart's shape and random
            weights, which answers nonsense at any length.
        seconds: of load for each.
        warm: seconds of load before them.
        clients: at once.
        asked: different questions.
        servers: which to measure.
        page: a Markdown page with the marks <!-- load --> to write the table between.
        peer: serve this run with transformers instead (this is how the script starts it).
    """
    if peer is not None:
        serve_with_transformers(peer, 0)
        return
    with tempfile.TemporaryDirectory() as folder:
        if run is None:
            run, bodies = Path(folder) / "random", nonsense(asked)
            random_model(run)
        else:
            bodies = questions(asked)
        rows = [HEADER]
        for kind in servers:
            count = measure(kind, run, clients, seconds, warm, bodies)
            rows.append(count.row(kind))
            print("\n".join([*rows[-1:], *sorted(set(count.lost))]), flush=True)
    if page is not None:
        Page(page, "load").fill("\n".join(rows))


if __name__ == "__main__":
    tyro.cli(main)
