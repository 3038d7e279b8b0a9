"""`bifocal draw`: a prompt to pictures, with a Parti or a discrete VLM."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from bifocal import inference
from bifocal.commands.figures import grid
from bifocal.commands.remote import draw_on_server
from bifocal.config import UserError
from bifocal.generation.rerank import best_first
from bifocal.training.progress import counted

# What others do not take, with what it is if not given.
OF_PARTI: dict[str, Any] = {"schedule": "constant", "size": None}
NOT_OF_SERVERS: dict[str, Any] = {**OF_PARTI, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True)
class DrawSettings:
    """How to draw; ``guidance`` none is what each kind of model has by default."""

    n: int = 1
    guidance: float | None = None
    schedule: Literal["constant", "linear"] = "constant"
    seed: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    rerank: Path | None = None
    candidates: int | None = None
    size: tuple[int, int] | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"-n must be at least 1, got {self.n}")
        if self.candidates is not None and (self.rerank is None or self.candidates < self.n):
            raise UserError(
                f"--candidates {self.candidates} are drawn for a CLIP to choose from: name it with --rerank, and draw "
                f"at least the {self.n} that are kept"
            )

    @property
    def drawn(self) -> int:
        """How many pictures are drawn."""
        return self.candidates or self.n


def draw_command(
    run: Path, prompt: str, output: Path, settings: DrawSettings, *, device: str = "cpu", dtype: str = "auto"
) -> None:
    """Draw into one PNG, several pictures side by side."""
    clip = None if settings.rerank is None else open_clip(settings.rerank, device=device, dtype=dtype)
    if settings.url is None:
        pictures = _drawn_here(run, prompt, settings, device=device, dtype=dtype)
    else:
        pictures = drawn_there(settings.url, run.name, prompt, settings, settings.seed)
    if clip is not None:
        best = best_first(clip, pictures, [prompt])[0].tolist()
        pictures = [pictures[place] for place in best[: settings.n]]
    if len(pictures) == 1:
        pictures[0].save(output)
        return
    columns = min(len(pictures), 8)
    Image.fromarray(grid([np.asarray(picture) for picture in pictures], columns=columns)).save(output)


def open_drawer(
    run: Path, settings: DrawSettings, *, device: str, dtype: str
) -> tuple[inference.VLM | inference.Parti, dict[str, Any]]:
    """A model that draws, and what its ``draw_batch`` is to be told beside prompts and seed."""
    model = inference.load(run, device=device, dtype=dtype)
    if not isinstance(model, inference.VLM | inference.Parti):
        raise UserError(f"{run} is a {model.kind}, and drawing is for a Parti or a discrete VLM")
    options: dict[str, Any] = {name: getattr(settings, name) for name in ("temperature", "top_k", "top_p")}
    if settings.guidance is not None:
        options["guidance"] = settings.guidance
    if isinstance(model, inference.VLM):
        _refuse_others(settings, OF_PARTI, f"for a Parti, and {run} is a VLM")
        return model, options
    return model, options | {name: getattr(settings, name) for name in OF_PARTI}


def _drawn_here(
    run: Path, prompt: str, settings: DrawSettings, *, device: str, dtype: str
) -> list[Image.Image]:
    model, options = open_drawer(run, settings, device=device, dtype=dtype)
    prompts = [prompt] * settings.drawn
    if isinstance(model, inference.VLM):
        return model.draw_batch(prompts, seed=settings.seed, **options)
    for note in notes(model, prompt):
        print(f"bifocal: {note}", file=sys.stderr)
    with counted("codes") as update:
        return model.draw_batch(
            prompts,
            seed=settings.seed,
            progress=lambda partial: update(partial.done, partial.total),
            **options,
        )


def drawn_there(
    url: str, model: str, prompt: str, settings: DrawSettings, seed: int | None
) -> list[Image.Image]:
    """The drawings of a server's model."""
    _refuse_others(settings, NOT_OF_SERVERS, "not among what a server is asked for")
    return draw_on_server(url, model, prompt, n=settings.drawn, guidance=settings.guidance, seed=seed)


def _refuse_others(settings: DrawSettings, usual: dict[str, Any], why: str) -> None:
    for name, value in usual.items():
        if getattr(settings, name) != value:
            raise UserError(f"--{name.replace('_', '-')} is {why}")


def open_clip(path: Path, *, device: str, dtype: str) -> inference.CLIP:
    """The CLIP that judges drawings."""
    clip = inference.load(path, device=device, dtype=dtype)
    if not isinstance(clip, inference.CLIP):
        raise UserError(f"--rerank {path} is a {clip.kind}, and pictures are put in order by a CLIP")
    return clip


def notes(model: inference.Parti, prompt: str) -> list[str]:
    """What a user should know of a prompt that is drawn all the same."""
    if not prompt.strip():
        return ["the prompt is empty: this is a picture as the model has seen them, of nothing in particular"]
    unknown = model.unknown_words(prompt)
    if not unknown:
        return []
    several = len(unknown) > 1
    return [
        f"no text in training had the {'words' if several else 'word'} {', '.join(unknown)}: what "
        f"{'they mean' if several else 'it means'} was never shown"
    ]
