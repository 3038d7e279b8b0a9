"""Training a visual-language model of either family: a decoder of its own, or a language model's, on an image encoder.

The encoder is frozen and its pictures are encoded once, unless ``train_vision`` or a joint stage lets it learn.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from bifocal.config import UserError
from bifocal.data.batch import Template
from bifocal.data.chat_text import ChatTokenizer
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.inference import load_model
from bifocal.models.clip import CLIPModel
from bifocal.models.language import LanguageConfig
from bifocal.models.lora import LoRASettings, merge_lora
from bifocal.models.precision import fast_dtype, open_device, set_precision
from bifocal.models.vision import VisionConfig
from bifocal.models.vlm import VLM, ContinuousPath, DiscretePath, VLMConfig
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.alignment import Teacher, drawn_to
from bifocal.recipes.curriculum import Stage, TaskWeights, scene_stages
from bifocal.recipes.decoders import words_of
from bifocal.recipes.encoding import ENCODED, encode_split, open_encoded, require_picture_size
from bifocal.recipes.grafting import graft, open_taught
from bifocal.recipes.learning import LearningStages, Rates, let_learn, rates_of, rates_with_vision, told
from bifocal.recipes.mixture import MixtureSource, source_of
from bifocal.recipes.name_start import FEWEST, require_truth, start_with_names
from bifocal.recipes.packing import Packer, asked_of, reads_store
from bifocal.recipes.plain_text import Remembered
from bifocal.recipes.probes import answers, drawings
from bifocal.recipes.ranges import require_counts
from bifocal.recipes.runs import mean_loss, open_run, run, start_from
from bifocal.training import checkpoint
from bifocal.training.feeding import to_device
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import Outcome, TrainSettings

HELD_OUT_ROWS = 32


@dataclass(frozen=True)
class VLMRecipe:
    """A decoder on the frozen encoder of another run: ``vision`` is a VQ-VAE (discrete) or a CLIP (continuous).

    ``encoded`` is what ``bifocal encode`` wrote of the folder ``data`` with it; without one its pictures are encoded on
    the way. ``tasks`` says how often each task is asked, ``stages`` where that changes on the way. ``align`` names a
    finished CLIP that teaches a discrete decoder to see: its hidden states behind ``align_layer`` layers are drawn to
    what that CLIP says of each patch; or a continuous VLM: to what that reads of it, and the layers behind begin as its
    (``grafting``). The share ``look`` of the steps comes first and does that alone, on rows full of pictures that
    nothing is said about; ``stages`` are shares of the steps behind it. ``z_loss`` is how much of (log Z)^2 is added to
    the loss (Chameleon's 1e-5).

    ``decoder`` begins with a language model instead of a random decoder (``decoders``): its sizes and tokenizer are
    that model's. ``learning`` says which parts learn when; ``train_vision`` lets the vision tower learn all along, at
    ``vision_share`` of the others' rate. ``plain_text`` is the share of rows that hold plain text, so that it is not
    forgotten; with ``sentences`` answers begin with a capital and end with a period, and a scene's thing that is named
    alone has its article. With ``rationales`` it says what decides an answer before that, where the data tell.
    ``name_start`` is from how many training scenes the projector of a continuous VLM is solved,
    so that it begins with the decoder's own words for what stands where; 0 leaves it as it was drawn.
    """

    family: Literal["discrete", "continuous"] = "continuous"
    vision: str = ""
    batch_size: int = 24
    row_length: int = 256
    episodes: int = 8_000
    text_tokens: int = 1024
    box_bins: int = 64
    box_spread: float = 1.0
    number_pictures: bool = True
    feature_layer: int = -1
    drop_prompt: float = 0.1
    decoder: str | None = None
    lora: LoRASettings = field(default_factory=LoRASettings)
    learning: LearningStages = field(default_factory=LearningStages)
    pixel_shuffle: int = 1
    name_start: int = 0
    train_vision: bool = False
    vision_share: float = 0.1
    plain_text: float = 0.0
    sentences: bool = False
    rationales: bool = False  # recipes turn it on; what was trained before there were any goes on without
    align: str | None = None
    align_layer: int = 2
    align_weight: float = 1.0
    look: float = 0.0
    z_loss: float = 0.0
    data: str | None = None
    encoded: str | None = None
    world: WorldSettings = field(default_factory=WorldSettings)
    tasks: TaskWeights = field(default_factory=TaskWeights)
    stages: tuple[Stage, ...] = ()
    language: LanguageConfig = field(default_factory=LanguageConfig)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        require_counts(self, "batch_size", "row_length", "episodes", "text_tokens")
        if not 0 <= self.z_loss < float("inf"):
            raise ValueError(f"z_loss must be a finite number of at least 0, got {self.z_loss}")
        if self.family == "discrete" and (self.decoder or self.learning or self.train_vision):
            raise ValueError(
                "decoder, learning and train_vision are for the continuous family: codes are tokens that a language "
                "model of another tool does not have, and no gradient passes through them"
            )
        if self.lora.rank and not self.decoder:
            raise ValueError("lora changes a language model that is there already: name one with --decoder")
        if self.train_vision and self.encoded:
            raise ValueError(
                "encoded holds what a frozen tower says of pictures, and train_vision lets it learn"
            )
        if self.train_vision and self.learning:
            raise ValueError(
                "train_vision is for a run without stages: give learning.joint a vision rate instead"
            )
        if not self.tasks.reading() and (
            self.family == "continuous" or self.tasks.drawing < 1 or self.stages
        ):
            raise ValueError(
                "a VLM whose tasks are all 0 reads nothing: give one a weight, or let a discrete one draw in all of "
                "its rows (tasks.drawing 1, without stages)"
            )
        if not 0 <= self.plain_text < 1:
            raise ValueError(f"plain_text is a share of the rows below 1, got {self.plain_text}")
        if self.name_start and (self.family == "discrete" or self.name_start < FEWEST):
            raise ValueError(
                "name_start is for the continuous family, whose projector it solves from that many scenes, at least "
                f"{FEWEST}; got {self.name_start} for the {self.family} one"
            )
        if self.align is not None and self.family == "continuous":
            raise ValueError(
                "align is for the discrete family: a continuous VLM reads the features of a CLIP as it is"
            )
        if not 0 <= self.look < 1:
            raise ValueError(f"look is a share of the steps below 1, got {self.look}")
        if self.look and not 0 < self.looking_steps < self.train.steps:
            raise ValueError(
                f"look {self.look} of {self.train.steps} steps leaves none of them to look, or none with words"
            )
        if self.look and self.align is None:
            raise ValueError("look is learning to see from a finished model: name one with align")
        if self.look and self.train.parallel == "shard":
            raise ValueError("look leaves layers without a gradient: set train.parallel to replicate")
        if self.align is not None and not 1 <= self.align_layer <= self.language.layers:
            raise ValueError(
                f"align_layer must be one of the decoder's {self.language.layers} layers, got {self.align_layer}"
            )

    @property
    def looking_steps(self) -> int:
        """How many steps come before the first with words in it."""
        return round(self.look * self.train.steps)

    def sees_pixels(self, step: int | None) -> bool:
        """Whether the vision tower learns in a step; without one, whether it ever does."""
        if step is None or not self.learning:
            return self.train_vision or self.learning.trains("vision")
        return self.learning.at(step, self.train.steps)[2].vision > 0

    def turns(self) -> list[int]:
        """The steps from which on other parts learn, or from another objective."""
        stages = [first for _, first, _, _ in self.learning.planned(self.train.steps)]
        return [self.looking_steps, *stages]

    def rates(self) -> Rates | None:
        """The learning rate of each part in a step, where they are not all the optimizer's."""
        if self.learning:
            return rates_of(self.learning, self.train.steps, self.train.optimizer)
        if self.train_vision:
            return rates_with_vision(self.vision_share, self.train.steps, self.train.optimizer)
        return None


def looking_first(recipe: VLMRecipe, steps: int) -> VLMRecipe:
    """The recipe with ``steps`` of looking before its own, whose rate falls over as many as before."""
    own = recipe.train.steps
    whole, optimizer = steps + own, recipe.train.optimizer
    if optimizer.cooldown is not None:
        optimizer = replace(optimizer, cooldown=optimizer.cooldown * own / whole)
    return replace(
        recipe,
        look=steps / whole,
        train=replace(recipe.train, steps=whole, optimizer=optimizer),
    )


def build(recipe: VLMRecipe, tokenizer: TextTokenizer, encoder: CLIPModel | VQVAEModel) -> VLM:
    """The model of a recipe, its image path filled with the trained encoder."""
    language = replace(recipe.language, vocabulary=len(tokenizer))
    shape = VLMConfig(
        family=recipe.family,
        language=language,
        feature_layer=recipe.feature_layer,
        first_code=tokenizer.codes.start,
        first_box=tokenizer.boxes.start,
        box_bins=len(tokenizer.boxes),
        box_spread=recipe.box_spread,
        number_pictures=recipe.number_pictures,
        pixel_shuffle=recipe.pixel_shuffle,
    )
    if isinstance(encoder, CLIPModel):
        assert isinstance(encoder.config.vision, VisionConfig)
        model = VLM(replace(shape, vision=encoder.config.vision))
        assert isinstance(model.image_path, ContinuousPath)
        model.image_path.vision_model.load_state_dict(encoder.vision_model.state_dict())
    else:
        model = VLM(replace(shape, vqvae=encoder.config))
        assert isinstance(model.image_path, DiscretePath)
        model.image_path.vqmodel.load_state_dict(encoder.state_dict())
    return model


def open_encoder(recipe: VLMRecipe) -> CLIPModel | VQVAEModel:
    """The frozen encoder, refused if it is of the other family or its pictures have another size than the data's."""
    if not recipe.vision:
        wanted = "a VQ-VAE" if recipe.family == "discrete" else "a CLIP"
        raise UserError(f"a {recipe.family} VLM stands on {wanted}: name its run with --vision RUN")
    encoder, _ = load_model(recipe.vision)
    if recipe.family == "discrete" and not isinstance(encoder, VQVAEModel):
        raise UserError(f"--family discrete needs a VQ-VAE, and {recipe.vision} is none")
    if recipe.family == "continuous" and not isinstance(encoder, CLIPModel):
        raise UserError(f"--family continuous needs a CLIP, and {recipe.vision} is none")
    if isinstance(encoder, CLIPModel) and not isinstance(encoder.config.vision, VisionConfig):
        raise UserError(f"a continuous VLM reads the patches of a ViT, and {recipe.vision} has a ResNet")
    assert isinstance(encoder, CLIPModel | VQVAEModel)
    sees = encoder.config.vision if isinstance(encoder, CLIPModel) else encoder.config
    require_picture_size(recipe.vision, sees.picture_size, recipe.world.picture_size)
    return encoder


def train_vlm(
    recipe: VLMRecipe,
    out: Path,
    *,
    resume: bool = False,
    init_from: str | None = None,
    title: str | None = None,
) -> Outcome:
    """Train into ``out``; encoded pictures that were not in a store are kept in ``out/encoded``."""
    title = title or f"vlm-{recipe.family}"
    device = open_device(recipe.train.device)
    encoder = open_encoder(recipe)
    taught, taught_words = open_taught(recipe, encoder, init_from)
    source = source_of(recipe.data, recipe.world, recipe.episodes)
    if isinstance(source, MixtureSource):
        source.require(asked_of(recipe))
    world = require_truth(source, init_from) if recipe.name_start else None
    codes = encoder.config.quantizer.codes if isinstance(encoder, VQVAEModel) else 0
    layer = None if isinstance(encoder, VQVAEModel) else recipe.feature_layer
    encoded = (
        None
        if recipe.encoded is None
        else open_encoded(Path(recipe.encoded), source, encoder, recipe.vision, layer=layer)
    )
    words, language, llama = words_of(init_from, recipe.decoder, box_bins=recipe.box_bins, texts=source.texts)
    recipe = recipe if language is None else replace(recipe, language=language)
    tokenizer = words or TextTokenizer.train(
        source.texts(), size=recipe.text_tokens, codes=codes, box_bins=recipe.box_bins
    )
    torch.manual_seed(recipe.train.seed)
    model = build(recipe, tokenizer, encoder)
    if llama is not None:
        llama.fill(model.language_model)
    start_from(model, init_from)
    open_run(out, "vlm", recipe, resume=resume, init_from=init_from, source=source)
    model.to(device)
    # a copy, because the finished model keeps the encoder's weights unrounded
    encoding = copy.deepcopy(model.image_path)
    set_precision(encoding, fast_dtype(device, recipe.train.dtype))
    discrete = isinstance(encoding, DiscretePath)
    read = [split for split in ("train", "validation") if reads_store(recipe, split)]
    stores = {
        split: encode_split(
            source,
            split,
            out / ENCODED / split,
            encoding.frozen,
            encoding.encode,
            device=device,
            layer=layer,
            codebook=codes,
        )
        if encoded is None
        else encoded
        for split in read
    }
    begins = not (resume and checkpoint.steps(out / "checkpoints"))
    if world is not None and begins:
        start_with_names(model, tokenizer, world, encoding.encode, scenes=recipe.name_start, title=title)
    teacher = None
    if taught is not None:
        teacher = Teacher(taught, source, out / ENCODED, device, fast_dtype(device, recipe.train.dtype))
        projection = teacher.projection(recipe.language.width, recipe.train.seed)
        model.alignment = drawn_to(recipe.align_layer, recipe.align_weight, projection)
        if isinstance(taught_words, TextTokenizer) and isinstance(taught, VLM) and begins:
            graft(model, tokenizer, taught, taught_words, layer=recipe.align_layer, scale=teacher.scale)
    model.z_loss = recipe.z_loss
    template = Template(tokenizer, model.image_path.positions, recipe.number_pictures, draws=discrete)
    packer = Packer(recipe, source, template, stores, teacher)
    held_out = [to_device(packer.rows("validation", 0, min(HELD_OUT_ROWS, recipe.batch_size)), device)]
    reading = recipe.tasks.reading()
    probes = {"answers": answers(model, tokenizer, source, reading, device)} if reading else {}
    if discrete and recipe.tasks.drawing > 0:
        draws = drawings(model, tokenizer, source, device, recipe.train.seed)
        probes |= {} if draws is None else {"drawings": draws}
    remembered = Remembered(model, tokenizer, out) if recipe.decoder else None
    new = tokenizer.added if isinstance(tokenizer, ChatTokenizer) else ()
    let_learn(model, recipe.learning, recipe.lora, new, vision=recipe.sees_pixels(None))
    outcome = run(
        model,
        recipe.train,
        lambda step: packer.rows("train", step, recipe.batch_size),
        out,
        recipe=recipe,
        samples_per_step=recipe.batch_size,
        data_fingerprint=source.fingerprint,
        names_at=lambda step: list(dict.fromkeys(packer.rows("train", step, recipe.batch_size).keys)),
        tokenizer=tokenizer,
        probes=probes,
        validation=lambda: mean_loss(model, held_out) | ({} if remembered is None else remembered.now()),
        rates=recipe.rates(),
        turns=recipe.turns(),
        told=told(model, title, recipe.learning, recipe.train.steps),
        finishing=lambda: merge_lora(model.language_model),
        resume=resume,
        title=title,
    )
    if remembered is not None:
        remembered.finish()
    return outcome


def recipe_vlm(scale: str, family: Literal["discrete", "continuous"] = "continuous") -> VLMRecipe:
    """Toy size, the quickstart's, or the reference run's.

    Both families have QK-norm, each in the manner for which another library has a place: Chameleon's for the discrete
    one, Qwen3's for the continuous one.
    """
    head_norm: Literal["layer", "rms"] = "layer" if family == "discrete" else "rms"
    if scale == "smoke":
        return VLMRecipe(
            family=family,
            batch_size=8,
            row_length=256,
            episodes=64,
            rationales=True,
            language=LanguageConfig(
                width=96, layers=2, heads=2, kv_heads=2, hidden=256, qk_norm=True, head_norm=head_norm
            ),
            train=TrainSettings(
                steps=24,
                validate_every=12,
                checkpoint_every=12,
                log_every=4,
                optimizer=OptimizerSettings(kind="muon", learning_rate=2e-3, warmup_steps=4),
            ),
        )
    # The discrete model has a small part of the quickstart: its drawings cost more to evaluate than answers do. It
    # does not get as far there as to find things, which is what the later stages build on. That of the reference run
    # begins with the continuous one's decoder (commands.quickstart); here is one that begins at random.
    steps, episodes, stages = {
        ("quickstart", "continuous"): (740, 8_000, scene_stages(0.35, 0.7, captions=2)),
        ("quickstart", "discrete"): (50, 2_500, ()),
        ("standard", "continuous"): (4200, 40_000, scene_stages(0.1, 0.23)),
        ("standard", "discrete"): (1250, 30_000, scene_stages(0.4, 0.7)),
    }[scale, family]
    # A decoder of twice the parameters learns more in a step and less in a minute, with so few tokens to see. One that
    # has to see for itself needs more layers.
    layers = 6 if (scale, family) == ("standard", "discrete") else 4
    return VLMRecipe(
        family=family,
        episodes=episodes,
        rationales=True,
        align_layer=3,
        language=LanguageConfig(
            width=192, layers=layers, heads=3, kv_heads=3, hidden=512, qk_norm=True, head_norm=head_norm
        ),
        stages=stages,
        train=TrainSettings(
            steps=steps,
            validate_every=max(40, steps // 12),
            checkpoint_every=max(100, steps // 6),
            optimizer=OptimizerSettings(
                kind="muon",
                learning_rate=4e-3,
                matrix_learning_rate=0.02,
                warmup_steps=30,
                # a cosine would leave the last stage hardly any rate
                cooldown=0.4 if stages else None,
            ),
        ),
    )
