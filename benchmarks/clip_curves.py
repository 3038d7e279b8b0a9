"""Zero-shot accuracy against samples seen, for two objectives and three batches, as a picture and a table for docs.

    python benchmarks/clip_curves.py runs/clip-curves docs/clip.md
    python benchmarks/clip_curves.py runs/clip-curves docs/clip.md --samples 98304

All runs see the same number of pairs, in batches of 64, 256 and 1,024; the batch of 1,024 by gradient caching in
chunks of 256. Everything else is the quickstart's recipe; rates are the same for all, and the warm-up is the same
number of pairs. Each run goes on where it was stopped, and one that is finished is not run again, so the command can
be given in pieces. The table replaces what stands between the marks <!-- clip-curves --> and <!-- /clip-curves --> of
the page, and the picture lies beside the page, under its name with -curves.png.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tyro
from matplotlib.figure import Figure
from page import GREY, Page, plain

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.scenes import WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.evaluation import zero_shot
from bifocal.inference import CLIP
from bifocal.losses import Objective
from bifocal.recipes.clip import CLIPRecipe, recipe_clip, train_clip
from bifocal.recipes.runs import finished, open_run
from bifocal.recipes.sources import world_of

OBJECTIVES: tuple[Objective, ...] = ("softmax", "sigmoid")
POINTS = 8  # of a curve
CHUNK = 256  # pairs that fit in memory at once
CURVE = "zero-shot.jsonl"
COLOURS = {"softmax": "#3a74f0", "sigmoid": "#e0762b"}


def recipe_of(objective: Objective, batch: int, samples: int, scale: str) -> CLIPRecipe:
    """The quickstart's recipe with another objective and batch, for so many samples."""
    recipe = recipe_clip(scale)
    steps = samples // batch
    warm = recipe.train.optimizer.warmup_steps * recipe.batch_size / batch
    train = replace(
        recipe.train,
        steps=steps,
        validate_every=max(1, steps // POINTS),
        checkpoint_every=max(1, steps // POINTS),
        optimizer=replace(recipe.train.optimizer, warmup_steps=max(1, round(warm))),
    )
    chunk = CHUNK if batch > CHUNK else 0
    return replace(recipe, objective=objective, batch_size=batch, chunk_size=chunk, train=train)


def train(recipe: CLIPRecipe, out: Path, dataset: SceneDataset) -> None:
    """Run it, or the rest of it, and write a line with its zero-shot accuracy at each point."""

    def show(model: CLIP, step: int) -> None:
        predictions = zero_shot.predict(model, dataset)
        rows = zero_shot.score(predictions, model=out.name, split=dataset.split)
        row = next(row for row in rows if row.metric == "top1" and row.slice == "all")
        about = {"samples": step * recipe.batch_size, "top1": row.value, "low": row.low, "high": row.high}
        artifacts.append_json_line(out / CURVE, about)

    open_run(out, "clip", recipe, resume=True)  # refuses what was trained with other settings
    if not finished(out):
        train_clip(recipe, out, resume=True, show=show)


def curve_of(out: Path) -> list[dict[str, float]]:
    """The points of a run in order; of one that was seen twice, before and after a stop, the later."""
    points = {row["samples"]: row for row in artifacts.read_json_lines(out / CURVE, allow_partial_last=True)}
    return [points[samples] for samples in sorted(points)]


def draw(curves: dict[tuple[str, int], list[dict[str, float]]], path: Path) -> None:
    """A line for each run: colour the objective, width the batch."""
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    batches = sorted({batch for _, batch in curves})
    for (objective, batch), points in curves.items():
        place = batches.index(batch)
        axes.plot(
            [point["samples"] / 1000 for point in points],
            [100 * point["top1"] for point in points],
            color=COLOURS[objective],
            linewidth=1 + 0.8 * place,
            linestyle=("-", "--", ":")[len(batches) - 1 - place],
            label=f"{objective}, batch {batch:,}",
        )
    plain(axes, "CLIP: zero-shot top-1 among 120, %")
    axes.set_xlabel("thousand pairs seen", fontsize=8, color=GREY)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    axes.legend(facecolor="white", edgecolor="none", framealpha=1, fontsize=7, labelcolor=GREY)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def table(curves: dict[tuple[str, int], list[dict[str, float]]], runs: Path) -> str:
    """Markdown: a column for each of some points, and the last with its interval."""
    halves = [len(next(iter(curves.values()))) // parts for parts in (4, 2)]
    first = next(iter(curves.values()))
    heads = [f"after {first[place - 1]['samples']:,.0f}" for place in halves]
    lines = [
        f"| | {' | '.join(heads)} | after {first[-1]['samples']:,.0f} (95% interval) | pairs a second |",
        "| --- |" + " --- |" * (len(heads) + 2),
    ]
    for (objective, batch), points in curves.items():
        log = artifacts.read_json_lines(runs / name_of(objective, batch) / "log.jsonl")
        rates = sorted(row["samples_per_second"] for row in log if row["phase"] == "train")
        shown = [f"{100 * points[place - 1]['top1']:.1f}%" for place in halves]
        last = points[-1]
        shown.append(f"{100 * last['top1']:.1f}% ({100 * last['low']:.1f} to {100 * last['high']:.1f})")
        lines.append(f"| {objective}, batch {batch:,} | {' | '.join(shown)} | {rates[len(rates) // 2]:.0f} |")
    return "\n".join(lines)


def name_of(objective: str, batch: int) -> str:
    return f"{objective}-{batch}"


def main(
    runs: tyro.conf.Positional[Path],
    page: tyro.conf.Positional[Path],
    samples: int = 49_152,
    batches: tuple[int, ...] = (64, 256, 1024),
    count: int = 600,
    smoke: bool = False,
) -> None:
    """Train what is not trained yet, then draw the picture and write the table.

    Args:
        runs: where the runs are.
        page: a Markdown page with the two marks.
        samples: pairs that each run sees.
        batches: their sizes.
        count: pictures of the validation split that are named.
        smoke: toy models.
    """
    report = Page(page, "clip-curves")
    if any(samples % (POINTS * batch) for batch in batches):
        raise UserError(
            f"--samples must be a multiple of {POINTS} times every batch, so that all curves share points"
        )
    scale = "smoke" if smoke else "quickstart"
    dataset = SceneDataset(world_of(WorldSettings()), "validation", "zero-shot", count)
    curves: dict[tuple[str, int], list[dict[str, float]]] = {}
    for batch in batches:
        for objective in OBJECTIVES:
            out = runs / name_of(objective, batch)
            train(recipe_of(objective, batch, samples, scale), out, dataset)
            curves[objective, batch] = curve_of(out)
    picture = report.picture("curves")
    draw(curves, picture)
    report.fill(f"![Zero-shot accuracy against pairs seen]({picture.name})\n\n{table(curves, runs)}")


if __name__ == "__main__":
    tyro.cli(main)
