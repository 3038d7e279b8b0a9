"""`bifocal plan`: what training will take, as tables, as JSON and as a plot."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from bifocal.config import UserError
from bifocal.recipes.forecast import FREE_SHARE, KINDS, Forecast, forecast
from bifocal.recipes.named import recipe_named
from bifocal.recipes.rehearsal import STEPS
from bifocal.training.machines import (
    CALL_SECONDS,
    MEMORY_SHARE,
    NETWORK_BYTES,
    NODE,
    PRODUCT_SHARE,
    SHEETS,
    read_fleet,
)
from bifocal.training.memory import keep_freed_memory

COLOURS = ("#4c72b0", "#9db3d6", "#8172b3", "#c44e52", "#dd8452", "#55a868")


def plan_command(
    model: str,
    *,
    overrides: Mapping[str, str],
    scale: str = "quickstart",
    family: str | None = None,
    vision: str | None = None,
    tower: str | None = None,
    data: str | None = None,
    machines: Sequence[str] = ("cpu",),
    output: Path | None = None,
    as_json: bool = False,
) -> Forecast:
    """Forecast a recipe and print it; nothing is trained and nothing but ``output`` is written."""
    fleets = [read_fleet(word) for text in machines for word in text.split(",") if word.strip()]
    if not fleets:
        raise UserError("--machines names no machine: try cpu, or cpu,8xh100")
    recipe = recipe_named(model, scale, overrides, family=family, vision=vision, tower=tower, data=data)
    keep_freed_memory()  # as training does
    known = forecast(recipe, fleets)
    if as_json:
        print(json.dumps(to_json(known, recipe_name(model, scale, family))))
    else:
        show(known, recipe_name(model, scale, family))
    if output is not None:
        plot(known, output)
    return known


def recipe_name(model: str, scale: str, family: str | None) -> str:
    return f"{model}{f' ({family})' if family else ''}, {scale}"


def assumptions(known: Forecast) -> list[str]:
    """What the figures rest on, a sentence each."""
    said = []
    if known.here.rehearsed is not None:
        sizes = " and of ".join(str(steps.size) for steps in known.here.rehearsed)
        said.append(
            f"cpu is this machine: {STEPS} steps of {sizes} {known.sketch.unit} were taken, in processes of their own."
        )
    measured = known.calibration
    if measured is not None:
        rates = [
            f"{name} products at {rate / 1e9:.0f} GFLOP/s"
            for name, rate in (("bf16", measured.bf16), ("float32", measured.float32))
            if rate
        ]
        said.append(
            f"cpu is this machine: {measured.measured:.0%} of the step measured at its own shapes ("
            + ", ".join([*rates, f"copies at {measured.bandwidth / 1e9:.0f} GB/s"])
            + ")."
        )
    sheets = dict.fromkeys(row.name.split("x", 1)[-1] if row.ranks > 1 else row.name for row in known.rows)
    for name in sheets:
        if name in SHEETS:
            sheet = SHEETS[name]
            said.append(
                f"{name}: {sheet.source}; assumed are {PRODUCT_SHARE:.0%} of its {sheet.bf16 / 1e12:.0f} TFLOP/s in "
                f"bf16, {MEMORY_SHARE:.0%} of its {sheet.bandwidth / 1e9:.0f} GB/s, and {CALL_SECONDS * 1e6:.0f} "
                "microseconds in which Python tells it to do an operation."
            )
    if any(row.ranks > 1 for row in known.rows):
        said.append(
            f"Ranks add gradients up after the backward pass, in float32; beyond {NODE} accelerators over "
            f"{NETWORK_BYTES / 1e9:.0f} GB/s between machines."
        )
    said.append(
        "Validation, checkpoints and the encoding of pictures are not counted in the time, nor in the memory Python, "
        f"its libraries and the data ({known.besides / 2**20:,.0f} MiB a process here); the largest batch leaves "
        f"{FREE_SHARE:.0%} of the memory free."
    )
    return said


def show(known: Forecast, name: str) -> None:
    """Tables to standard output."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    planned, line = known.sketch, known.here
    parts = Table("part", "trained", "frozen", title=f"{name}: parameters", title_justify="left")
    for part, (trained, frozen) in known.parts.items():
        parts.add_row(part, f"{trained:,}" if trained else "", f"{frozen:,}" if frozen else "")
    console.print(parts)
    kind = str(known.dtype).removeprefix("torch.")
    print(
        f"a step: {planned.size} {planned.unit}, {line.flops() * planned.size / 1e9:,.1f} GFLOP of products in {kind} "
        f"({line.flops() / 1e9:,.2f} for each), {sum_flops(known) / 1e9:,.1f} in the optimizer; "
        f"{planned.train.steps:,} steps"
    )
    if planned.cache is not None:
        print(
            f"{planned.cache.doing} keeps {planned.cache_bytes(known.dtype) / 2**20:,.2f} MiB of keys and values for "
            f"{planned.cache.row}"
        )
    memory = Table("MiB a rank", *KINDS, "peak", title="memory", title_justify="left")
    for row in known.rows:
        memory.add_row(
            row.name, *(f"{row.memory[each] / 2**20:,.1f}" for each in (*KINDS, "peak")), style=None
        )
    console.print(memory)
    table = Table(
        "machines",
        "batch a rank",
        "largest",
        "step",
        "compute",
        "data",
        "communication",
        f"{planned.unit}/s",
        "in all",
        "cost",
        "",
        title="time",
        title_justify="left",
    )
    for row in known.rows:
        table.add_row(
            row.name,
            f"{row.batch:,}",
            f"{row.largest_batch:,}",
            clock(row.step),
            clock(row.compute),
            clock(row.data),
            f"{clock(row.communication)} ({row.communicated / 2**20:,.1f} MiB)" if row.ranks > 1 else "",
            f"{row.samples_per_second:,.0f}",
            clock(row.total),
            "" if row.cost is None else f"{row.cost:,.2f}",
            row.note,
        )
    console.print(table)
    for sentence in assumptions(known):
        print(sentence)


def sum_flops(known: Forecast) -> int:
    return sum(each.flops * each.count for each in known.here.costs[1].optimizer_operations)


def clock(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us" if seconds else "0"


def to_json(known: Forecast, name: str) -> dict[str, Any]:
    """Everything that the tables say, in bytes and seconds."""
    planned = known.sketch
    return {
        "recipe": name,
        "steps": planned.train.steps,
        "batch_size": planned.size,
        "unit": planned.unit,
        "dtype": str(known.dtype).removeprefix("torch."),
        "parameters": {
            part: {"trained": trained, "frozen": frozen} for part, (trained, frozen) in known.parts.items()
        },
        "flops_per_sample": known.here.flops(),
        "optimizer_flops_per_step": sum_flops(known),
        "cache_bytes_per_row": planned.cache_bytes(known.dtype),
        "data_seconds_per_sample": known.data_seconds,
        "process_bytes": known.besides,
        "calibration": None if known.calibration is None else dataclasses.asdict(known.calibration),
        "machines": [dataclasses.asdict(row) for row in known.rows],
        "assumptions": assumptions(known),
    }


def plot(known: Forecast, path: Path) -> None:
    """Memory by kind, and samples a second, for each of the machines."""
    figure = Figure(figsize=(9, 0.9 + 0.5 * max(3, len(known.rows))), layout="constrained")
    memory, speed = figure.subplots(1, 2, sharey=True)
    names = [row.name for row in known.rows]
    for place, row in enumerate(known.rows):
        left = 0.0
        for kind, colour in zip(KINDS, COLOURS, strict=True):
            width = row.memory[kind] / 2**30
            memory.barh(place, width, left=left, color=colour, label=kind if place == 0 else None)
            left += width
        memory.plot([row.memory["peak"] / 2**30] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1)
    memory.set_yticks(range(len(names)), names)
    memory.invert_yaxis()
    memory.set_xlabel("GiB a rank; the line is the peak")
    memory.legend(fontsize=7, frameon=False)
    speed.barh(range(len(names)), [row.samples_per_second for row in known.rows], color=COLOURS[0])
    speed.set_xscale("log")
    speed.set_xlabel(f"{known.sketch.unit} a second")
    for axes in (memory, speed):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
