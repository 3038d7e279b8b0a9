"""Training Parti: prompts to the codes of a frozen image tokenizer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from bifocal.config import UserError
from bifocal.data.scenes import WorldSettings
from bifocal.data.scenes.drawing_texts import DrawingTexts
from bifocal.data.text import TextTokenizer, uncased, words_of
from bifocal.encoded import EncodedStore, weights_fingerprint
from bifocal.inference import load_model
from bifocal.models.clip import CLIPModel
from bifocal.models.parti import DecoderConfig, Drawings, PartiConfig, PartiModel
from bifocal.models.precision import fast_dtype, open_device, set_precision
from bifocal.models.text import TextConfig
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.encoding import ENCODED, encode_split
from bifocal.recipes.mixture import MixtureSource, source_of
from bifocal.recipes.runs import mean_loss, open_run, run, start_from
from bifocal.recipes.sources import FolderSource, SceneSource, Source, shuffled
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import Outcome, TrainSettings

HELD_OUT = 512  # pictures that validation is about
ATTEMPTS = 16  # texts of a picture that are tried until one fits the context
TAUGHT = 30_000  # texts that tokenizer and list of words are made of
MOST_WORDS = 50_000
TASKS = ("text-to-image", "captioning", "retrieval")  # of own data, those whose text tells a picture


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


# ------------------------------------------------------------ texts


class Texts(Protocol):
    """What there is to say of pictures; ``keys`` are those with a text, in order."""

    def keys(self, split: str) -> Sequence[str]: ...
    def text(self, key: str, rng: random.Random) -> str: ...


class SceneTexts:
    """Texts about scenes, made when they are used."""

    def __init__(self, source: SceneSource) -> None:
        self.source, self.speaker = source, DrawingTexts(source.world)
        self.found: dict[str, list[str]] = {}

    def keys(self, split: str) -> Sequence[str]:
        if split not in self.found:
            documents = range(self.source.documents(split))
            every = (key for number in documents for key in self.source.document_keys(split, number))
            self.found[split] = list(dict.fromkeys(every))
        return self.found[split]

    def text(self, key: str, rng: random.Random) -> str:
        return self.speaker.text(self.source.world.scene_of(key), rng)


class FolderTexts:
    """The prompts and captions of a user's own pictures."""

    def __init__(self, source: FolderSource) -> None:
        self.of_split: dict[str, dict[str, list[str]]] = {"train": {}, "validation": {}}
        for split, found in self.of_split.items():
            for keys in source.groups[split]:
                for sample in source.samples[keys]:
                    if sample.task not in TASKS or len(keys) != 1:
                        continue
                    said = (
                        (sample.question,)
                        if sample.task == TASKS[0]
                        else sample.references or (sample.answer_text,)
                    )
                    found.setdefault(keys[0], []).extend(text for text in said if text.strip())
        if not self.of_split["train"]:
            raise UserError(
                f"the samples of {source.dataset.name} have no prompt or caption of a single picture "
                f"({', '.join(TASKS)}), and Parti learns from those"
            )
        self.of_split["validation"] = self.of_split["validation"] or self.of_split["train"]
        self.all = {**self.of_split["validation"], **self.of_split["train"]}

    def keys(self, split: str) -> Sequence[str]:
        return list(self.of_split[split])

    def text(self, key: str, rng: random.Random) -> str:
        return rng.choice(self.all[key])


def texts_of(source: Source) -> Texts:
    """The texts of a source; refused for a mixture, whose weights are about samples and not about pictures."""
    if isinstance(source, SceneSource):
        return SceneTexts(source)
    if isinstance(source, MixtureSource):
        raise UserError("Parti learns every picture as often, and a mixture goes by weight: name one set")
    assert isinstance(source, FolderSource)
    return FolderTexts(source)


def taught(texts: Texts) -> list[str]:
    """Texts of training pictures, in lower case, of which tokenizer and list of words are made."""
    keys = texts.keys("train")
    rng = random.Random("texts")
    return [uncased(texts.text(keys[number % len(keys)], rng)) for number in range(TAUGHT)]


def known_words(texts: Sequence[str]) -> tuple[str, ...]:
    """The words of the texts, the most frequent ones if there are many, in alphabetical order."""
    counts = Counter(word for text in texts for word in words_of(text))
    return tuple(sorted(word for word, _ in counts.most_common(MOST_WORDS)))


# ------------------------------------------------------------ batches


class Batches:
    """Prompts with the codes of their pictures, as a pure function of (split, step)."""

    def __init__(
        self,
        recipe: PartiRecipe,
        texts: Texts,
        tokenizer: TextTokenizer,
        context: int,
        stores: dict[str, EncodedStore],
    ) -> None:
        self.recipe, self.texts, self.tokenizer, self.context = recipe, texts, tokenizer, context
        self.stores = stores
        self.keys = {split: texts.keys(split) for split in stores}

    def at(self, split: str, step: int, size: int) -> Drawings:
        """``size`` pictures, each as often as any other, with a text each; texts are dropped in training alone."""
        recipe, keys = self.recipe, self.keys[split]
        rng = random.Random(f"{recipe.train.seed}/{split}/{step}")
        numbers = [shuffled(step * size + row, len(keys), recipe.train.seed) for row in range(size)]
        chosen = [keys[number] for number in numbers]
        rows = [self._tokens(key, rng) for key in chosen]
        longest = max(map(len, rows))
        share = recipe.drop_text if split == "train" else 0.0
        return Drawings(
            tokens=torch.tensor([row + [self.tokenizer.pad] * (longest - len(row)) for row in rows]),
            dropped=torch.tensor([rng.random() < share for _ in rows]),
            codes=self.stores[split].get(chosen).flatten(1),
        )

    def _tokens(self, key: str, rng: random.Random) -> list[int]:
        for _ in range(ATTEMPTS):
            (row,) = self.tokenizer.sequences([uncased(self.texts.text(key, rng))])
            if len(row) <= self.context:
                return row
        raise UserError(
            f"no text of picture {key} fits {self.context} tokens (one has {len(row)}): raise --text.context"
        )


# ------------------------------------------------------------ training


def open_tokenizer(recipe: PartiRecipe) -> VQVAEModel:
    """The frozen VQ-VAE, refused if it is none, has no decoder or takes other pictures than the data's."""
    if not recipe.vision:
        raise UserError("Parti draws the codes of a VQ-VAE: name its run with --vision RUN")
    model, _ = load_model(recipe.vision)
    if not isinstance(model, VQVAEModel):
        raise UserError(f"Parti draws the codes of a VQ-VAE, and {recipe.vision} is none")
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
    elif clip is not None:
        tokenizer = clip[1]
    else:
        tokenizer = TextTokenizer.train(said, size=recipe.text_tokens, box_bins=0)
    shape = recipe.text if clip is None else clip[0].config.text
    model = PartiModel(
        PartiConfig(
            vqvae=vqvae.config,
            text=replace(shape, vocabulary=len(tokenizer) if clip is None else shape.vocabulary),
            decoder=recipe.decoder,
            words=known_words(said),
        )
    )
    model.vqvae.load_state_dict(vqvae.state_dict())
    if clip is not None:
        model.text_model.load_state_dict(clip[0].text_model.state_dict())
    start_from(model, init_from)
    return model, tokenizer


def train_parti(
    recipe: PartiRecipe, out: Path, *, resume: bool = False, init_from: str | None = None
) -> Outcome:
    """Train into ``out``; the codes of the pictures are kept in ``out/encoded``."""
    device = open_device(recipe.train.device)
    vqvae = open_tokenizer(recipe)
    source = source_of(recipe.data, recipe.world, recipe.episodes)
    texts = texts_of(source)
    torch.manual_seed(recipe.train.seed)
    model, tokenizer = prepare(recipe, vqvae, texts, init_from)
    open_run(out, "parti", recipe, resume=resume, init_from=init_from)
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
    }
    batches = Batches(recipe, texts, tokenizer, model.config.text.context, stores)

    def at(split: str, step: int, size: int) -> Drawings:
        batch = batches.at(split, step, size)
        return Drawings(batch.tokens.to(device), batch.dropped.to(device), batch.codes.to(device))

    size = recipe.batch_size
    held_out = min(HELD_OUT, len(batches.keys["validation"]))
    validation = [at("validation", step, min(size, held_out)) for step in range(-(-held_out // size))]
    return run(
        model,
        recipe.train,
        lambda step: at("train", step, size),
        out,
        recipe=recipe,
        samples_per_step=size,
        data_fingerprint=source.fingerprint,
        tokenizer=tokenizer,
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
    steps, episodes = {"quickstart": (300, 12_000), "standard": (1350, 45_000)}[scale]
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
