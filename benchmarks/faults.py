"""Tries the faults that training must survive, and writes the table of them.

    python benchmarks/faults.py docs/reliability.md
    python benchmarks/faults.py /tmp/table.md --kills 3 --every 10

Small models of every kind are trained once without a fault, and then again with one: killed, asked to stop, hindered
in writing, given damaged checkpoints, pictures or batches. A fault is survived if the run, gone on with, ends in the
weights and figures of the run that nothing happened to, bit by bit. The text of the page is kept; what stands between
its two marks is written anew.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import faults
from bifocal.config import UserError

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def tries(place: Path, kills: int, every: int) -> Sequence[Callable[[], faults.Tried]]:
    """What to try, in the order of the table."""
    world = faults.World(place / "world")
    writes = range(1, 500, every)
    return [
        lambda: faults.killed_at_random(world, faults.KINDS, kills),
        lambda: faults.killed_in_writes(world, ["vqvae-ema", "vlm-continuous"], writes),
        lambda: faults.not_a_number(world),
        lambda: faults.disk_full(world, faults.KINDS),
        lambda: faults.disk_full_at_end(world, faults.KINDS),
        lambda: faults.clock_goes_back(world, faults.KINDS),
        lambda: faults.rank_lost(place / "ranks"),
        lambda: faults.byte_flipped(world, faults.KINDS),
        lambda: faults.asked_to_stop(world, faults.KINDS, workers=False),
        lambda: faults.asked_to_stop(world, ["vqvae-ema", "vlm-continuous"], workers=True),
        lambda: faults.corrupt_pictures(place / "corrupt"),
    ]


def main(page: tyro.conf.Positional[Path], kills: int = 20, every: int = 1, seconds: float = 0.0) -> None:
    """Try all faults and put the table into a page.

    Args:
        page: a Markdown file with the two marks.
        kills: how often each kind of run is killed at a random moment.
        every: of the writes of a run, each so-many-th is one to be killed at.
        seconds: begin no further fault after so many (0: no bound); what is left out is not in the table.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise UserError(f"{page} has no marks {BEGIN} and {END} to write between")
    began = time.monotonic()
    rows = ["| fault | tried | survived |", "| --- | ---: | ---: |"]
    with tempfile.TemporaryDirectory() as place:
        for attempt in tries(Path(place), kills, every):
            if seconds and time.monotonic() - began > seconds:
                break
            one = attempt()
            rows.append(f"| {one.fault} | {one.tried} | {int(one.survived)} |")
            seconds_so_far = time.monotonic() - began
            print(f"{seconds_so_far:5.0f} s  {rows[-1]}", flush=True)
            where = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}"
            table = "\n".join(rows) + f"\n\n{where}; {seconds_so_far:.0f} s in all."
            head, tail = text.split(BEGIN)[0], text.split(END)[1]
            page.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
