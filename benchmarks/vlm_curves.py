"""Questions, boxes and statements against minutes of training, for both families of VLM, as a picture and a table.

    bifocal quickstart --vlm-checkpoints 10 --out runs/quickstart
    python benchmarks/vlm_curves.py runs/quickstart docs/curves.md

Every checkpoint that either VLM kept on its way is asked the same questions about scenes that it was not trained on.
VLMs that are not there yet are trained first, as the quickstart trains them, on the encoders in the same directory or
in another:

    python benchmarks/vlm_curves.py runs/curves docs/curves.md --encoders runs/quickstart --points 10

Training goes on where it was stopped, and so does asking; what is there is not made again, and the command can be
given in pieces. The minutes of a checkpoint are those that its run wrote into it: of the training loop with its
validation, without those for encoding the pictures once beforehand. Answers lie under RUNS/curves. The picture and the
table replace what stands between the marks <!-- vlm-curves --> and <!-- /vlm-curves --> of the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import GREY, Page, plain

from bifocal import evaluation
from bifocal.commands.quickstart import vlm_recipe
from bifocal.config import UserError
from bifocal.data.sample import Dataset
from bifocal.data.scenes import WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.evaluation.results import HEADLINES, Row, format_interval, format_value
from bifocal.recipes.kept_steps import Kept, kept_steps, open_step
from bifocal.recipes.runs import begun, finished
from bifocal.recipes.sources import world_of
from bifocal.recipes.vlm import train_vlm
from bifocal.training.progress import counted

MODELS = {"vlm-continuous": "#3a74f0", "vlm-discrete": "#e0762b"}
TASKS = {"vqa": "questions right", "grounding": "boxes found", "reasoning": "statements judged"}
FEWEST = 3  # points that make a curve


@dataclass(frozen=True)
class Point:
    """A VLM at a step: its scores by task."""

    step: int
    seconds: float
    rows: dict[str, Row]


def curve_of(run: Path, datasets: dict[str, Dataset], kept: Path) -> list[Point]:
    """Ask every checkpoint of a run, or take from ``kept`` what it said before."""
    steps = kept_steps(run)
    if len(steps) < FEWEST:
        raise UserError(
            f"{run} has kept {len(steps)} checkpoints, and a curve needs {FEWEST}: train it with "
            "bifocal quickstart --vlm-checkpoints, or name another RUNS and this one's encoders with --encoders"
        )
    return [ask(open_step(run, step), datasets, kept) for step in steps]


def ask(at: Kept, datasets: dict[str, Dataset], kept: Path) -> Point:
    """The headline of each task, of one checkpoint."""
    rows = {}
    for task, dataset in datasets.items():
        with counted(f"{at.name} {task}") as update:
            scored = evaluation.evaluate(
                at.model, dataset, task, directory=kept, blank=False, name=at.name, progress=update
            )
        rows[task] = next(row for row in scored if row.slice == "all" and row.metric == HEADLINES[task])
    return Point(at.step, at.seconds, rows)


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """A panel for each task: a line for each family with its interval, and what needs no picture."""
    figure = Figure(figsize=(10, 3.4))
    for axes, (task, title) in zip(figure.subplots(1, len(TASKS)), TASKS.items(), strict=True):
        panel(axes, task, curves)
        plain(axes, f"{title}, %")
        axes.set_xlabel("minutes of training", fontsize=8, color=GREY)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        axes.legend(frameon=False, fontsize=7, labelcolor=GREY)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def panel(axes: Axes, task: str, curves: dict[str, list[Point]]) -> None:
    """One task. A score whose interval is not known has a line without a shade."""
    for model, points in curves.items():
        rows = [point.rows[task] for point in points]
        minutes = [point.seconds / 60 for point in points]
        axes.plot(
            minutes,
            [percent(r.value) for r in rows],
            color=MODELS[model],
            marker="o",
            markersize=3,
            label=model,
        )
        bounds = [percent(row.low) for row in rows], [percent(row.high) for row in rows]
        axes.fill_between(minutes, *bounds, color=MODELS[model], alpha=0.18, linewidth=0)
    baseline = next(iter(curves.values()))[0].rows[task].baseline  # of the same samples for all
    axes.axhline(percent(baseline), color=GREY, linestyle=":", linewidth=1, label="the most frequent answer")


def percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def table(curves: dict[str, list[Point]]) -> str:
    """Markdown: a line for each checkpoint, with intervals."""
    lines = [
        f"| | step | minutes | {' | '.join(TASKS.values())} |",
        "| --- |" + " ---: |" * 2 + " --- |" * len(TASKS),
    ]
    for model, points in curves.items():
        for point in points:
            said = " | ".join(with_interval(point.rows[task]) for task in TASKS)
            lines.append(f"| {model} | {point.step:,} | {point.seconds / 60:.2f} | {said} |")
    first = next(iter(curves.values()))[0].rows
    said = " | ".join(format_value(first[task].metric, first[task].baseline) for task in TASKS)
    lines.append(f"| the most frequent answer | | | {said} |")
    return "\n".join(lines)


def with_interval(row: Row) -> str:
    return f"{format_value(row.metric, row.value)} ({format_interval(row.metric, row.low, row.high)})"


def main(
    runs: tyro.conf.Positional[Path],
    page: tyro.conf.Positional[Path],
    encoders: Path | None = None,
    points: int = 10,
    scale: Literal["smoke", "quickstart", "standard"] = "quickstart",
    count: int = 300,
    seed: int = 0,
) -> None:
    """Train what is not trained yet, ask every checkpoint that was kept, then draw the picture and write the table.

    Args:
        runs: where vlm-continuous and vlm-discrete are, or will be.
        page: a Markdown page with the two marks.
        encoders: where the finished clip and vqvae are that VLMs are trained on, and at scale standard the
            vlm-continuous that the discrete one begins with; RUNS if not given.
        points: checkpoints to keep of a VLM that is trained here.
        scale: its recipe.
        count: samples of each task.
        seed: of its training.
    """
    report = Page(page, "vlm-curves")
    world = world_of(WorldSettings())
    datasets: dict[str, Dataset] = {task: SceneDataset(world, "test", task, count) for task in TASKS}
    for model in MODELS:
        run = runs / model
        if not finished(run):
            recipe = vlm_recipe(model, encoders or runs, scale, {"seed": seed}, points)
            train_vlm(recipe, run, resume=begun(run))
    curves = {model: curve_of(runs / model, datasets, runs / "curves") for model in MODELS}
    picture = report.picture("families")
    draw(curves, picture)
    about = f"{count} samples of each task, the same for all; 95% intervals."
    report.fill(f"![Scores against minutes of training]({picture.name})\n\n{about}\n\n{table(curves)}")


if __name__ == "__main__":
    tyro.cli(main)
