"""`bifocal train`: a recipe by name, its overrides, and where the run goes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bifocal import distributed
from bifocal.config import UserError
from bifocal.recipes.clip import train_clip
from bifocal.recipes.named import recipe_named
from bifocal.recipes.parti import train_parti
from bifocal.recipes.prior import train_prior
from bifocal.recipes.smollm import train_smollm
from bifocal.recipes.vlm import train_vlm
from bifocal.recipes.vqvae import train_vqvae
from bifocal.training.guards import lost_ranks_named

TRAINERS: dict[str, Callable[..., Any]] = {
    "vqvae": train_vqvae,
    "clip": train_clip,
    "vlm": train_vlm,
    "vlm-smollm": train_smollm,
    "prior": train_prior,
    "parti": train_parti,
}


def on_every_rank(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command that takes ``overrides`` meet the other processes that ``torchrun`` started, if it did."""

    @functools.wraps(command)
    def met(*values: Any, overrides: Mapping[str, str], **named: Any) -> None:
        waits = distributed.TIMEOUT_SECONDS
        with contextlib.suppress(ValueError):  # the recipe says what is wrong with it
            waits = float(overrides.get("train.timeout_seconds", waits))
        with distributed.joined(waits), lost_ranks_named(lambda: "before the first step or after the last"):
            command(*values, overrides=overrides, **named)

    return met


@on_every_rank
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
    if dtype == "int8":
        raise UserError(
            "int8 weights cannot be trained: choose float32 or bfloat16, and int8 for the finished model"
        )
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
    recipe = recipe_named(
        model,
        scale,
        settings,
        family=family,
        vision=vision,
        tower=tower,
        data=data,
        init_from=init_from,
    )
    TRAINERS[model](recipe, out, resume=resume, init_from=init_from)
    if distributed.is_main():
        print(f"finished: {out}")
