"""What answering in int8, and in bf16, costs on the tasks: the same questions to one VLM in each precision.

    python benchmarks/int8_quality.py docs/decoding.md runs/quickstart/vlm-continuous runs/quickstart/vlm-discrete

Differences are paired, over the same samples, with 95% bootstrap intervals in which the questions about one picture are
drawn together (`bifocal compare`). Greedy answers are kept under RUN/precisions as they are given, so the command can
be stopped and given again. The table replaces what stands between the marks <!-- int8-quality --> and
<!-- /int8-quality --> of the page.
"""

from __future__ import annotations

from pathlib import Path

import tyro
from page import Page

from bifocal import evaluation, inference
from bifocal.commands.evaluation_sets import COUNTS
from bifocal.config import UserError
from bifocal.data.sample import Dataset
from bifocal.data.scenes import WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.evaluation.compare import Difference, compare_task
from bifocal.evaluation.results import (
    Prediction,
    format_interval,
    format_value,
    metric_title,
    prediction_path,
    read_predictions,
)
from bifocal.recipes.sources import world_of
from bifocal.training.progress import counted

BASE, OTHERS = "bfloat16", ("int8", "float32")  # the precision that the others are held against
TITLES = {"bfloat16": "bf16"}
METRICS = {
    "vqa": ("accuracy",),
    "captioning": ("CIDEr-D", "objects_named"),
    "grounding": ("Acc@0.5", "mean_iou"),
    "reasoning": ("accuracy",),
}


def answers(run: Path, dtype: str, datasets: dict[str, Dataset]) -> dict[str, list[Prediction]]:
    """What a VLM says in a precision, by task; what it said before is not asked again."""
    model = inference.load(run, dtype=dtype)
    if not isinstance(model, inference.VLM):
        raise UserError(f"{run} is a {model.kind}, and int8 is for VLMs")
    kept = run / "precisions"
    for task, dataset in datasets.items():
        with counted(f"{model.name} {dtype} {task}") as update:
            evaluation.evaluate(
                model, dataset, task, directory=kept, blank=False, name=dtype, progress=update
            )
    return {
        task: read_predictions(prediction_path(kept, dtype, task, dataset.split))
        for task, dataset in datasets.items()
    }


def lines(run: Path, datasets: dict[str, Dataset]) -> list[str]:
    """Rows of the table: each metric of a VLM, in bf16 and as differences from it."""
    said = {dtype: answers(run, dtype, datasets) for dtype in (BASE, *OTHERS)}
    rows = []
    for task, dataset in datasets.items():
        against = {
            dtype: compare_task(task, dataset.split, said[dtype][task], said[BASE][task]) for dtype in OTHERS
        }
        for metric in METRICS[task]:
            found = {dtype: of_all(some, metric) for dtype, some in against.items()}
            base = found[OTHERS[0]]
            cells = [run.name, task, str(base.n), metric_title(metric)]
            cells.append(
                f"{format_value(metric, base.b)} ({format_interval(metric, base.b_low, base.b_high)})"
            )
            for dtype, row in found.items():
                gap = format_value(metric, row.difference, sign=True)
                alike = same(said[dtype][task], said[BASE][task])
                cells += [f"{gap} ({format_interval(metric, row.low, row.high, sign=True)})", f"{alike:.1%}"]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def of_all(differences: list[Difference], metric: str) -> Difference:
    """The row of a metric over all samples."""
    return next(row for row in differences if row.slice == "all" and row.metric == metric)


def same(a: list[Prediction], b: list[Prediction]) -> float:
    """The share of samples that are answered with the same words and boxes."""
    return sum(
        (x["prediction"], x["boxes"]) == (y["prediction"], y["boxes"]) for x, y in zip(a, b, strict=True)
    ) / len(a)


def main(
    page: tyro.conf.Positional[Path],
    runs: tyro.conf.Positional[tuple[Path, ...]],
    count: int | None = None,
) -> None:
    """Ask what was not asked yet, and write the table.

    Args:
        page: a Markdown page with the two marks.
        runs: finished VLMs.
        count: samples of each task; as many as `bifocal evaluate` asks about if not given.
    """
    report = Page(page, "int8-quality")
    world = world_of(WorldSettings())
    datasets: dict[str, Dataset] = {
        task: SceneDataset(world, "test", task, count or COUNTS[task]) for task in METRICS
    }
    heads = ["", "task", "samples", "metric", TITLES[BASE]]
    for dtype in OTHERS:
        heads += [f"{dtype} – {TITLES[BASE]}", "answered alike"]
    table = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
    for run in runs:
        table += lines(run, datasets)
    report.fill("\n".join(table))


if __name__ == "__main__":
    tyro.cli(main)
