"""The recipe for VLMEvalKit in docs/evaluators.md answers what VLMEvalKit sends."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

import tiny
from bifocal import inference

DOCS = Path(__file__).parent.parent / "docs" / "evaluators.md"


def as_jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tiny.picture(seed, 120)).save(file, "JPEG")
    return file.getvalue()


def posted(port: int, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(payload).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer sk-none"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_api_of_the_recipe_answers_as_the_model_does(tmp_path):
    run = tmp_path / "vlm"
    run.mkdir()
    inference.save(run, tiny.vlm("continuous"), tiny.tokenizer())
    ((command, port),) = re.findall(
        r"^bifocal (serve runs/vlm --port (\d+))$", DOCS.read_text(), re.MULTILINE
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = command.replace("runs/vlm", str(run)).replace(port, str(free)).split()
    server = subprocess.Popen(
        [sys.executable, "-m", "bifocal", *words], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        pictures = [as_jpeg(seed) for seed in (0, 1)]
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}", "detail": "low"}}
            for data in (base64.b64encode(picture).decode() for picture in pictures)
        ]
        content.append({"type": "text", "text": "what is in the picture?"})
        payload = {
            "model": "vlm",
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 12,
        }
        patience = time.monotonic() + 60
        while True:
            try:
                status, said = posted(free, payload)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < patience
                time.sleep(0.1)
        expected = inference.load(run).answer(pictures, "what is in the picture?", max_new_tokens=12)
        assert status == 200, said
        assert said["choices"][0]["message"]["content"] == expected.text
        status, said = posted(free, payload | {"messages": []})
        assert status == 400 and "messages" in said["error"]["message"]
    finally:
        server.kill()
        server.wait()
