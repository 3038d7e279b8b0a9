"""What a step of each recipe is, for planning: the model to be built and batches of its data, without any training.

Frozen encoders that are not there yet are taken to be those of the same scale; what they would make of a picture has
the right shape and nothing in it.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bifocal.config import UserError
from bifocal.data.batch import Template
from bifocal.data.chat_text import ChatTokenizer
from bifocal.data.pictures import to_tensor
from bifocal.data.text import TextTokenizer
from bifocal.inference import load_model
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.language import LanguageConfig
from bifocal.models.nearest import product_dtype, score_bytes
from bifocal.models.parti import PartiConfig, PartiModel
from bifocal.models.precision import fast_dtype, set_precision
from bifocal.models.prior import PriorConfig, PriorModel
from bifocal.models.quantize import Codebook
from bifocal.models.vision import VisionConfig
from bifocal.models.vlm import VLM
from bifocal.models.vqvae import PatchAlignment, VQVAEConfig, VQVAEModel
from bifocal.recipes.alignment import drawn_to, open_teacher, patch_embeddings
from bifocal.recipes.clip import CLIPRecipe, contrastive_batch, training_batch
from bifocal.recipes.decoders import words_of
from bifocal.recipes.grafting import require_same_decoder
from bifocal.recipes.learning import let_learn
from bifocal.recipes.mixture import source_of
from bifocal.recipes.packing import Packer
from bifocal.recipes.parti import Batches, PartiRecipe, open_text, open_tokenizer, shape_of, words_for
from bifocal.recipes.prior import PriorRecipe
from bifocal.recipes.texts import taught, texts_of
from bifocal.recipes.vlm import VLMRecipe, build
from bifocal.recipes.vqvae import VQVAERecipe, aligned_channels, feature_distance, open_clip, teacher_of
from bifocal.training.feeding import Waiting, feed, to_device
from bifocal.training.optimizer import MasterOptimizer
from bifocal.training.parallel import checkpoint_activations
from bifocal.training.trace import stand_ins
from bifocal.training.trainer import TrainSettings

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cache:
    """Keys and values that a decoder keeps: how many numbers, while it does what, of what row."""

    numbers: int
    doing: str
    row: str

    @classmethod
    def of_answers(cls, config: LanguageConfig, length: int) -> Cache:
        """Of a row of ``length`` tokens."""
        numbers = 2 * config.layers * config.kv_heads * config.head_size * length
        return cls(numbers, "answering", f"a row of {length}")

    @classmethod
    def of_drawings(cls, config: PartiConfig) -> Cache:
        """Of a picture's codes and, for cross-attention, of the longest prompt; guidance keeps them twice."""
        codes, words = config.vqvae.codes_per_picture, config.text.context
        numbers = 2 * config.decoder.layers * config.decoder.width * (codes + words)
        return cls(
            2 * numbers, "drawing", f"a picture of {codes} codes and a prompt of {words} tokens, guided"
        )


@dataclass(frozen=True)
class Sketch:
    """A recipe as planning sees it.

    ``batch`` is given a step and a number of samples, ``unit`` says what those are. ``cache`` is what the finished
    model will keep of each row that it decodes.
    """

    train: TrainSettings
    size: int
    unit: str
    build: Callable[[], nn.Module]
    batch: Callable[[int, int], Any]
    cache: Cache | None = None
    embedding_width: int = 0  # of what ranks exchange of every sample, beside gradients

    def model(self) -> nn.Module:
        """The model as the trainer has it."""
        model = self.build()
        if self.train.activation_checkpointing:
            checkpoint_activations(model)
        return model

    def outline(self) -> nn.Module:
        """The model for a trace: its search of a codebook computes as much and finds nothing."""
        model = self.model()
        for module in model.modules():
            if isinstance(module, Codebook):
                module.search = first_code
        return model

    def steps(
        self, size: int, workers: int = 0, device: torch.device = CPU, *, repeated: int = 0
    ) -> Iterator[tuple[float, float]]:
        """Takes steps of ``size`` samples without end; gives the seconds of each, and those waited for its batch.

        With ``repeated`` so many batches are made ahead and come again and again, so that nothing is waited for. An
        accelerator is not waited for either: its seconds are those until it was told what to do.
        """
        torch.manual_seed(self.train.seed)
        model = self.model().to(device).train()
        optimizer = MasterOptimizer(model, self.train.optimizer, fast_dtype(device, self.train.dtype))
        after_step = getattr(model, "after_step", None)
        coming = Waiting(
            itertools.cycle([to_device(self.batch(step, size), device) for step in range(repeated)])
            if repeated
            else feed(lambda step: self.batch(step, size), 0, 10**6, device, workers)
        )
        began = time.perf_counter()
        for batch in coming:
            total, count, _ = model.loss(batch)  # type: ignore[operator]
            total.backward()
            optimizer.step(count, 0.1)
            if after_step is not None:
                after_step()
            del total, batch
            taken = time.perf_counter() - began
            yield taken, taken * coming.share_of(taken)
            began = time.perf_counter()

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Keys and values of one row in ``dtype``; 0 for a model without a decoder."""
        return 0 if self.cache is None else self.cache.numbers * dtype.itemsize


def first_code(vectors_ND: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    """The product that ``nearest`` begins with, in its pieces; then every vector gets code 0."""
    device = vectors_ND.device
    dtype = product_dtype(device)
    rows = max(1, score_bytes(device) // (dtype.itemsize * len(codebook_KD)))
    codes_DK = codebook_KD.T.to(dtype)
    for part_RD in vectors_ND.split(rows):
        torch.mm(part_RD.to(dtype), codes_DK).amin(dim=1)
    return torch.zeros(len(vectors_ND), dtype=torch.int64), vectors_ND[:, 0].float()


def sketch(recipe: Any) -> Sketch:
    """What training this recipe would take; ``UserError`` for a recipe that cannot be planned."""
    makers: dict[type, Callable[[Any], Sketch]] = {
        VQVAERecipe: sketch_vqvae,
        CLIPRecipe: sketch_clip,
        VLMRecipe: sketch_vlm,
        PriorRecipe: sketch_prior,
        PartiRecipe: sketch_parti,
    }
    if type(recipe) not in makers:
        raise UserError(f"a {type(recipe).__name__} cannot be planned yet")
    return makers[type(recipe)](recipe)


def sketch_vqvae(recipe: VQVAERecipe) -> Sketch:
    source = source_of(recipe.data, recipe.world, 0)
    judge = None if recipe.perceptual is None else open_clip(recipe.perceptual, recipe.world.picture_size)
    teacher = teacher_of(recipe)

    def like(clip: CLIPModel) -> CLIPModel:
        """One as large: weights cannot be read where there are only stand-ins, and what it says does not matter."""
        made = CLIPModel(clip.config).requires_grad_(False)
        set_precision(made, fast_dtype(CPU, recipe.train.dtype))
        return made

    def make() -> VQVAEModel:
        model = VQVAEModel(recipe.model)
        if judge is not None:
            distance = functools.partial(feature_distance, like(judge).vision_model)
            model.perceptual = distance, recipe.perceptual_weight
        if teacher is not None:
            clip = like(teacher)
            channels, width = aligned_channels(recipe, clip)
            narrow = torch.zeros(clip.config.width, width)
            model.alignment = PatchAlignment(
                lambda images: patch_embeddings(clip, images).float() @ narrow,
                recipe.align_weight,
                torch.zeros(channels, width),
            )
        return model

    def batch(step: int, size: int) -> Tensor:
        return to_tensor([source.picture("train", step * size + row) for row in range(size)])

    return Sketch(recipe.train, recipe.batch_size, "pictures", make, batch)


def sketch_clip(recipe: CLIPRecipe) -> Sketch:
    source = source_of(recipe.data, recipe.world, 0, recipe.model.fitting)
    tokenizer = TextTokenizer.train(source.texts(), size=recipe.text_tokens, box_bins=0)
    text = replace(recipe.model.text, vocabulary=len(tokenizer), end=tokenizer.eos)
    shape = replace(recipe.model, text=text, logit_bias=recipe.objective == "sigmoid")

    def batch(step: int, size: int) -> Any:
        pairs = contrastive_batch(
            source,
            "train",
            step * size,
            size,
            tokenizer,
            shape,
            regions=recipe.regions,
            vary=recipe.vary_captions,
            variation=recipe.augment,
            seed=recipe.train.seed,
        )
        return training_batch(recipe, shape, pairs, step)

    return Sketch(
        recipe.train,
        recipe.batch_size,
        "pairs",
        lambda: CLIPModel(shape, objective=recipe.objective, chunk_size=recipe.chunk_size),
        batch,
        embedding_width=2 * shape.width,
    )


class Blank:
    """Stands for a store of what a frozen encoder makes of pictures."""

    def __init__(self, *shape: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype

    def get(self, keys: Sequence[str]) -> Tensor:
        return torch.zeros(len(keys), *self.shape, dtype=self.dtype)

    def features(self, split: str, keys: Sequence[str]) -> Tensor:
        return self.get(keys)


def sketch_vlm(recipe: VLMRecipe) -> Sketch:
    source = source_of(recipe.data, recipe.world, recipe.episodes)
    shape = encoder_shape(recipe)
    codes = shape.quantizer.codes if isinstance(shape, VQVAEConfig) else 0
    words, language, _ = words_of(None, recipe.decoder, box_bins=recipe.box_bins, texts=source.texts)
    recipe = recipe if language is None else replace(recipe, language=language)
    tokenizer = words or TextTokenizer.train(
        source.texts(), size=recipe.text_tokens, codes=codes, box_bins=recipe.box_bins
    )
    if isinstance(shape, VQVAEConfig):
        places, store = shape.codes_per_picture, Blank(shape.codes_per_picture, dtype=torch.int64)
    else:
        assert isinstance(shape.vision, VisionConfig)
        places, width = shape.vision.patches, shape.vision.width
        store = Blank(places, width, dtype=torch.bfloat16)
    aligned = None
    if recipe.align is not None:
        assert isinstance(shape, VQVAEConfig)
        teaching, theirs = open_teacher(recipe.align, shape)
        require_same_decoder(recipe, teaching, theirs, None)
        wide = teaching.config.width if isinstance(teaching, CLIPModel) else recipe.language.width
        aligned = Blank(places, wide, dtype=torch.float32)

    def make() -> VLM:
        encoder = VQVAEModel(shape) if isinstance(shape, VQVAEConfig) else CLIPModel(shape)
        model = build(recipe, tokenizer, encoder)
        if aligned is not None:
            reads = isinstance(teaching, VLM)
            projection = None if reads else torch.zeros(recipe.language.width, aligned.shape[1])
            model.alignment = drawn_to(recipe.align_layer, recipe.align_weight, projection)
        new = tokenizer.added if isinstance(tokenizer, ChatTokenizer) else ()
        let_learn(model, recipe.learning, recipe.lora, new, vision=recipe.sees_pixels(None))
        return model

    with stand_ins("cpu"):
        positions = make().image_path.positions
    template = Template(tokenizer, positions, recipe.number_pictures)
    stores: Any = {"train": store}
    teacher: Any = aligned
    packer = Packer(recipe, source, template, stores, teacher)
    return Sketch(
        recipe.train,
        recipe.batch_size,
        "rows",
        make,
        # what the steps with words in them take, which is most
        lambda step, size: packer.rows("train", recipe.looking_steps + step, size),
        cache=Cache.of_answers(recipe.language, recipe.row_length),
    )


def encoder_shape(recipe: VLMRecipe | PriorRecipe) -> CLIPConfig | VQVAEConfig:
    """Of the encoder that the recipe names, or else of an untrained one for pictures of its size."""
    size = recipe.world.picture_size
    discrete = isinstance(recipe, PriorRecipe) or recipe.family == "discrete"
    if not recipe.vision:
        return (
            VQVAEConfig(picture_size=size) if discrete else CLIPConfig(vision=VisionConfig(picture_size=size))
        )
    encoder, _ = load_model(recipe.vision)
    if not isinstance(encoder, VQVAEModel if discrete else CLIPModel):
        raise UserError(f"--vision {recipe.vision} is no {'VQ-VAE' if discrete else 'CLIP'}")
    assert isinstance(encoder, CLIPModel | VQVAEModel)
    return encoder.config


def sketch_prior(recipe: PriorRecipe) -> Sketch:
    shape = encoder_shape(recipe)
    assert isinstance(shape, VQVAEConfig)
    quantizer, length = shape.quantizer, shape.codes_per_picture
    language = replace(recipe.language, vocabulary=quantizer.depth * quantizer.codes + 1)
    config = PriorConfig(
        codes=quantizer.codes,
        depth=quantizer.depth,
        places=length // quantizer.depth,
        language=language,
    )

    def batch(step: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.randint(quantizer.codes, (size, length), generator=generator)

    return Sketch(
        recipe.train,
        recipe.batch_size,
        "pictures",
        lambda: PriorModel(config),
        batch,
        cache=Cache.of_answers(language, length),
    )


def sketch_parti(recipe: PartiRecipe) -> Sketch:
    size = recipe.world.picture_size
    vqvae = open_tokenizer(recipe).config if recipe.vision else VQVAEConfig(picture_size=size)
    clip = None if recipe.text_from is None else open_text(recipe.text_from)
    texts = texts_of(source_of(recipe.data, recipe.world, recipe.episodes))
    said = taught(texts)
    tokenizer = words_for(recipe, clip, said)
    shape = shape_of(recipe, vqvae, clip, tokenizer, said)
    codes = Blank(vqvae.codes_per_picture, dtype=torch.int64)
    batches = Batches(recipe, texts, tokenizer, shape.text.context, {"train": codes})
    return Sketch(
        recipe.train,
        recipe.batch_size,
        "pictures",
        lambda: PartiModel(shape),
        lambda step, size: batches.at("train", step, size, recipe.drop_text),
        cache=Cache.of_drawings(shape),
    )
