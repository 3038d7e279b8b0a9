"""Numbers with which no recipe can train, said before anything is made."""

from __future__ import annotations

from typing import Any


def require_counts(recipe: Any, *counts: str) -> None:
    """Raise ``ValueError`` for each of the ``counts`` that is below 1, and for a seed that numpy would not take."""
    wrong = [
        f"{name} must be at least 1, got {getattr(recipe, name)}"
        for name in counts
        if getattr(recipe, name) < 1
    ]
    if recipe.train.seed < 0:
        wrong.append(f"train.seed must be at least 0, got {recipe.train.seed}")
    if wrong:
        raise ValueError("; ".join(wrong))
