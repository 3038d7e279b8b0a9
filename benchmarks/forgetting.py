"""What a language model forgets of plain text while it learns to see: perplexity before and after, on any text.

    python benchmarks/forgetting.py runs/vlm-smollm docs/lecture.md docs/own-data.md

A run measures itself on topics that it was kept from, of the very reference that a twentieth of its rows is made of
(``recipes/plain_text``). Texts of another kind say more: those named here are in no training data. Passages are of 256
tokens; the ratio of the two perplexities is paired over them, with a 95% bootstrap interval.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import tyro

from bifocal import inference
from bifocal.commands.inspect import recipe_of
from bifocal.config import UserError
from bifocal.evaluation.statistics import paired_bootstrap
from bifocal.recipes.decoders import words_of
from bifocal.recipes.plain_text import LENGTH, held_out, losses


def main(run: tyro.conf.Positional[Path], texts: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Print a line for each text, and one for the run's own held-out passages.

    Args:
        run: a finished VLM that began with a language model (bifocal train vlm-smollm).
        texts: files of plain text.
    """
    recipe, vlm = recipe_of(run), inference.load(run, dtype="float32")
    if recipe is None or recipe.decoder is None or not isinstance(vlm, inference.VLM):
        raise UserError(f"{run} is no VLM of ours that began with a language model")
    _, _, llama = words_of(None, recipe.decoder, box_bins=recipe.box_bins, texts=list)
    assert llama is not None
    after, before = vlm.model, copy.deepcopy(vlm.model)
    llama.fill(before.language_model)
    sets = {"the run's own held-out passages": held_out(vlm.tokenizer)}
    for path in texts:
        ids = vlm.tokenizer.encode(path.read_text(encoding="utf-8").strip())
        sets[str(path)] = [ids[at : at + LENGTH] for at in range(0, len(ids) - LENGTH + 1, LENGTH)]
        if not sets[str(path)]:
            raise UserError(f"{path} has {len(ids)} tokens, and a passage is {LENGTH}")
    print(
        "| text | passages | before | after | after / before, 95% interval |\n| --- | --- | --- | --- | --- |"
    )
    for name, passages in sets.items():
        with torch.inference_mode():
            was, now = (np.array(losses(model, passages)) for model in (before, after))
        more = paired_bootstrap(now, was, range(len(passages)))
        change, low, high = (float(np.exp(each)) for each in (more.value, more.low, more.high))
        print(
            f"| {name} | {len(passages)} | {np.exp(was.mean()):.2f} | {np.exp(now.mean()):.2f} "
            f"| {change:.3f} ({low:.3f} to {high:.3f}) |"
        )


if __name__ == "__main__":
    tyro.cli(main)
