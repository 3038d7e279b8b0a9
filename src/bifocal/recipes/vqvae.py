"""Training an image tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bifocal.data.pictures import to_tensor
from bifocal.data.scenes import WorldSettings
from bifocal.models.precision import open_device
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel
from bifocal.recipes.runs import mean_loss, open_run, run, start_from
from bifocal.recipes.sources import source_of
from bifocal.training.alarms import CodebookAlarms
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import Outcome, TrainSettings


@dataclass(frozen=True)
class VQVAERecipe:
    """A VQ-VAE on scenes (``data`` none) or on the pictures of a folder."""

    batch_size: int = 32
    data: str | None = None
    world: WorldSettings = field(default_factory=WorldSettings)
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    train: TrainSettings = field(default_factory=TrainSettings)


def train_vqvae(
    recipe: VQVAERecipe,
    out: Path,
    *,
    resume: bool = False,
    init_from: str | None = None,
    show: Callable[[VQVAEModel, Tensor, int], None] | None = None,
) -> Outcome:
    """Train into ``out``. ``show`` is given the model, some validation pictures and the step, at each validation."""
    device = open_device(recipe.train.device)
    source = source_of(recipe.data, recipe.world, 0)
    open_run(out, "vqvae", recipe, resume=resume)
    size = recipe.batch_size

    def batch_at(step: int) -> Tensor:
        return to_tensor([source.picture("train", step * size + row) for row in range(size)]).to(device)

    held_out = [
        to_tensor([source.picture("validation", start + row) for row in range(32)]).to(device)
        for start in (0, 32, 64, 96)
    ]
    torch.manual_seed(recipe.train.seed)
    model = VQVAEModel(recipe.model)
    start_from(model, init_from)
    return run(
        model,
        recipe.train,
        batch_at,
        out,
        recipe=recipe,
        samples_per_step=size,
        data_fingerprint=source.fingerprint,
        validation=lambda: mean_loss(model, held_out),
        watch=CodebookAlarms(
            codes=recipe.model.quantizer.codes,
            places=size * recipe.model.codes_per_picture // recipe.model.quantizer.depth,
            ema=recipe.model.quantizer.update == "ema",
        ),
        probes={} if show is None else {"pictures": lambda step: show(model, held_out[0][:16], step)},
        resume=resume,
        title="vqvae",
    )


def recipe_vqvae(scale: str) -> VQVAERecipe:
    """Toy size, the quickstart's, or the reference run's."""
    if scale == "smoke":
        return VQVAERecipe(
            batch_size=8,
            train=TrainSettings(
                steps=24,
                validate_every=12,
                checkpoint_every=12,
                log_every=4,
                optimizer=OptimizerSettings(kind="muon", learning_rate=2e-3, warmup_steps=4),
            ),
        )
    steps = {"quickstart": 740, "standard": 1400}[scale]
    return VQVAERecipe(
        batch_size=16,
        train=TrainSettings(
            steps=steps,
            validate_every=max(100, steps // 12),
            checkpoint_every=max(300, steps // 4),
            log_every=25,
            optimizer=OptimizerSettings(kind="muon", learning_rate=2e-3, warmup_steps=20),
        ),
    )
