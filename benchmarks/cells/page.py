"""The page of the cells of clip_vs_vqvae.py: tables with intervals, differences with theirs, and a picture.

Cells of one variant differ in their seed alone. Their answers to the same questions are pooled; what is resampled are
the pictures, in a difference those of both at once. Where there are three seeds, the interval over these is given too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import GREY, Page, plain
from scipy.stats import t as student

from bifocal import artifacts
from bifocal.evaluation import TASKS
from bifocal.evaluation.results import prediction_path, read_predictions
from bifocal.evaluation.scoring import groups_of, slices
from bifocal.evaluation.statistics import (
    Combine,
    Interval,
    corpus_interval,
    interval,
    paired_corpus_bootstrap,
    ratio,
    with_count,
)

EVALUATED = "evaluated.json"  # left in a cell that is done
HELD_OUT = "held_out"  # (sum, count) of the loss of each held-out picture
MAIN, OTHER, BLIND = "clip", "codes-512", "nothing"
CAUSES = (MAIN, "clip-codes", "vqvae-vectors", OTHER)
BLUE, ORANGE = "#3a74f0", "#e0762b"


@dataclass(frozen=True)
class Finished:
    """A cell that was trained and asked."""

    variant: str
    sight: str
    positions: int
    seed: int
    place: Path

    @property
    def name(self) -> str:
        return self.place.name


@dataclass(frozen=True)
class Measured:
    """A score as sums over samples: (n,S) statistics, what combines them, and the picture of each."""

    statistics: np.ndarray
    combine: Combine
    groups: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Metric:
    """A column: a task and its metric, or the held-out loss; ``scale`` makes percent of rates."""

    title: str
    task: str
    metric: str
    scale: float = 100.0

    def say(self, found: Interval, sign: str = "") -> str:
        """ "61.3 (58.9 to 63.6)"."""
        value, low, high = (f"{self.scale * each:{sign}.{1 if self.scale > 1 else 3}f}" for each in found)
        return f"{value} ({low} to {high})"


METRICS = (
    Metric("held-out loss, nats a token", HELD_OUT, "loss", 1.0),
    Metric("questions right", "vqa", "accuracy"),
    Metric("boxes found", "grounding", "Acc@0.5"),
    Metric("objects named", "captioning", "objects_named"),
    Metric("captions exact", "captioning", "exact"),
    Metric("statements judged", "reasoning", "accuracy"),
)
COMPARED = METRICS[:4]

# What is held against what, and what the difference is due to.
DIFFERENCES = (
    ("the two families", MAIN, OTHER),
    ("vectors instead of codes, of a CLIP", MAIN, "clip-codes"),
    ("vectors instead of codes, of a VQ-VAE", "vqvae-vectors", OTHER),
    ("CLIP's objective, as vectors", MAIN, "vqvae-vectors"),
    ("CLIP's objective, as codes", "clip-codes", OTHER),
    ("4,096 codes instead of 512", "codes-4096", OTHER),
    ("512 codes instead of 64", OTHER, "codes-64"),
    ("the two families at 16 positions", "clip-gathered", "codes-512-coarse"),
    ("64 positions instead of 16, CLIP", MAIN, "clip-gathered"),
    ("64 positions instead of 16, codes of their own", OTHER, "codes-512-coarse"),
    ("64 positions instead of 16, the same codes", OTHER, "codes-512-gathered"),
    ("the two families without QK-norm", "clip-unnormed", "codes-512-unnormed"),
    ("QK-norm, CLIP", MAIN, "clip-unnormed"),
    ("QK-norm, codes", OTHER, "codes-512-unnormed"),
    ("a VQ-VAE that is taught by CLIP", "codes-512-taught", OTHER),
    ("any picture, in codes", OTHER, BLIND),
)


def title_of(variant: str) -> str:
    """A variant in words."""
    words = {
        MAIN: "CLIP, vectors",
        "clip-codes": "CLIP, 512 codes by k-means",
        "vqvae-vectors": "VQ-VAE of 512 codes, vectors before the codebook",
        "codes-512-taught": "VQ-VAE taught by CLIP, 512 codes",
        BLIND: "no picture",
    }
    base = variant.removesuffix("-unnormed").removesuffix("-gathered")
    codes = re.fullmatch(r"codes-(\d+)(-coarse)?", base)
    said = words.get(base) or ""
    if codes:
        said = f"VQ-VAE{' of stride 16' if codes[2] else ''}, {int(codes[1]):,} codes"
    return (
        said
        + (", 2 x 2 gathered" if "-gathered" in variant else "")
        + (", no QK-norm" if variant.endswith("-unnormed") else "")
    )


@functools.cache
def measured(cell: Finished, metric: Metric, part: str = "all") -> Measured:
    """What a cell scored, over all samples or a slice of them."""
    if metric.task == HELD_OUT:
        sums = np.array(artifacts.read_json(cell.place / EVALUATED)[HELD_OUT], dtype=np.float64)
        return Measured(sums, ratio, [(str(row),) for row in range(len(sums))])
    predictions = read_predictions(prediction_path(cell.place, cell.name, metric.task, "test"))
    chosen = slices(predictions)[part]
    every = groups_of(predictions)
    groups = [every[index] for index in chosen]
    if metric.metric == "exact":
        return Measured(with_count([predictions[index]["correct"] for index in chosen]), ratio, groups)
    found = next(each for each in TASKS[metric.task].measure(predictions) if each.metric == metric.metric)
    return Measured(found.statistics[chosen], found.combine, groups)


def pooled(cells: Sequence[Finished], metric: Metric, part: str = "all") -> Measured:
    """The answers of several seeds together: a picture's are drawn together, whoever gave them."""
    some = [measured(cell, metric, part) for cell in cells]
    return Measured(
        np.concatenate([each.statistics for each in some]),
        some[0].combine,
        [group for each in some for group in each.groups],
    )


def score(cells: Sequence[Finished], metric: Metric, part: str = "all") -> Interval:
    """A variant's score with its interval over pictures."""
    found = pooled(cells, metric, part)
    return corpus_interval(found.statistics, found.combine, found.groups)


def difference(
    a: Sequence[Finished], b: Sequence[Finished], metric: Metric
) -> tuple[Interval, Interval | None]:
    """A minus B for the seeds of both: its interval over pictures, and over seeds where there are three or more."""
    seeds = sorted({cell.seed for cell in a} & {cell.seed for cell in b})
    ours, theirs = ([cell for seed in seeds for cell in cells if cell.seed == seed] for cells in (a, b))
    one, other = pooled(ours, metric), pooled(theirs, metric)
    over_pictures = paired_corpus_bootstrap(one.statistics, other.statistics, one.combine, one.groups)
    if len(seeds) < 3:
        return over_pictures, None
    each = [score([x], metric).value - score([y], metric).value for x, y in zip(ours, theirs, strict=True)]
    mean = float(np.mean(each))
    half = float(student.ppf(0.975, len(each) - 1) * np.std(each, ddof=1) / len(each) ** 0.5)
    return over_pictures, Interval(mean, mean - half, mean + half)


# ------------------------------------------------------------ tables


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def head(*cells: str) -> list[str]:
    return [row(*cells), row(*["---"] * len(cells))]


def scores_table(variants: Mapping[str, Sequence[Finished]]) -> list[str]:
    """Every variant on everything."""
    lines = head("what the decoder is given", "positions", "seeds", *(metric.title for metric in METRICS))
    for variant, cells in variants.items():
        said = [metric.say(score(cells, metric)) for metric in METRICS]
        lines.append(row(title_of(variant), cells[0].positions, len(cells), *said))
    return lines


def differences_table(variants: Mapping[str, Sequence[Finished]]) -> list[str]:
    """What each thing changes, everything else being equal."""
    lines = head("what differs", "seeds", *(metric.title for metric in COMPARED))
    for what, a, b in DIFFERENCES:
        if a not in variants or b not in variants:
            continue
        common = {cell.seed for cell in variants[a]} & {cell.seed for cell in variants[b]}
        said = []
        for metric in COMPARED:
            over_pictures, over_seeds = difference(variants[a], variants[b], metric)
            seeds = (
                "" if over_seeds is None else f"; seeds {metric.say(over_seeds, '+').partition('(')[2][:-1]}"
            )
            said.append(metric.say(over_pictures, "+").removesuffix(")") + seeds + ")")
        lines.append(row(f"{what} ({title_of(a)} – {title_of(b)})", len(common), *said))
    return lines


def kinds_table(variants: Mapping[str, Sequence[Finished]]) -> list[str]:
    """Questions by their kind, for what separates the causes."""
    shown = [name for name in (*CAUSES, BLIND) if name in variants]
    if not shown:
        return []
    questions = METRICS[1]
    first = variants[shown[0]][0]
    predictions = read_predictions(prediction_path(first.place, first.name, "vqa", "test"))
    kinds = slices(predictions)
    majority = next(iter(TASKS["vqa"].measure(predictions))).baseline
    assert majority is not None
    lines = head("kind of question", "asked", "most frequent answer", *(title_of(name) for name in shown))
    for kind, chosen in kinds.items():
        said = [questions.say(score(variants[name], questions, kind)) for name in shown]
        lines.append(row(kind, len(chosen), f"{100 * ratio(majority[chosen].sum(axis=0)):.1f}", *said))
    return lines


def encoders_table(encoders: Mapping[str, Path], probes: Path) -> list[str]:
    """What each encoder was trained on, for how long, how well it does its own task, and what a line reads of it."""
    lines = head("what is given", "trained on", "minutes", "at its own task", "linear probe: objects named")
    for sight, run in encoders.items():
        path = prediction_path(probes, sight, "linear-probe", "test")
        if not path.exists():
            continue
        said = read_predictions(path)
        right = METRICS[1].say(interval([p["correct"] for p in said], groups_of(said)))
        recipe, log = artifacts.read_json(run / "recipe.json"), artifacts.read_json_lines(run / "log.jsonl")
        last = [line for line in log if line["phase"] == "validation"][-1]
        clip = recipe["kind"] == "clip"
        own = (
            f"{last['accuracy']:.1%} of a batch's pairs found"
            if clip
            else f"{last['psnr']:.1f} dB, {last['usage']:.0%} of the codes in use, perplexity {last['perplexity']:.0f}"
        )
        seen = f"{last['samples']:,} {'pictures with captions and phrases' if clip else 'pictures'}"
        seen += " and CLIP's features of them" if recipe.get("perceptual") else ""
        lines.append(row(title_of(sight), seen, f"{log[-1]['seconds'] / 60:.1f}", own, right))
    return lines


# ------------------------------------------------------------ picture


def bars(axes: Axes, variants: Mapping[str, Sequence[Finished]], metric: Metric) -> None:
    """Objective and discreteness, each with and without the other."""
    for place, name in enumerate(CAUSES):
        if name not in variants:
            continue
        found = score(variants[name], metric)
        ends = [[metric.scale * (found.value - found.low)], [metric.scale * (found.high - found.value)]]
        colour = BLUE if name.startswith(MAIN) else ORANGE
        light = 1.0 if name in (MAIN, "vqvae-vectors") else 0.55
        axes.bar(place, metric.scale * found.value, 0.7, yerr=ends, color=colour, alpha=light, ecolor=GREY)
    if BLIND in variants:
        blind = metric.scale * score(variants[BLIND], metric).value
        axes.axhline(blind, color=GREY, linestyle=":", linewidth=1)
        axes.annotate("no picture", (3.45, blind), ha="right", va="bottom", fontsize=7, color=GREY)
    axes.set_xticks(range(4), ["CLIP,\nvectors", "CLIP,\ncodes", "VQ-VAE,\nvectors", "VQ-VAE,\ncodes"])
    plain(axes, f"{metric.title}, %")


def against_codes(axes: Axes, variants: Mapping[str, Sequence[Finished]], metric: Metric) -> None:
    """Against the number of codes, at both numbers of positions, with CLIP as a level."""
    for positions, end, level, style in ((64, "", MAIN, "-"), (16, "-coarse", "clip-gathered", "--")):
        there = [k for k in (64, 512, 4096) if f"codes-{k}{end}" in variants]
        found = [score(variants[f"codes-{k}{end}"], metric) for k in there]
        if found:
            axes.errorbar(
                there,
                [metric.scale * each.value for each in found],
                yerr=metric.scale * np.array([(e.value - e.low, e.high - e.value) for e in found]).T,
                color=ORANGE,
                linestyle=style,
                marker="o",
                markersize=4,
                ecolor=GREY,
                label=f"VQ-VAE, {positions} positions",
            )
        if level in variants:
            value = metric.scale * score(variants[level], metric).value
            axes.axhline(value, color=BLUE, linestyle=style, label=f"CLIP, {positions} positions")
    axes.set_xscale("log")
    axes.set_xticks([64, 512, 4096], ["64", "512", "4,096"])
    axes.minorticks_off()
    axes.set_xlabel("codes", fontsize=8, color=GREY)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7, labelcolor=GREY)
    plain(axes, f"{metric.title}, %")


def draw(variants: Mapping[str, Sequence[Finished]], path: Path) -> None:
    """Bars of the causes and lines against the number of codes, of questions and of boxes."""
    figure = Figure(figsize=(10, 6.4))
    for metric, (left, right) in zip(METRICS[1:3], figure.subplots(2, 2), strict=True):
        bars(left, variants, metric)
        against_codes(right, variants, metric)
        top = max(left.get_ylim()[1], right.get_ylim()[1])
        left.set_ylim(0, top)
        right.set_ylim(0, top)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def fill(report: Page, cells: Sequence[Finished], encoders: Mapping[str, Path], probes: Path) -> None:
    """Write the page from the cells that are there."""
    if not cells:
        return
    variants: dict[str, list[Finished]] = {}
    for cell in cells:
        variants.setdefault(cell.variant, []).append(cell)
    picture = report.picture("cells")
    draw(variants, picture)
    steps = artifacts.read_json(cells[0].place / "recipe.json")["train"]["steps"]
    text = [
        f"![Questions and boxes by encoder and by number of codes]({picture.name})",
        "",
        f"{len(cells)} decoders of {steps:,} steps each. Percent, with the 95% interval over test pictures; the "
        "held-out loss is lower where it is better.",
        "",
        *scores_table(variants),
        "",
        "What each thing changes, all else being equal (paired over the same pictures; where there are three seeds, "
        "the interval over seeds stands behind):",
        "",
        *differences_table(variants),
        "",
        "Questions by kind, in percent:",
        "",
        *kinds_table(variants),
        "",
        "The encoders, and what can be read of them without a decoder:",
        "",
        *encoders_table(encoders, probes),
    ]
    report.fill("\n".join(text))
