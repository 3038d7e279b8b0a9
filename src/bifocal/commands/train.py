"""`bifocal train`: a recipe by name, its overrides, and where the run goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bifocal.config import UserError, apply_overrides
from bifocal.recipes.clip import begun_with, recipe_clip, train_clip
from bifocal.recipes.prior import recipe_prior, train_prior
from bifocal.recipes.smollm import recipe_smollm, train_smollm
from bifocal.recipes.vlm import recipe_vlm, train_vlm
from bifocal.recipes.vqvae import recipe_vqvae, train_vqvae

MODELS = ("vqvae", "clip", "vlm", "vlm-smollm", "prior")


def train_command(
    model: str,
    out: Path,
    *,
    overrides: Mapping[str, str],
    scale: str = "quickstart",
    family: str | None = None,
    vision: str | None = None,
    tower: str | None = None,
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
    if model != "vlm" and family is not None:
        raise UserError(f"--family is for vlm, not for {model}")
    if model not in ("vlm", "vlm-smollm", "prior") and vision is not None:
        raise UserError(f"--vision is for vlm, vlm-smollm and prior, not for {model}")
    if model != "clip" and tower is not None:
        raise UserError(f"--tower is for clip, not for {model}")
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
        if init_from is not None and tower is not None:
            raise UserError("--tower is that of the CLIP that --init-from names: give one of them")
        contrastive = recipe_clip(scale, tower or "vit")
        if init_from is not None:
            contrastive = begun_with(contrastive, init_from)
        contrastive = apply_overrides(contrastive, settings)
        train_clip(contrastive, out, resume=resume, init_from=init_from)
    elif model == "prior":
        prior = replace(apply_overrides(recipe_prior(scale), settings), vision=vision or "")
        train_prior(prior, out, resume=resume, init_from=init_from)
    elif model == "vlm-smollm":
        smollm = replace(apply_overrides(recipe_smollm(scale), settings), vision=vision or "")
        train_smollm(smollm, out, resume=resume, init_from=init_from)
    else:
        chosen = recipe_vlm(scale, "discrete" if family == "discrete" else "continuous")
        if data is not None:  # the stages are made for the kinds of question that scenes have
            chosen = replace(chosen, stages=())
        recipe: Any = replace(apply_overrides(chosen, settings), vision=vision or "")
        train_vlm(recipe, out, resume=resume, init_from=init_from)
    print(f"finished: {out}")
