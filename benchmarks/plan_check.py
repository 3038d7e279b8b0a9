"""Holds `bifocal plan` against this machine: memory and time of a few real steps of each of the quickstart's recipes.

    python benchmarks/plan_check.py vqvae
    python benchmarks/plan_check.py vlm-discrete --page docs/scaling.md
    python benchmarks/plan_check.py --machine h100
    python benchmarks/plan_check.py clip --machine h100 --settings batch_size=1024 model.vision.width=768 \\
        model.vision.layers=12 model.vision.heads=12 --called "clip, 768 wide, 12 layers"

Each recipe is first forecast, then some of its steps are taken as the trainer takes them (making the batch included),
in a process of their own, with frozen encoders of random weights. Memory is what these steps add to the process at its
peak; time is the median step with its quartiles. The table holds the latest line of every recipe that was checked,
which are kept in ``--results``. Its last column is the share of the time in which the step waited for its batch.

With ``--machine`` the forecast is that of the GPU's data sheet and steps are taken on the first GPU here, with batches
that are there already: memory is what torch allocates on the GPU, time that of twelve steps divided by twelve.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from page import Page

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.models.precision import open_device
from bifocal.recipes.forecast import forecast
from bifocal.recipes.named import recipe_named
from bifocal.recipes.rehearsal import take_steps, take_steps_on
from bifocal.recipes.sketches import sketch
from bifocal.training.machines import CPU, Fleet, read_fleet

RECIPES = ("vqvae", "clip", "vlm-continuous", "vlm-discrete", "prior", "parti")
MEMORY_WITHIN, TIME_WITHIN = 0.15, 0.30


def recipe_of(name: str, scale: str, settings: Sequence[str]) -> Any:
    model, _, family = name.partition("-")
    for setting in settings:
        if "=" not in setting:
            raise UserError(f"--settings {setting!r} is not of the form KEY=VALUE, as in batch_size=64")
    return recipe_named(
        model, scale, dict(setting.split("=", 1) for setting in settings), family=family or None
    )


def check(
    name: str, scale: str, settings: Sequence[str], called: str, machine: str, more: Sequence[str]
) -> dict[str, Any]:
    """Forecast and measurement of one recipe."""
    recipe = recipe_of(name, scale, settings)
    known = forecast(recipe, [Fleet(1, machine)])
    if machine == CPU:
        command = [sys.executable, __file__, name, "--scale", scale, *more, "--measure-only"]
        command += ["--settings", *settings] if settings else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured = json.loads(done.stdout.splitlines()[-1])
    else:  # what lies on a GPU is counted there, whatever this process holds
        measured = dataclasses.asdict(take_steps_on(recipe, known.sketch.size, open_device("cuda")))
    (row,) = known.rows
    return {
        "recipe": called or name,
        "scale": scale,
        "parameters": known.parameters,
        "batch": f"{known.sketch.size} {known.sketch.unit}",
        "planned memory": row.memory["peak"],
        "measured memory": measured["memory"],
        "planned step": row.step,
        "measured step": measured["seconds"] + measured["waited"],
        "low": measured["low"] + measured["waited"],
        "high": measured["high"] + measured["waited"],
        "waiting": measured["waited"] / (measured["seconds"] + measured["waited"]),
    }


def off(row: dict[str, Any], what: str) -> float:
    """How far the forecast lies above (or below) what was measured, as a share of it."""
    return row[f"planned {what}"] / row[f"measured {what}"] - 1


def line(row: dict[str, Any]) -> str:
    mebi, milli = 2**20, 1000
    return (
        f"| {row['recipe']} | {row['parameters'] / 1e6:.2f}M | {row['batch']} "
        f"| {row['planned memory'] / mebi:.0f} | {row['measured memory'] / mebi:.0f} | {off(row, 'memory'):+.0%} "
        f"| {row['planned step'] * milli:.0f} | {row['measured step'] * milli:.0f} "
        f"({row['low'] * milli:.0f} - {row['high'] * milli:.0f}) | {off(row, 'step'):+.0%} | {row['waiting']:.1%} |"
    )


def table(rows: list[dict[str, Any]]) -> str:
    columns = (
        "trained",
        "a step",
        "MiB planned",
        "measured",
        "off",
        "ms planned",
        "measured (quartiles)",
        "off",
    )
    head = f"| recipe | {' | '.join(columns)} | waiting |"
    return "\n".join([head, "| --- |" + " ---: |" * 9, *map(line, rows)])


def main(
    recipes: tyro.conf.Positional[tuple[str, ...]] = RECIPES,
    scale: str = "quickstart",
    settings: tuple[str, ...] = (),
    called: str = "",
    machine: str = CPU,
    seconds: float = 6.0,
    workers: int = 0,
    results: Path | None = None,
    page: Path | None = None,
    measure_only: bool = False,
) -> None:
    """Print a line for each recipe; exit with 1 if a forecast is further off than it may be.

    Args:
        recipes: of vqvae, clip, vlm-continuous, vlm-discrete, prior, parti.
        scale: quickstart or smoke.
        settings: KEY=VALUE of the recipe that are to differ.
        called: what the line of such a recipe is called.
        machine: this one, or whose data sheet it is that the first GPU here is forecast by.
        seconds: how long steps are taken.
        workers: processes that make batches ahead of the steps that are measured; the forecast has none.
        results: where the lines are kept (runs/plan_check.json, or one of the machine's own, if not given).
        page: a Markdown page whose marks <!-- plan_check --> are to hold the table.
        measure_only: print what the steps of one recipe take as JSON, and nothing else.
    """
    unknown = sorted(set(recipes) - set(RECIPES))
    if unknown:
        raise UserError(f"there is no recipe {unknown[0]!r}: choose from {', '.join(RECIPES)}")
    read_fleet(machine)
    if machine != CPU and workers:
        raise UserError("--workers is for this machine: on a GPU the batches are there already")
    own = "" if machine == CPU else f"_{machine}"
    results = results or Path(f"runs/plan_check{own}.json")
    if called and len(recipes) > 1:
        raise UserError("--called is for one recipe")
    if measure_only:
        recipe = recipe_of(recipes[0], scale, settings)
        steps = take_steps(recipe, sketch(recipe).size, seconds=seconds, workers=workers)
        print(json.dumps(dataclasses.asdict(steps)))
        return
    kept = artifacts.read_json(results) if results.exists() else {}
    wrong = []
    for name in recipes:
        more = ("--seconds", str(seconds), "--workers", str(workers))
        row = check(name, scale, settings, called, machine, more)
        kept[row["recipe"]] = row
        print(line(row), flush=True)
        if abs(off(row, "memory")) > MEMORY_WITHIN or abs(off(row, "step")) > TIME_WITHIN:
            wrong.append(name)
    results.parent.mkdir(parents=True, exist_ok=True)
    artifacts.atomic_write_json(results, kept)
    if page is not None:
        mark = "plan_check" if machine == CPU else f"plan_check {machine}"
        Page(page, mark).fill(table(list(kept.values())))
    if wrong:
        sys.exit(
            f"further off than {MEMORY_WITHIN:.0%} of memory or {TIME_WITHIN:.0%} of time: {', '.join(wrong)}"
        )


if __name__ == "__main__":
    tyro.cli(main)
