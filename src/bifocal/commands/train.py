"""`bifocal train`: a recipe by name, its overrides, and where the run goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bifocal.config import UserError, apply_overrides
from bifocal.recipes.clip import recipe_clip, train_clip
from bifocal.recipes.vlm import recipe_vlm, train_vlm
from bifocal.recipes.vqvae import recipe_vqvae, train_vqvae

MODELS = ("vqvae", "clip", "vlm")


def train_command(
    model: str,
    out: Path,
    *,
    overrides: Mapping[str, str],
    scale: str = "quickstart",
    family: str | None = None,
    vision: str | None = None,
    data: str | None = None,
    init_from: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    checkpoint_every: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    resume: bool = False,
) -> None:
    """Train one model into ``out``; common settings have flags of their own, the rest are dotted overrides."""
    if model not in MODELS:
        raise UserError(f"there is no recipe {model!r}; choose from {', '.join(MODELS)}")
    if model != "vlm" and (family is not None or vision is not None):
        raise UserError(f"--family and --vision are for vlm, not for {model}")
    flags = {
        "data": data,
        "train.steps": steps,
        "train.seed": seed,
        "train.checkpoint_every": checkpoint_every,
    }
    given = {key: str(value) for key, value in flags.items() if value is not None}
    for key in given.keys() & overrides.keys():
        name = key.split(".")[-1].replace("_", "-")
        raise UserError(f"--{name} and --{key} are the same setting: give one of them")
    settings = {"train.device": device, "train.dtype": dtype, **given, **overrides}
    if model == "vqvae":
        train_vqvae(apply_overrides(recipe_vqvae(scale), settings), out, resume=resume, init_from=init_from)
    elif model == "clip":
        train_clip(apply_overrides(recipe_clip(scale), settings), out, resume=resume, init_from=init_from)
    else:
        chosen = recipe_vlm(scale, "discrete" if family == "discrete" else "continuous")
        if data is not None:  # the stages are made for the kinds of question that scenes have
            chosen = replace(chosen, stages=())
        recipe: Any = replace(apply_overrides(chosen, settings), vision=vision or "")
        train_vlm(recipe, out, resume=resume, init_from=init_from)
    print(f"finished: {out}")
