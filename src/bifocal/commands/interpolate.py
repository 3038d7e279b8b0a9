"""`bifocal interpolate`: between a CLIP and what fine-tuning made of it (WiSE-FT, Wortsman et al. 2022).

Fine-tuning gains on the new data and loses on what the model could before. On the straight line between the two sets of
weights there is often a point that keeps most of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bifocal import artifacts, evaluation, inference
from bifocal.commands.evaluation_sets import dataset_of
from bifocal.commands.worlds import world_asked
from bifocal.config import UserError
from bifocal.data.foreign_text import ForeignTokenizer
from bifocal.data.sample import Dataset
from bifocal.data.templates import read_classes, read_templates
from bifocal.evaluation.results import HEADLINES, format_interval, format_value, metric_title
from bifocal.interop.clip_tokens import AnyTokenizer, end_of
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.precision import fast_dtype, open_device, set_precision
from bifocal.models.text import TextConfig
from bifocal.pages import FIRST, INK, LINE, MUTED, SECOND, Section, figure_svg, page, table
from bifocal.training.progress import Progress

SCENES = "scenes"  # in place of a folder: the default data
MIDDLE = 0.5  # the share that the paper recommends where nothing says which is best
CURVE, PAGE = "interpolation.json", "interpolation.html"


@dataclass(frozen=True)
class Score:
    """What one set of weights gets on one set of pictures."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """``share`` 0 is the start, 1 the end."""

    share: float
    old: Score | None
    new: Score | None


def open_pair(start: Path, end: Path) -> tuple[CLIPModel, CLIPModel, AnyTokenizer | None]:
    """Two CLIPs that are one model with different weights, and their tokenizer.

    Raises ``UserError`` where they are not: their mean would mean nothing.
    """
    models, tokenizers, manners = [], [], []
    for path in (start, end):
        model, tokenizer = inference.load_model(path)
        if not isinstance(model, CLIPModel):
            raise UserError(f"{path} is no CLIP, and weights are interpolated between two CLIPs")
        models.append(model)
        tokenizers.append(tokenizer)
        manners.append(_with_named_end(model.config, tokenizer))
    if manners[0] != manners[1]:
        raise UserError(
            f"{start} and {end} are models of different shape or manner: {end} must be trained from {start}"
        )
    seen = not models[0].config.text.causal
    if _said_by(tokenizers[0], seen) != _said_by(tokenizers[1], seen):
        raise UserError(f"{start} and {end} have different tokenizers: {end} must be trained from {start}")
    return models[0], models[1], tokenizers[1]


def _with_named_end(config: CLIPConfig, tokenizer: AnyTokenizer | None) -> CLIPConfig:
    """A text pooled at its highest id is pooled at its end token, which a finished run names instead."""
    if config.text.pooling != "highest" or tokenizer is None or (end := end_of(tokenizer)) is None:
        return config
    return replace(config, text=replace(config.text, pooling="end", end=end, padding=TextConfig.padding))


def _said_by(tokenizer: AnyTokenizer | None, padding_is_seen: bool) -> tuple[Any, ...] | None:
    """What decides how it reads; equal for two that are one. What fills up a causal text stands behind its end."""
    if tokenizer is None:
        return None
    cleaning = tokenizer.cleaning if isinstance(tokenizer, ForeignTokenizer) else ""
    said = tokenizer.sequences(["A picture of 12 owls (it's nice), été."])
    padding = tokenizer.pad if padding_is_seen else None
    return cleaning, padding, said, tokenizer.tokenizer.get_vocab()


@torch.no_grad()
def between(start: CLIPModel, end: CLIPModel, share: float) -> CLIPModel:
    """(1 - share) of the start's weights and ``share`` of the end's; counts, which have no middle, are the end's."""
    model = CLIPModel(end.config)
    theirs = end.state_dict()
    weights: dict[str, Tensor] = {
        name: value.lerp(theirs[name], share) if value.is_floating_point() else theirs[name]
        for name, value in start.state_dict().items()
    }
    model.load_state_dict(weights)
    return model.eval()


def interpolate_command(
    start: Path,
    end: Path,
    out: Path,
    *,
    share: float = MIDDLE,
    points: int = 11,
    new: str | None = None,
    old: str | None = None,
    task: str = "zero-shot",
    templates: str | None = None,
    classes: Path | None = None,
    split: str | None = None,
    count: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> list[Point]:
    """Write the model at ``share`` into ``out``, and the curve of ``points`` shares where there is anything to score.

    ``new`` and ``old`` are folders, or "scenes": what was trained on, and what should not be lost. ``classes`` names
    their class folders, and ``split`` is the one to take of samples that name several.
    """
    if not 0 <= share <= 1:
        raise UserError(f"--share must be between 0 (the start) and 1 (the end), got {share}")
    if points < 2:
        raise UserError(f"--points must be at least 2, got {points}")
    if task not in ("zero-shot", "retrieval"):
        raise UserError(
            f"--task must be zero-shot or retrieval, which a CLIP does without training, got {task}"
        )
    first, last, tokenizer = open_pair(start, end)
    options: dict[str, Any] = {}
    if templates is not None:
        if task != "zero-shot":
            raise UserError(f"--templates is for zero-shot, and the task is {task}")
        options["templates"] = read_templates(templates)
    names: Mapping[str, str] = {}
    if classes is not None:
        if task != "zero-shot":
            raise UserError(f"--classes is for zero-shot, and the task is {task}")
        options["labels"], names = read_classes(classes)
    sets = {
        name: dataset_of(
            task,
            split,
            data=None if data == SCENES else data,
            count=count,
            names=names,
            world=world_asked(run) if data == SCENES else None,
        )
        for name, data, run in (("old", old, start), ("new", new, end))
        if data is not None
    }
    curve: list[Point] = []
    with artifacts.write_directory(out) as work:
        if sets:
            place = open_device(device)
            shares = [number / (points - 1) for number in range(points)]
            with Progress("interpolate", total=len(shares) * len(sets)) as progress:
                for number, each in enumerate(shares):
                    model = between(first, last, each)
                    set_precision(model, fast_dtype(place, dtype))
                    clip = inference.CLIP(model.to(place), tokenizer, f"share {each:g}", place)
                    scores = {name: score(clip, dataset, task, options) for name, dataset in sets.items()}
                    curve.append(Point(each, scores.get("old"), scores.get("new")))
                    progress.update((number + 1) * len(sets))
            write_curve(work, curve, task, share, {"old": old, "new": new})
        inference.save(work, between(first, last, share), tokenizer)
    return curve


def score(clip: inference.CLIP, dataset: Dataset, task: str, options: dict[str, Any]) -> Score:
    """The headline of a task over all its samples."""
    rows = evaluation.evaluate(clip, dataset, task, blank=False, **options)
    row = next(row for row in rows if row.slice == "all" and row.metric == HEADLINES[task])
    assert row.value is not None
    return Score(row.value, row.low, row.high)


def write_curve(
    directory: Path, curve: Sequence[Point], task: str, share: float, data: dict[str, str | None]
) -> None:
    """The curve as JSON, and as a page with its drawing."""
    metric = HEADLINES[task]
    points = [
        {
            "share": point.share,
            **{
                name: vars(s) if s is not None else None
                for name, s in (("old", point.old), ("new", point.new))
            },
        }
        for point in curve
    ]
    about = {"task": task, "metric": metric, "data": data, "share": share, "points": points}
    artifacts.atomic_write_json(directory / CURVE, about)
    rows = [
        [f"{point.share:g}", *(cell for each in (point.old, point.new) for cell in _cells(metric, each))]
        for point in curve
    ]
    columns = ["share of the end", "old data", "95% interval", "new data", "95% interval"]
    body = f'<div class="grid wide">{_drawing(curve, metric_title(metric))}</div>'
    sections = [
        Section("curve", "Between start and end", body),
        Section("points", "Every point", table(columns, rows, numeric=range(5))),
    ]
    title = f"Interpolated weights: {metric_title(metric)}"
    artifacts.atomic_write_text(directory / PAGE, page(title, sections))


def _cells(metric: str, found: Score | None) -> tuple[str, str]:
    if found is None:
        return "–", "–"
    return format_value(metric, found.value), format_interval(metric, found.low, found.high)


def _drawing(curve: Sequence[Point], title: str) -> str:
    """Both scores over the share, and, where both are there, one against the other."""
    from matplotlib.figure import Figure

    both = [(point.old, point.new) for point in curve if point.old and point.new]
    figure = Figure(figsize=(9.2 if both else 4.6, 3.2))
    axes = figure.add_subplot(1, 2 if both else 1, 1)
    shares = [point.share for point in curve]
    for label, colour, found in (
        ("old data", FIRST, [point.old for point in curve]),
        ("new data", SECOND, [point.new for point in curve]),
    ):
        values = [each.value for each in found if each is not None]
        if values:
            axes.plot(shares, values, color=colour, marker="o", markersize=3.5, label=label)
    axes.set_xlabel("share of the end's weights", color=MUTED, fontsize=9)
    axes.legend(frameon=False, fontsize=8, labelcolor=MUTED)
    panels = [axes]
    if both:
        against = figure.add_subplot(1, 2, 2)
        old, new = [a.value for a, _ in both], [b.value for _, b in both]
        against.plot(new, old, color=INK, marker="o", markersize=3.5)
        for place, name in ((0, "start"), (-1, "end")):
            against.annotate(name, (new[place], old[place]), color=MUTED, fontsize=8)
        against.set_xlabel("new data", color=MUTED, fontsize=9)
        against.set_ylabel("old data", color=MUTED, fontsize=9)
        panels.append(against)
    for panel in panels:
        panel.set_title(title, loc="left", fontsize=10, color=INK)
        panel.tick_params(colors=MUTED, labelsize=9, length=0)
        panel.grid(color=LINE, linewidth=0.8)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            panel.spines[side].set_color(LINE)
    return f'<div class="card double">{figure_svg(figure, label=title)}</div>'
