"""Runs of every kind on models small enough for every test, and what starts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from bifocal.data.scenes import WorldSettings
from bifocal.models.clip import CLIPConfig
from bifocal.models.language import LanguageConfig
from bifocal.models.parti import DecoderConfig
from bifocal.models.text import TextConfig
from bifocal.recipes.clip import CLIPRecipe, train_clip
from bifocal.recipes.parti import PartiRecipe, train_parti
from bifocal.recipes.prior import PriorRecipe, train_prior
from bifocal.recipes.vlm import TaskWeights, VLMRecipe, train_vlm
from bifocal.recipes.vqvae import VQVAERecipe, train_vqvae
from bifocal.training import checkpoint
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import TrainSettings

STEPS, MIDDLE = 4, 2
WORLD = WorldSettings(picture_size=tiny.PICTURE_SIZE)
SETTINGS = TrainSettings(
    steps=STEPS, log_every=1, validate_every=2, checkpoint_every=MIDDLE,
    optimizer=OptimizerSettings(kind="muon", warmup_steps=2),
)  # fmt: skip


def toy_vqvae(data: Path) -> VQVAERecipe:
    return VQVAERecipe(batch_size=2, data=str(data), world=WORLD, model=tiny.IMAGE_TOKENS, train=SETTINGS)


def toy_moving_averages(data: Path) -> VQVAERecipe:
    """A codebook that no gradient moves, some of whose codes restart after every step."""
    quantizer = replace(tiny.IMAGE_TOKENS.quantizer, update="ema", restart_after=1)
    return replace(toy_vqvae(data), model=replace(tiny.IMAGE_TOKENS, quantizer=quantizer))


def toy_clip(data: Path) -> CLIPRecipe:
    text = TextConfig(width=32, layers=1, heads=2, context=24)
    model = CLIPConfig(vision=tiny.VISION, text=text, width=16)
    return CLIPRecipe(batch_size=6, text_tokens=300, data=str(data), world=WORLD, model=model, train=SETTINGS)


def toy_chunks(data: Path) -> CLIPRecipe:
    """The other objective, with gradients that are cached."""
    return replace(toy_clip(data), objective="sigmoid", chunk_size=2)


def toy_vlm(data: Path, family: str, vision: Path) -> VLMRecipe:
    return VLMRecipe(
        family=family, vision=str(vision), batch_size=4, row_length=128, text_tokens=300, box_bins=8,
        data=str(data), world=WORLD, tasks=TaskWeights(drawing=0.5),
        language=LanguageConfig(width=32, layers=1, heads=2, kv_heads=1, hidden=48, qk_norm=True),
        train=SETTINGS,
    )  # type: ignore[arg-type]  # fmt: skip


def toy_prior(data: Path, vision: Path) -> PriorRecipe:
    language = LanguageConfig(width=32, layers=1, heads=2, kv_heads=2, hidden=48)
    return PriorRecipe(
        vision=str(vision), batch_size=4, data=str(data), world=WORLD, language=language, train=SETTINGS
    )


def toy_parti(data: Path, vision: Path) -> PartiRecipe:
    return PartiRecipe(
        vision=str(vision), batch_size=4, text_tokens=300, data=str(data), world=WORLD,
        text=TextConfig(width=32, layers=1, heads=2, context=48),
        decoder=DecoderConfig(width=32, layers=1, heads=2, hidden=48), train=SETTINGS,
    )  # fmt: skip


Start = Callable[..., Any]


def starts(place: Path, settings: TrainSettings = SETTINGS) -> dict[str, Start]:
    """What starts each kind of run, given its directory; those with an encoder take it from the runs in ``place``."""
    data = place / "data"

    def run(train: Callable[..., Any], recipe: Any) -> Start:
        return lambda out, **more: train(replace(recipe, train=settings), out, **more)

    return {
        "vqvae": run(train_vqvae, toy_vqvae(data)),
        "vqvae-ema": run(train_vqvae, toy_moving_averages(data)),
        "clip": run(train_clip, toy_clip(data)),
        "clip-chunks": run(train_clip, toy_chunks(data)),
        "vlm-discrete": run(train_vlm, toy_vlm(data, "discrete", place / "vqvae")),
        "vlm-continuous": run(train_vlm, toy_vlm(data, "continuous", place / "clip")),
        "prior": run(train_prior, toy_prior(data, place / "vqvae")),
        "parti": run(train_parti, toy_parti(data, place / "vqvae")),
    }


def stopped_at(step: int, start: Callable[[], object]) -> None:
    """Start a run that is interrupted when it has saved this step."""
    write = checkpoint.save

    def stop(directory: Path, reached: int, **content: Any) -> Path:
        path = write(directory, reached, **content)
        if reached == step:
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", stop)
        start()


class Words:
    """Codes, and what a teacher says, that tell which picture of ``tiny.folder`` they are of."""

    def __init__(self, *shape: int, reads: bool = False) -> None:
        self.shape, self.reads = shape, reads

    def get(self, keys: Sequence[str]) -> torch.Tensor:
        numbers = torch.tensor([int(key.split(".")[0]) for key in keys])
        return (
            numbers.view(-1, *[1] * len(self.shape)) + torch.arange(math.prod(self.shape)).view(self.shape)
        ) % 8

    def keys(self, split: str) -> list[str]:
        return [f"{number}.png" for number in range(24)]

    def features(self, split: str, keys: Sequence[str]) -> torch.Tensor:
        return torch.sin(1.0 + self.get(keys))
