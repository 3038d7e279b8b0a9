"""CLIP's vectors against a VQ-VAE's codes: the same decoder, data, order and steps on each, and what sets them apart.

    python benchmarks/clip_vs_vqvae.py runs/encoders --dry
    python benchmarks/clip_vs_vqvae.py runs/encoders
    python benchmarks/clip_vs_vqvae.py runs/encoders --minutes 30
    python benchmarks/clip_vs_vqvae.py runs/encoders --cells main codebooks --steps 800

Trains the encoders, each for the same minutes, and on each a decoder, from an encode-once store; asks all of them the
same questions about scenes that none has seen; and writes tables and a picture between the marks <!-- cells --> and
<!-- /cells --> of the page. The most important cells come first. Whatever is finished is not made again and what was
stopped goes on, so the command can be given in pieces; ``--minutes 0`` writes the page from what is there.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import tyro
from cells.grid import GROUPS, SIGHTS, Cell, Group, Sight, grid
from cells.page import EVALUATED, Finished, fill
from cells.study import Study
from page import Page

from bifocal.recipes.runs import finished

# Minutes on the machine that the study's SECONDS speak of; a step by its positions, in seconds.
STEP_SECONDS = {64: 0.45, 16: 0.31}
ENCODE, PROBE, ASK = 0.35, 0.25, 0.4


def pieces(study: Study, cells: Sequence[Cell]) -> Iterator[tuple[str, float, Callable[[], None]]]:
    """What is to be done, in order: its name, the minutes it may take, and how. Encoders come when they are needed."""
    taken: set[str] = set()
    seen: set[Sight] = set()
    for cell in cells:
        sight = cell.sight
        # what teaches a VQ-VAE comes before it
        for name in ("clip", sight.encoder) if sight.name.endswith("taught") else (sight.encoder,):
            if name is None or name in taken:
                continue
            taken.add(name)
            if not finished(study.encoder(name)):
                yield f"encoder {name}", study.encoder_minutes, functools.partial(study.train_encoder, name)
        first = sight not in seen
        seen.add(sight)
        if first and not study.is_probed(sight):
            yield f"probe {sight.name}", PROBE, functools.partial(study.probe, sight)
        if not (study.place(cell) / EVALUATED).exists():
            minutes = first * ENCODE + study.steps * STEP_SECONDS[cell.positions] / 60 + ASK
            yield f"cell {cell.name} ({cell.group})", minutes, functools.partial(study.make, cell)


def main(
    runs: tyro.conf.Positional[Path],
    page: tyro.conf.Positional[Path] = Path("docs/clip-vs-vqvae.md"),
    cells: tuple[Group, ...] = GROUPS,
    minutes: float | None = None,
    steps: int = 340,
    encoder_minutes: float = 2.5,
    concepts: Literal["small", "quickstart"] = "small",
    episodes: int = 6000,
    given: dict[str, Path] | None = None,
    smoke: bool = False,
    dry: bool = False,
) -> None:
    """Train and ask what is missing, then write the page.

    Args:
        runs: where everything lies.
        page: a Markdown page with the two marks.
        cells: groups of cells; they are always made in the grid's order.
        minutes: begin nothing that would end later than this; what is there is written in any case.
        steps: of each decoder.
        encoder_minutes: of each encoder, on the machine that SECONDS speaks of.
        concepts: 30 things, or the quickstart's 120, which need several times the steps.
        episodes: training scenes that are talked about.
        given: finished encoders to take instead of training them, by name ("clip", "vqvae-512", "vqvae-64-coarse").
        smoke: toy models.
        dry: print what would be done, with an estimate of the minutes, and stop.
    """
    report = Page(page, "cells")
    study = Study(runs, steps, encoder_minutes, concepts, episodes, smoke, given or {})
    wanted = grid(cells)
    if not dry:
        study.refuse_other_settings(wanted)
    began, planned = time.perf_counter(), 0.0
    for name, expected, do in pieces(study, wanted):
        planned += expected
        if dry:
            print(f"{planned:6.1f} min  {name}")
            continue
        spent = (time.perf_counter() - began) / 60
        if minutes is not None and spent + expected > minutes:
            print(
                f"{name} would take {expected:.1f} of {minutes:g} minutes, {spent:.1f} of which are gone: stopping"
            )
            break
        print(f"{spent:.1f} min: {name}", flush=True)
        do()
    if dry:
        return
    done = [
        Finished(cell.variant, cell.sight.name, cell.positions, cell.seed, study.place(cell))
        for cell in grid(GROUPS)
        if (study.place(cell) / EVALUATED).exists()
    ]
    encoders = {sight.name: study.encoder(sight.encoder) for sight in SIGHTS.values() if sight.encoder}
    fill(report, done, encoders, study.probes)


if __name__ == "__main__":
    tyro.cli(main)
