"""Training a prior over the codes of a frozen image tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from bifocal.config import UserError, fingerprint
from bifocal.data.scenes import WorldSettings
from bifocal.encoded import EncodedStore, is_store, weights_fingerprint
from bifocal.inference import load_model
from bifocal.models.language import LanguageConfig
from bifocal.models.precision import fast_dtype, open_device, set_precision
from bifocal.models.prior import PriorConfig, PriorModel
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.encoding import ENCODED, encode_split, require_picture_size
from bifocal.recipes.mixture import MixtureSource, source_of
from bifocal.recipes.ranges import require_counts
from bifocal.recipes.runs import mean_loss, open_run, run, start_from
from bifocal.recipes.sources import shuffled
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.parallel import ByRows
from bifocal.training.trainer import Outcome, TrainSettings

HELD_OUT = 512  # pictures whose codes validation is about


@dataclass(frozen=True)
class PriorRecipe:
    """A small decoder over the codes that the VQ-VAE ``vision`` gives.

    ``data`` none is ``episodes`` of scenes; otherwise it is a folder of samples, or a store that ``bifocal encode``
    wrote with the same VQ-VAE.
    """

    vision: str = ""
    batch_size: int = 64
    episodes: int = 12_000
    data: str | None = None
    world: WorldSettings = field(default_factory=WorldSettings)
    language: LanguageConfig = field(
        default_factory=lambda: LanguageConfig(width=192, layers=4, hidden=512, qk_norm=True)
    )
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        require_counts(self, "batch_size", "episodes")


def open_tokenizer(recipe: PriorRecipe) -> VQVAEModel:
    """The frozen VQ-VAE, refused if it is none or its pictures have another size than the data's."""
    if not recipe.vision:
        raise UserError("a prior is over the codes of a VQ-VAE: name its run with --vision RUN")
    model, _ = load_model(recipe.vision)
    if not isinstance(model, VQVAEModel):
        raise UserError(f"a prior is over the codes of a VQ-VAE, and {recipe.vision} is none")
    if not (recipe.data and is_store(Path(recipe.data))):
        require_picture_size(recipe.vision, model.config.picture_size, recipe.world.picture_size)
    return model


def open_store(path: Path, encoder: str, vision: str) -> EncodedStore:
    """A store of codes, refused if another VQ-VAE made them."""
    store = EncodedStore(path)
    if store.about["kind"] != "codes":
        raise UserError(f"{path} holds {store.about['kind']}, and a prior is over the codes of a VQ-VAE")
    if store.about.get("encoder") != encoder:
        raise UserError(f"{path} was encoded by another model than {vision}: encode its pictures with that")
    return store


def train_prior(
    recipe: PriorRecipe, out: Path, *, resume: bool = False, init_from: str | None = None
) -> Outcome:
    """Train into ``out``; codes that were not in a store are kept in ``out/encoded``."""
    device = open_device(recipe.train.device)
    tokenizer = open_tokenizer(recipe)
    encoder = weights_fingerprint(tokenizer)
    quantizer = tokenizer.config.quantizer
    torch.manual_seed(recipe.train.seed)
    vocabulary = quantizer.depth * quantizer.codes + 1
    model = PriorModel(
        PriorConfig(
            codes=quantizer.codes,
            depth=quantizer.depth,
            places=tokenizer.config.codes_per_picture // quantizer.depth,
            encoder=encoder,
            language=replace(recipe.language, vocabulary=vocabulary),
        )
    )
    start_from(model, init_from)
    sets: dict[str, tuple[EncodedStore, Sequence[str]]]
    if recipe.data is not None and is_store(Path(recipe.data)):
        store = open_store(Path(recipe.data), encoder, recipe.vision)
        data_fingerprint = str(store.about["fingerprint"])
        open_run(out, "prior", recipe, resume=resume, init_from=init_from)
        sets = {split: (store, keys) for split, keys in halves(list(store.rows)).items()}
    else:
        source = source_of(recipe.data, recipe.world, recipe.episodes)
        if isinstance(source, MixtureSource):
            raise UserError(
                f"a prior learns every picture as often, and {recipe.data} mixes sets by weight: name one"
            )
        data_fingerprint = source.fingerprint
        open_run(out, "prior", recipe, resume=resume, init_from=init_from, source=source)
        set_precision(tokenizer.to(device), fast_dtype(device, recipe.train.dtype))
        sets = {}
        for split in ("train", "validation"):
            store = encode_split(
                source,
                split,
                out / ENCODED / split,
                tokenizer,
                lambda images: tokenizer.encode(images).flatten(1),
                device=device,
                codebook=quantizer.codes,
            )
            sets[split] = store, [key for key in store.rows if key not in source.spoilt()]

    def codes(split: str, chosen: Sequence[int]) -> Tensor:
        store, keys = sets[split]
        return store.get([keys[number] for number in chosen]).flatten(1)

    size, seed, count = recipe.batch_size, recipe.train.seed, len(sets["train"][1])
    held_out = codes("validation", range(min(HELD_OUT, len(sets["validation"][1])))).to(device).split(size)
    return run(
        model,
        recipe.train,
        lambda step: ByRows(
            lambda rows: codes("train", [shuffled(step * size + row, count, seed) for row in rows])
        ),
        out,
        recipe=recipe,
        samples_per_step=size,
        data_fingerprint=data_fingerprint,
        names_at=lambda step: [
            sets["train"][1][shuffled(step * size + row, count, seed)] for row in range(size)
        ],
        validation=lambda: mean_loss(model, list(held_out)),
        resume=resume,
        title="prior",
    )


def halves(keys: Sequence[str]) -> dict[str, list[str]]:
    """A tenth of the keys, by their hash, for validation, and the rest; a set too small for that serves as both."""
    held_out = {key for key in keys if int(fingerprint(key)[:8], 16) % 10 == 0}
    parts = {
        "train": [key for key in keys if key not in held_out],
        "validation": [key for key in keys if key in held_out],
    }
    return {split: chosen or list(keys) for split, chosen in parts.items()}


def recipe_prior(scale: str) -> PriorRecipe:
    """Toy size, that of a quickstart's VQ-VAE, or that of the reference run's."""
    if scale == "smoke":
        return PriorRecipe(
            batch_size=16,
            episodes=64,
            language=LanguageConfig(width=64, layers=2, heads=2, kv_heads=2, hidden=128, qk_norm=True),
            train=TrainSettings(
                steps=24,
                validate_every=12,
                checkpoint_every=12,
                log_every=4,
                optimizer=OptimizerSettings(kind="muon", learning_rate=4e-3, warmup_steps=4),
            ),
        )
    steps, episodes = {"quickstart": (400, 12_000), "standard": (2000, 60_000)}[scale]
    return PriorRecipe(
        episodes=episodes,
        train=TrainSettings(
            steps=steps,
            validate_every=max(50, steps // 10),
            checkpoint_every=max(100, steps // 4),
            optimizer=OptimizerSettings(kind="muon", learning_rate=4e-3, warmup_steps=20),
        ),
    )
