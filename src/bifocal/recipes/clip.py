"""Contrastive pre-training of a picture tower and a text tower."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bifocal.config import UserError
from bifocal.data.patches import KeptPatches, by_detail, keep_patches
from bifocal.data.pictures import to_tensor
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.inference import clip_tokens
from bifocal.models.clip import CLIPBatch, CLIPConfig, CLIPModel
from bifocal.models.precision import open_device
from bifocal.models.vision import TextConfig, VisionConfig
from bifocal.recipes.runs import mean_loss, open_run, run, start_from
from bifocal.recipes.sources import Source, source_of
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import Outcome, TrainSettings

ATTEMPTS = 20  # captions tried for one place in a batch before a caption that fits is given up


@dataclass(frozen=True)
class CLIPRecipe:
    """A CLIP on scenes (``data`` none) or on the captions of a folder. The vocabulary is learnt from the texts.

    With ``skip_flat`` most flat patches are left out of training (``data.patches``), up to the last ``whole_share`` of
    the steps, which look at whole pictures.
    """

    batch_size: int = 256
    text_tokens: int = 1024
    skip_flat: bool = True
    whole_share: float = 0.05
    data: str | None = None
    world: WorldSettings = field(default_factory=WorldSettings)
    model: CLIPConfig = field(default_factory=CLIPConfig)
    train: TrainSettings = field(default_factory=TrainSettings)


def contrastive_batch(
    source: Source, split: str, first: int, size: int, tokenizer: TextTokenizer, context: int
) -> CLIPBatch:
    """``size`` pictures from number ``first`` on, each with a caption that fits the context."""
    pictures, texts = [], []
    for number in range(first, first + size):
        for attempt in range(ATTEMPTS):
            picture, text = source.pair(split, number, attempt)
            if len(tokenizer.encode(text)) + 2 <= context:
                break
        else:
            raise UserError(f"no caption fits a context of {context} tokens, such as {text[:60]!r}: raise it")
        pictures.append(picture)
        texts.append(text)
    numbers: dict[str, int] = {}
    return CLIPBatch(
        images=to_tensor(pictures),
        tokens=clip_tokens(texts, tokenizer, context),
        text_ids=torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts]),
    )


def train_clip(
    recipe: CLIPRecipe, out: Path, *, resume: bool = False, init_from: str | None = None
) -> Outcome:
    """Train into ``out``."""
    device = open_device(recipe.train.device)
    source = source_of(recipe.data, recipe.world, 0)
    open_run(out, "clip", recipe, resume=resume)
    tokenizer = TextTokenizer.train(source.texts(), size=recipe.text_tokens, box_bins=0)
    context, size = recipe.model.text.context, recipe.batch_size
    text = replace(recipe.model.text, vocabulary=len(tokenizer))
    torch.manual_seed(recipe.train.seed)
    model = CLIPModel(replace(recipe.model, text=text))
    start_from(model, init_from)

    whole_from = recipe.train.steps * (1 - recipe.whole_share) if recipe.skip_flat else 0

    def batch_at(step: int) -> CLIPBatch:
        batch = contrastive_batch(source, "train", step * size, size, tokenizer, context)
        if step < whole_from:
            batch = look_at_detail(batch, model.config.vision.patch_size, step)
        return move(batch, device)

    held_out = [move(contrastive_batch(source, "validation", 0, min(size, 256), tokenizer, context), device)]
    return run(
        model,
        recipe.train,
        batch_at,
        out,
        recipe=recipe,
        samples_per_step=size,
        data_fingerprint=source.fingerprint,
        tokenizer=tokenizer,
        validation=lambda: mean_loss(model, held_out),
        resume=resume,
        title="clip",
    )


def look_at_detail(batch: CLIPBatch, patch_size: int, seed: int) -> CLIPBatch:
    """The same pairs, sorted by how much there is to see, with the patches to look at."""
    order = by_detail(batch.images, patch_size)
    images = batch.images[order]
    kept = keep_patches(images, patch_size, torch.Generator().manual_seed(seed))
    return CLIPBatch(images, batch.tokens[order], batch.text_ids[order], kept)


def move(batch: CLIPBatch, device: torch.device) -> CLIPBatch:
    """The batch on a device."""
    kept = batch.kept and tuple(
        KeptPatches(group.places.to(device), group.weights.to(device)) for group in batch.kept
    )
    return CLIPBatch(batch.images.to(device), batch.tokens.to(device), batch.text_ids.to(device), kept)


def recipe_clip(scale: str) -> CLIPRecipe:
    """Toy size, the quickstart's, or the reference run's."""
    if scale == "smoke":
        return CLIPRecipe(
            batch_size=32,
            model=CLIPConfig(vision=VisionConfig(width=96, layers=2), text=TextConfig(width=64, layers=1)),
            train=TrainSettings(
                steps=24,
                validate_every=12,
                checkpoint_every=12,
                log_every=4,
                optimizer=OptimizerSettings(kind="muon", warmup_steps=4),
            ),
        )
    steps = {"quickstart": 400, "standard": 1200}[scale]
    return CLIPRecipe(
        train=TrainSettings(
            steps=steps,
            validate_every=max(40, steps // 10),
            checkpoint_every=max(100, steps // 4),
            optimizer=OptimizerSettings(kind="muon", learning_rate=1.5e-3, matrix_learning_rate=0.02),
        )
    )
