"""Times a decoder's way there and back on a CPU in bf16 with torch's ways back and with ours, in turns.

python benchmarks/decoder_step.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from unittest.mock import patch

import torch
import tyro
from torch import Tensor

from bifocal.models import blocks
from bifocal.models.language import LanguageModel
from bifocal.recipes.vlm import recipe_vlm


def main(rounds: int = 40, threads: int = 2) -> None:
    """Print the fastest and the median milliseconds of each.

    Args:
        rounds: turns, each of one pass with torch's ways and one with each of ours.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    recipe = recipe_vlm("standard")
    rows, length, width = recipe.batch_size, recipe.row_length, recipe.language.width
    model = LanguageModel(recipe.language).bfloat16()
    given = torch.randn(rows, length, width).bfloat16()
    positions = torch.arange(length).expand(rows, -1)
    bias = torch.full((rows, 1, length, length), float("-inf")).triu(1).bfloat16()
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, taken in WAYS.items():
            with patch.object(blocks, "learns", taken):
                start = time.perf_counter()
                model(given.clone().requires_grad_(), positions, bias).sum().backward()
                times.setdefault(name, []).append(1000 * (time.perf_counter() - start))
    print(
        f"torch {torch.__version__}, {threads} threads, {rows} rows of {length}, {len(model.layers)} layers of {width}"
    )
    for name, found in times.items():
        print(f"{name:<8} {min(found):6.0f} ms at best, {median(found):6.0f} in the middle")


LEARNS = blocks.learns
WAYS: dict[str, Callable[[Tensor], bool]] = {"torch": lambda x: False, "ours": LEARNS}


if __name__ == "__main__":
    tyro.cli(main)
