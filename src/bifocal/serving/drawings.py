"""Drawings of a request: jobs of the engine, and what they say to pictures or to news of how far they are."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from PIL import Image

from bifocal.generation.sampling import GUIDANCE, Sampling
from bifocal.inference import VLM, Parti, Partial
from bifocal.serving.catalogue import Served
from bifocal.serving.errors import ApiError
from bifocal.serving.jobs import Drawn, Job, Meanwhile, Outbox, Result, Sketch, Task
from bifocal.serving.schemas import DrawRequest
from bifocal.serving.server import Server
from bifocal.serving.streams import event
from bifocal.serving.work import png


def drawing_jobs(
    served: Served,
    prompt: str,
    asked: DrawRequest,
    seed: int,
    server: Server,
    waiting: tuple[Outbox, str, float],
) -> Sequence[Job]:
    """A sequence for each drawing of a VLM; for a Parti, which draws them side by side, one task."""
    model = served.loaded
    guidance = GUIDANCE[model.kind] if asked.guidance is None else asked.guidance
    if isinstance(model, Parti):

        def go(meanwhile: Meanwhile) -> list[Image.Image]:
            def progress(part: Partial) -> None:
                meanwhile(part.done, part.total)

            return model.draw(prompt, n=asked.n, guidance=guidance, seed=seed, progress=progress)

        return [Task(served, *waiting, go=go)]
    assert isinstance(model, VLM)
    before, codes = model.drawing_prompt(prompt), model.model.image_path.positions
    server.engine.check_length(served, len(before.tokens) + codes, "prompt")
    return [
        Sketch(
            served,
            *waiting,
            prompt=before,
            sampling=Sampling(max_new_tokens=codes, seed=seed + choice),
            choice=choice,
            guidance=guidance,
        )
        for choice in range(asked.n)
    ]


async def drawings(outbox: Outbox, jobs: int) -> list[str]:
    """The pictures of so many jobs, as base64 of PNGs, in order."""
    found: dict[int, list[Image.Image]] = {}
    while len(found) < jobs:
        item = await outbox.get()
        if isinstance(item, Result):
            found[item.choice] = item.value
    return [png(picture) for choice in sorted(found) for picture in found[choice]]


async def drawing_events(outbox: Outbox, jobs: int, about: dict[str, Any]) -> AsyncGenerator[str]:
    """How many image tokens of all drawings there are, and each drawing as soon as it is whole."""
    done, left = dict.fromkeys(range(jobs), 0), jobs
    try:
        while left:
            item = await outbox.get()
            if isinstance(item, Drawn):
                done[item.choice] = item.done
                name = "image_generation.progress"
                yield event({"type": name, "done": sum(done.values()), "total": jobs * item.total}, name)
            elif isinstance(item, Result):
                left -= 1
                name = "image_generation.completed"
                for offset, picture in enumerate(item.value):
                    drawn = {"b64_json": png(picture), "index": item.choice + offset, "output_format": "png"}
                    yield event({"type": name, "created_at": int(time.time()), **drawn}, name)
    except ApiError as error:
        about["error"] = error.message
        yield event(error.body(), "error")
