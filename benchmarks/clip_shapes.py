"""Times steps of the quickstart's CLIP on a CPU in bf16, without each of the things that make its products fewer.

    python benchmarks/clip_shapes.py --steps 60 --rounds 3

A batch has pictures of as many patches, and texts of as many tokens, as it happens to have. oneDNN compiles a product
for each shape that it meets and keeps 1,024 of them unless it is told otherwise. Each setting trains from the
beginning in a process of its own, A B C A B C; batches, the optimizer and all else are part of a step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import tyro

from bifocal.models.precision import KEPT_PRODUCTS
from bifocal.models.text import TextTransformer
from bifocal.recipes.clip import recipe_clip, train_clip
from bifocal.training import optimizer

FEW = "1,024 products kept"
NARROW = "texts 64 at once, as many as there are"
SINGLE = "Muon matrix by matrix"
SETTINGS = {
    "as it is": (),
    FEW: (FEW,),
    NARROW: (NARROW,),
    SINGLE: (SINGLE,),
    "all three": (FEW, NARROW, SINGLE),
}
WARM_UP = 10  # steps that are not counted


class SingleMuon(torch.optim.Muon):
    """torch's own, which is told nothing of steps that are not taken."""

    taken = None


def train(steps: int, without: tuple[str, ...]) -> float:
    """The median of the seconds of a step, ten at a time."""
    if FEW in without:
        os.environ[KEPT_PRODUCTS[0]] = "1024"
    if NARROW in without:
        TextTransformer.together, TextTransformer.rounded = 64, 1
    if SINGLE in without:
        optimizer.Muon = SingleMuon  # type: ignore[misc, assignment]
    recipe = recipe_clip("quickstart")
    never = steps + 1
    settings = replace(
        recipe.train, steps=steps, log_every=WARM_UP, validate_every=never, checkpoint_every=never
    )
    with tempfile.TemporaryDirectory() as out:
        log = train_clip(replace(recipe, train=settings), Path(out)).log
    rates = [row["samples_per_second"] for row in log if row["phase"] == "train" and row["step"] > WARM_UP]
    return recipe.batch_size / statistics.median(rates)


def main(steps: int = 60, rounds: int = 3, setting: str = "") -> None:
    """Print the milliseconds of a step for each setting, the median and the range of its rounds.

    Args:
        steps: of each training.
        rounds: trainings of each setting.
        setting: train once with this setting, and print the seconds of a step.
    """
    if setting:
        print(json.dumps(train(steps, SETTINGS[setting])))
        return
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(rounds):
        for name, taken in times.items():
            command = [sys.executable, __file__, "--steps", str(steps), "--setting", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            taken.append(1000 * float(done.stdout.splitlines()[-1]))
    for name, taken in times.items():
        print(f"{name:<40} {statistics.median(taken):6.0f} ms  ({min(taken):.0f} to {max(taken):.0f})")


if __name__ == "__main__":
    tyro.cli(main)
