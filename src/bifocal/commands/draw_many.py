"""`bifocal draw --prompts`: many prompts into a folder, with a page of all; what was stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bifocal import inference
from bifocal.artifacts import (
    append_json_line,
    atomic_write_json,
    atomic_write_text,
    cut_half_line,
    read_json,
    read_json_lines,
)
from bifocal.commands.draw import DrawSettings, drawn_there, open_clip, open_drawer
from bifocal.commands.drawings import prompts_of, require_short
from bifocal.config import UserError, fingerprint
from bifocal.data.prompt_file import PromptFile
from bifocal.data.sample import Sample
from bifocal.data.scenes.prompt_set import PromptSet
from bifocal.evaluation.drawing_page import card, choosable
from bifocal.evaluation.kinds import slices_of
from bifocal.generation.rerank import best_first
from bifocal.pages import Section, page, picture_html
from bifocal.training.progress import Progress

ABOUT, LINES, PAGE = "drawings.json", "drawings.jsonl", "index.html"
AT_ONCE = 32  # pictures that are drawn together
_CHANGED = {"model": "another model", "prompts": "other prompts", "settings": "other settings"}

Draw = Callable[
    [Sequence[str], int], Sequence[Image.Image]
]  # prompts, the seed of the first -> a picture of each


def draw_many(
    run: Path, prompts: str, folder: Path, settings: DrawSettings, *, device: str = "cpu", dtype: str = "auto"
) -> Path:
    """Draw every prompt of a file (or "default", those of the scenes) into ``folder``; returns its page.

    Beside the pictures stand ``drawings.jsonl``, with a line for each prompt, and ``index.html``. Picture i of all that
    are drawn has the seed ``settings.seed`` + i (from 0 if that is none), so it is the same picture however often the
    command was stopped. Raises ``UserError`` where the folder holds drawings of something else.
    """
    dataset = prompts_of(prompts, None, None, None, None)
    samples = dataset.samples
    clip = None if settings.rerank is None else open_clip(settings.rerank, device=device, dtype=dtype)
    draw, who, together = _artist(run, dataset, settings, device=device, dtype=dtype)
    about = {
        "model": who,
        "prompts": fingerprint([[sample.id, sample.question] for sample in samples]),
        "settings": _settings(settings, clip),
    }
    drawn = _begin(folder, about)
    with Progress(f"{run.name} draws {len(samples)} prompts", total=len(samples)) as progress:
        for start in range(0, len(samples), together):
            some = samples[start : start + together]
            if any(sample.id not in drawn for sample in some):
                texts = [sample.question for sample in some for _ in range(settings.drawn)]
                seed = (settings.seed or 0) + start * settings.drawn
                kept = _chosen(draw(texts, seed), some, settings, clip)
                for sample, pictures in zip(some, kept, strict=True):
                    if sample.id not in drawn:
                        drawn[sample.id] = _keep(folder, sample, pictures)
            progress.update(start + len(some))
    cards = [
        card(sample.question, slices_of(sample), [picture_html(folder / name) for name in drawn[sample.id]])
        for sample in samples
    ]
    slices = list(dict.fromkeys(part for sample in samples for part in slices_of(sample)))
    sheet = Section("drawings", "Drawings", choosable(cards, slices, size="small"))
    atomic_write_text(folder / PAGE, page(f"{run.name}: {len(samples)} prompts", [sheet]))
    return folder / PAGE


def _artist(
    run: Path, dataset: PromptFile | PromptSet, settings: DrawSettings, *, device: str, dtype: str
) -> tuple[Draw, str, int]:
    """Who draws, by what name, and the pictures of how many prompts together: a server is asked for those of one."""
    if settings.url is not None:
        url = settings.url
        return (
            lambda texts, seed: drawn_there(url, run.name, texts[0], settings, seed),
            f"{run.name} at {url}",
            1,
        )
    model, options = open_drawer(run, settings, device=device, dtype=dtype)
    if isinstance(dataset, PromptFile):
        require_short(model, dataset)
    say_what_is_unknown(model, dataset.samples)
    together = max(1, AT_ONCE // settings.drawn)
    return lambda texts, seed: model.draw_batch(texts, seed=seed, **options), model.fingerprint, together


def _settings(settings: DrawSettings, clip: inference.CLIP | None) -> dict[str, Any]:
    """What decides the pictures beside model and prompts, as JSON."""
    told = dataclasses.asdict(settings) | {"rerank": None if clip is None else clip.fingerprint}
    del told["url"]
    return told | {"seed": settings.seed or 0, "size": None if settings.size is None else list(settings.size)}


def _begin(folder: Path, about: dict[str, Any]) -> dict[str, list[str]]:
    """The files of each prompt that was drawn before; raises ``UserError`` for a folder of something else."""
    if not (folder / ABOUT).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{folder} is there already, and holds no drawings to go on with: name another with -o"
            )
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_json(folder / ABOUT, about)
        return {}
    before = read_json(folder / ABOUT)
    if before != about:
        why = " and ".join(words for name, words in _CHANGED.items() if before.get(name) != about[name])
        raise UserError(f"{folder} holds drawings of {why}: name another folder with -o")
    lines = folder / LINES
    if not lines.is_file():
        return {}
    cut_half_line(lines)
    found = {line["id"]: line["files"] for line in read_json_lines(lines)}
    return {name: files for name, files in found.items() if all((folder / file).is_file() for file in files)}


def _chosen(
    pictures: Sequence[Image.Image],
    samples: Sequence[Sample],
    settings: DrawSettings,
    clip: inference.CLIP | None,
) -> list[list[Image.Image]]:
    """The pictures of each prompt that are kept."""
    count = settings.drawn
    several = [list(pictures[row * count : (row + 1) * count]) for row in range(len(samples))]
    if clip is None:
        return several
    order = best_first(clip, pictures, [sample.question for sample in samples])[:, : settings.n].tolist()
    return [[some[place] for place in best] for some, best in zip(several, order, strict=True)]


def _keep(folder: Path, sample: Sample, pictures: Sequence[Image.Image]) -> list[str]:
    """Write the pictures of a prompt and then the line that says so; returns their names."""
    names = [
        f"{sample.id}.png" if len(pictures) == 1 else f"{sample.id}-{number}.png"
        for number in range(1, len(pictures) + 1)
    ]
    for name, picture in zip(names, pictures, strict=True):
        picture.save(folder / name)
    line = {"id": sample.id, "prompt": sample.question, "slices": slices_of(sample), "files": names}
    append_json_line(folder / LINES, line)
    return names


def say_what_is_unknown(model: inference.VLM | inference.Parti, samples: Sequence[Sample]) -> None:
    """Say which words of the prompts no training text of a Parti had."""
    if not isinstance(model, inference.Parti):
        return
    unknown = [model.unknown_words(sample.question) for sample in samples]
    words = sorted({word for some in unknown for word in some})
    if words:
        some = ", ".join(words[:10]) + (", ..." if len(words) > 10 else "")
        print(
            f"bifocal: {sum(map(bool, unknown))} of the {len(samples)} prompts have words that no text in training had "
            f"({some}): what they mean was never shown",
            file=sys.stderr,
        )
