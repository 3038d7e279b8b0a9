"""What the two VLMs of a report were trained alike in, and what not, in the words of their recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bifocal.evaluation.goals import CONTINUOUS, DISCRETE

# The settings that decide most of how far a VLM gets, and what they count.
COUNTED = {
    "train.steps": "steps of training",
    "batch_size": "rows in a step",
    "episodes": "scenes to learn from",
    "language.layers": "layers",
    "language.width": "numbers a layer hands on",
}


def how_alike(recipes: Mapping[str, Any]) -> str:
    """A sentence on what the two had beside their eyes, from the recipe of each run; empty where one has none."""
    if not {CONTINUOUS, DISCRETE} <= recipes.keys():
        return ""
    one, other = recipes[CONTINUOUS], recipes[DISCRETE]
    unlike = []
    for name, words in COUNTED.items():
        a, b = _setting(one, name), _setting(other, name)
        if a != b:
            unlike.append(f"{_said(a)} and {_said(b)} {words}")
    if bool(one.get("stages")) != bool(other.get("stages")):
        staged = "CLIP" if one.get("stages") else "VQ-VAE"
        unlike.append(f"questions that grow harder on the way for {staged} alone")
    if Path(other.get("align") or "").name == CONTINUOUS:
        unlike.append(
            "the decoder of the one, which the other began with behind layers that learn to read codes"
        )
    elif other.get("align"):
        unlike.append(
            "a model with CLIP's eyes that taught the decoder of the VQ-VAE's codes what is in each patch"
        )
    tokenizer = recipes.get("vqvae", {})
    if tokenizer.get("perceptual") or tokenizer.get("align"):
        unlike.append("a VQ-VAE that was trained to keep what a CLIP knows things by")
    if share := other.get("tasks", {}).get("drawing"):
        unlike.append(f"{share:.0%} of the rows spent on drawing by the one that can")
    if not unlike:
        return "Beside their eyes both were trained alike."
    how = "; ".join(unlike)
    return (
        f"Beside their eyes they differ in how they were trained (CLIP first: {how}), so the difference of their "
        "scores is not that of the eyes alone."
    )


def _setting(recipe: Mapping[str, Any], name: str) -> Any:
    found: Any = recipe
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _said(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown"
