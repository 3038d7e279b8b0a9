"""`bifocal data check` and `data show`: what is wrong with a folder of samples, and what it looks like."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console

from bifocal.artifacts import atomic_write_text, read_json
from bifocal.commands.tokens import STYLE, coloured, pieces_of, seen_html, supervised_count, tokens_html
from bifocal.config import UserError, from_dict
from bifocal.data.doctor import KINDS, Report, examine
from bifocal.data.folder import FolderDataset
from bifocal.data.sample import Box, Picture, Sample
from bifocal.inference import VLM
from bifocal.pages import Marked, Section, escape, page, picture_html
from bifocal.recipes.packing import as_taught
from bifocal.recipes.runs import RECIPE, settings_in
from bifocal.recipes.vlm import VLMRecipe
from bifocal.training.progress import counted

# ------------------------------------------------------------ check

_IDS = 5  # that a line of the report names
# What a kind of finding means for its samples, where that is not plain.
_COSTS = {"leak": "; each split is sound, but what is learnt from one cannot be scored on the other"}


def check_data(directories: Sequence[Path]) -> Report:
    """Look at everything in the folders, with progress."""
    if not directories:
        raise UserError("data check needs at least one folder of samples")
    with counted("check") as update:
        return examine(directories, update)


def verdict(report: Report) -> str | None:
    """Why the folders are not fit as they are, in one sentence; None where they are."""
    reasons = []
    if lost := report.samples - report.survivors:
        reasons.append(f"{lost} of {report.samples} samples are not fit to be trained on or scored")
    if report.leaked:
        reasons.append(
            f"{report.leaked} of {report.samples} samples are about pictures of another split: keep each picture in one"
        )
    return ", and ".join(reasons) or None


def report_lines(report: Report) -> list[str]:
    """The report for people: how many survive, then each kind of finding with its sentences."""
    lines = [
        f"{report.survivors} of {report.samples} samples survive; they are about {report.pictures} pictures"
    ]
    if report.leaked:
        lines.append(f"{report.leaked} of {report.samples} samples are about pictures of another split")
    for kind, title in KINDS.items():
        some = [finding for finding in report.findings if finding.kind == kind]
        if not some:
            continue
        ids = list(dict.fromkeys(identity for finding in some for identity in finding.ids))
        shown = ", ".join(ids[:_IDS]) + (", ..." if len(ids) > _IDS else "")
        costs = (
            "" if any(finding.fatal for finding in some) else _COSTS.get(kind, "; no sample is lost by it")
        )
        lines.append(f"\n{title}: {len(some)}" + (f" (ids {shown}){costs}" if ids else costs))
        lines += [f"  {finding.message}" for finding in some]
    return lines


# ------------------------------------------------------------ show

_SIDE = 320  # pixels of the longest side of a shown picture


def show_data(
    directory: Path,
    out: Path,
    *,
    task: str | None = None,
    count: int = 60,
    model: VLM | None = None,
    recipe: VLMRecipe | None = None,
) -> None:
    """Write a page with ``count`` samples, spread evenly: pictures, boxes, questions and answers.

    With a ``model`` each is shown as that model learns from it, and the first of them is printed too; ``recipe`` is
    the one that it was trained by, which may put answers in other words.
    """
    dataset = FolderDataset(directory, task)
    number = min(count, len(dataset.samples))
    some = [dataset.samples[place * len(dataset.samples) // number] for place in range(number)]
    if recipe is not None:
        some = [as_taught(sample, recipe, random.Random(sample.id)) for sample in some]
    groups: dict[str, list[Sample]] = {}
    for sample in some:
        groups.setdefault(sample.task, []).append(sample)
    sections = [
        Section(
            name,
            f"{name} ({len(group)})",
            f'<div class="grid">{"".join(_card(dataset, s, model) for s in group)}</div>',
        )
        for name, group in groups.items()
    ]
    lead = f'<p class="lead">{len(some)} of {len(dataset.samples)} samples of {escape(directory)}.</p>'
    atomic_write_text(out, page(f"Samples of {dataset.name}", sections, lead=lead, style=STYLE))
    if model is not None:
        found = pieces_of(some[0], model.template)
        print(f"{some[0].id}: {supervised_count(found)} (green)")
        Console(soft_wrap=True).print(coloured(found))
    print(f"wrote {out}")


def recipe_of(run: Path) -> VLMRecipe | None:
    """The recipe of a VLM's run; None for a directory that another library wrote."""
    if not (run / RECIPE).is_file():
        return None
    return from_dict(VLMRecipe, settings_in(read_json(run / RECIPE)), str(run / RECIPE), older=True)


def _card(dataset: FolderDataset, sample: Sample, model: VLM | None) -> str:
    if model is not None:
        double = " double" if len(sample.pictures) > 1 else ""
        return (
            f'<div class="card{double}"><div class="side">{"".join(seen_html(dataset, sample, model))}</div>'
            f"{tokens_html(pieces_of(sample, model.template))}"
            f'<p><span class="tag">{escape(sample.id)}</span></p></div>'
        )
    boxes = [Marked(box, "", "true") for box in sample.boxes]
    shots = []
    for key in sample.pictures:
        image = Image.fromarray(dataset.picture(key))
        image.thumbnail((_SIDE, _SIDE))
        shots.append(picture_html(image, alt=key, boxes=boxes if len(sample.pictures) == 1 else ()))
    turns = []
    for message in sample.messages:
        words = " ".join(
            _shown(part) for part in message.parts if not isinstance(part, Picture) or len(shots) > 1
        )
        answer = message.role == "assistant"
        turns.append(f"<p><b>{escape(words)}</b></p>" if answer else f"<p>{escape(words)}</p>")
    others = [text for text in sample.references if text != sample.answer_text]
    also = f'<p class="muted">also right: {escape("; ".join(others))}</p>' if others else ""
    tags = f'<span class="tag">{escape(sample.id)}</span>' + (
        f'<span class="tag">{escape(sample.slice)}</span>' if sample.slice != "all" else ""
    )
    pictures = f'<div class="side">{"".join(shots)}</div>' if len(shots) > 1 else "".join(shots)
    double = " double" if len(shots) > 1 else ""
    return f'<div class="card{double}">{pictures}{"".join(turns)}{also}<p>{tags}</p></div>'


def _shown(part: str | Picture | Box) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Picture):
        return f"[picture {part.index + 1}]"
    return "[box " + " ".join(f"{edge:.2f}" for edge in part) + "]"
