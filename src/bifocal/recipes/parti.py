"""Training Parti: prompts to the codes of a frozen image tokenizer."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bifocal.config import UserError
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer, uncased
from bifocal.encoded import weights_fingerprint
from bifocal.inference import load_model, vqvae_in
from bifocal.models.clip import CLIPModel
from bifocal.models.parti import DecoderConfig, Drawings, PartiConfig, PartiModel
from bifocal.models.precision import fast_dtype, open_device, set_precision
from bifocal.models.text import TextConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel
from bifocal.recipes.encoding import ENCODED, encode_split
from bifocal.recipes.mixture import source_of
from bifocal.recipes.probes import DRAWINGS, prompted
from bifocal.recipes.runs import mean_loss, open_run, run, start_from
from bifocal.recipes.sources import shuffled
from bifocal.recipes.texts import Texts, known_words, taught, texts_of
from bifocal.training.feeding import to_device
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import Outcome, TrainSettings

HELD_OUT = 512  # pictures that validation is about
ATTEMPTS = 16  # texts of a picture that are tried until one fits the context


@dataclass(frozen=True)
class PartiRecipe:
    """A text encoder and a decoder over the codes that the VQ-VAE ``vision`` gives.

    ``text_from`` names a finished CLIP of ours whose text encoder and tokenizer this one begins with; ``text`` is then
    that CLIP's. Of the texts ``drop_text`` are dropped, which teaches the half of guidance that hears none.
    """

    vision: str = ""
    text_from: str | None = None
    batch_size: int = 128
    episodes: int = 12_000
    text_tokens: int = 1024
    drop_text: float = 0.1
    data: str | None = None
    world: WorldSettings = field(default_factory=WorldSettings)
    text: TextConfig = field(default_factory=TextConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.drop_text < 1:
            raise ValueError(f"drop_text is a share of the texts below 1, got {self.drop_text}")


# ------------------------------------------------------------ batches


class Codes(Protocol):
    """A store of the codes of pictures, as ``EncodedStore`` is."""

    def get(self, keys: Sequence[str]) -> Tensor: ...


class Batches:
    """Prompts with the codes of their pictures, as a pure function of (split, step)."""

    def __init__(
        self,
        recipe: PartiRecipe,
        texts: Texts,
        tokenizer: TextTokenizer,
        context: int,
        stores: Mapping[str, Codes],
        spoilt: Collection[str] = (),
    ) -> None:
        self.recipe, self.texts, self.tokenizer, self.context = recipe, texts, tokenizer, context
        self.stores = stores
        # a store holds the codes of another picture for one that cannot be read
        self.keys = {split: [key for key in texts.keys(split) if key not in spoilt] for split in stores}

    def pictures(self, split: str, step: int, size: int) -> list[str]:
        """The pictures of a step, each as often as any other."""
        keys, seed = self.keys[split], self.recipe.train.seed
        return [keys[shuffled(step * size + row, len(keys), seed)] for row in range(size)]

    def at(self, split: str, step: int, size: int, drop: float) -> Drawings:
        """``size`` pictures with a text each, of which the share ``drop`` is dropped."""
        rng = random.Random(f"{self.recipe.train.seed}/{split}/{step}")
        chosen = self.pictures(split, step, size)
        rows = [self.text(key, rng)[1] for key in chosen]
        longest = max(map(len, rows))
        return Drawings(
            tokens=torch.tensor([row + [self.tokenizer.pad] * (longest - len(row)) for row in rows]),
            dropped=torch.tensor([rng.random() < drop for _ in rows]),
            codes=self.stores[split].get(chosen).flatten(1),
        )

    def text(self, key: str, rng: random.Random) -> tuple[str, list[int]]:
        """A text of a picture that fits the context, and its tokens."""
        for _ in range(ATTEMPTS):
            text = self.texts.text(key, rng)
            (row,) = self.tokenizer.sequences([uncased(text)])
            if len(row) <= self.context:
                return text, row
        raise UserError(
            f"no text of picture {key} fits {self.context} tokens (one has {len(row)}): raise --text.context"
        )


# ------------------------------------------------------------ training


def open_tokenizer(recipe: PartiRecipe) -> VQVAEModel:
    """The frozen VQ-VAE, which may be that of a Parti or a VLM.

    Refused if there is none, it has no decoder or takes other pictures than the data's.
    """
    if not recipe.vision:
        raise UserError("Parti draws the codes of a VQ-VAE: name its run with --vision RUN")
    model = vqvae_in(load_model(recipe.vision)[0])
    if model is None:
        raise UserError(
            f"Parti draws the codes of a VQ-VAE, and {recipe.vision} neither is one nor has one inside"
        )
    config, size = model.config, recipe.world.picture_size
    if config.architecture == "cnn" and not config.decoder_blocks:
        raise UserError(
            f"{recipe.vision} has no decoder: it turns pictures into codes, and codes into no pictures"
        )
    if config.picture_size != size:
        raise UserError(
            f"{recipe.vision} takes pictures of {config.picture_size} pixels, and these have {size}: "
            f"give --world.picture-size {config.picture_size}"
        )
    return model


def open_text(run: str) -> tuple[CLIPModel, TextTokenizer]:
    """The CLIP that the text encoder begins with, refused where it reads in one direction or with foreign tokens."""
    clip, tokenizer = load_model(run)
    if not isinstance(clip, CLIPModel) or not isinstance(tokenizer, TextTokenizer):
        raise UserError(f"--text-from {run} is no CLIP with a tokenizer of ours, and takes its place here")
    if clip.config.text.causal:
        raise UserError(f"--text-from {run} reads from left to right, and Parti reads in both directions")
    return clip, tokenizer


def words_for(
    recipe: PartiRecipe, clip: tuple[CLIPModel, TextTokenizer] | None, said: Sequence[str]
) -> TextTokenizer:
    """The tokenizer of the CLIP that the text encoder begins with, or else one made of the texts."""
    return TextTokenizer.train(said, size=recipe.text_tokens, box_bins=0) if clip is None else clip[1]


def shape_of(
    recipe: PartiRecipe,
    vqvae: VQVAEConfig,
    clip: tuple[CLIPModel, TextTokenizer] | None,
    tokenizer: TextTokenizer,
    said: Sequence[str],
) -> PartiConfig:
    """Sizes of the model over the codes of ``vqvae``, whose training texts are like ``said``."""
    text = replace(recipe.text, vocabulary=len(tokenizer)) if clip is None else clip[0].config.text
    return PartiConfig(vqvae=vqvae, text=text, decoder=recipe.decoder, words=known_words(said))


def prepare(
    recipe: PartiRecipe, vqvae: VQVAEModel, texts: Texts, init_from: str | None
) -> tuple[PartiModel, TextTokenizer]:
    """The model before its first step, and its tokenizer, which comes from what it begins with, if it does."""
    clip = None if recipe.text_from is None else open_text(recipe.text_from)
    said = taught(texts)
    if init_from is not None:
        begun, tokenizer = load_model(init_from)
        if not isinstance(begun, PartiModel) or not isinstance(tokenizer, TextTokenizer):
            raise UserError(f"--init-from {init_from} is no Parti to go on from")
        if weights_fingerprint(begun.vqvae) != weights_fingerprint(vqvae):
            raise UserError(f"--init-from {init_from} draws the codes of another VQ-VAE than {recipe.vision}")
    else:
        tokenizer = words_for(recipe, clip, said)
    model = PartiModel(shape_of(recipe, vqvae.config, clip, tokenizer, said))
    model.vqvae.load_state_dict(vqvae.state_dict())
    if clip is not None:
        model.text_model.load_state_dict(clip[0].text_model.state_dict())
    start_from(model, init_from)
    return model, tokenizer


def train_parti(
    recipe: PartiRecipe, out: Path, *, resume: bool = False, init_from: str | None = None
) -> Outcome:
    """Train into ``out``; the codes of the pictures are kept in ``out/encoded``."""
    if recipe.text_from is not None and init_from is not None:
        raise UserError(
            f"--init-from {init_from} has a text encoder already, which would take the place of that of --text-from "
            f"{recipe.text_from}: give one of the two"
        )
    device = open_device(recipe.train.device)
    vqvae = open_tokenizer(recipe)
    source = source_of(recipe.data, recipe.world, recipe.episodes)
    texts = texts_of(source)
    torch.manual_seed(recipe.train.seed)
    model, tokenizer = prepare(recipe, vqvae, texts, init_from)
    open_run(out, "parti", recipe, resume=resume, init_from=init_from, source=source)
    # rounded for speed; the finished model keeps its own copy of the weights as they were
    set_precision(vqvae.to(device), fast_dtype(device, recipe.train.dtype))
    stores = {
        split: encode_split(
            source,
            split,
            out / ENCODED / split,
            vqvae,
            lambda images: vqvae.encode(images).flatten(1),
            device=device,
            codebook=vqvae.config.quantizer.codes,
        )
        for split in ("train", "validation")
        if texts.keys(split)
    }
    batches = Batches(recipe, texts, tokenizer, model.config.text.context, stores, source.spoilt())
    held_out = "validation" if batches.keys.get("validation") else "train"

    size = recipe.batch_size
    pictures = min(HELD_OUT, len(batches.keys[held_out]))
    validation = [
        to_device(batches.at(held_out, step, min(size, pictures), drop=0.0), device)
        for step in range(-(-pictures // size))
    ]
    prompts = [
        batches.text(key, random.Random(f"drawings/{key}"))[0] for key in batches.keys[held_out][:DRAWINGS]
    ]
    return run(
        model,
        recipe.train,
        lambda step: batches.at("train", step, size, recipe.drop_text),
        out,
        recipe=recipe,
        samples_per_step=size,
        data_fingerprint=source.fingerprint,
        names_at=lambda step: batches.pictures("train", step, size),
        tokenizer=tokenizer,
        probes={"drawings": prompted(model, tokenizer, prompts, device, recipe.train.seed)},
        validation=lambda: mean_loss(model, validation),
        resume=resume,
        title="parti",
    )


def recipe_parti(scale: str) -> PartiRecipe:
    """Toy size, one for a quickstart, or what half an hour on two cores trains."""
    if scale == "smoke":
        return PartiRecipe(
            batch_size=16,
            episodes=64,
            text=TextConfig(width=64, layers=2, heads=2),
            decoder=DecoderConfig(width=64, layers=2, heads=2, hidden=128),
            train=TrainSettings(
                steps=24,
                validate_every=12,
                checkpoint_every=12,
                log_every=4,
                optimizer=OptimizerSettings(kind="muon", learning_rate=4e-3, warmup_steps=4),
            ),
        )
    steps, episodes = {"quickstart": (300, 12_000), "standard": (1280, 40_000)}[scale]
    return PartiRecipe(
        episodes=episodes,
        train=TrainSettings(
            steps=steps,
            validate_every=max(50, steps // 12),
            checkpoint_every=max(100, steps // 6),
            optimizer=OptimizerSettings(
                kind="muon", learning_rate=4e-3, matrix_learning_rate=0.02, warmup_steps=30
            ),
        ),
    )
