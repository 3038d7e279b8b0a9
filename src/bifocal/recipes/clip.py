"""Contrastive pre-training of a picture tower and a text tower."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bifocal import distributed
from bifocal.config import UserError, fingerprint
from bifocal.data.augment import OFF, Augment, augment, mirrored, speaks_of_colours, speaks_of_places
from bifocal.data.patches import by_detail, detailed, drop_patches, inside, keep_patches, looked_at
from bifocal.data.pictures import to_tensor
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.inference import CLIP, load_model, padded
from bifocal.interop.clip_tokens import AnyTokenizer
from bifocal.losses import Objective
from bifocal.models.clip import CLIPBatch, CLIPConfig, CLIPModel, Regions, check_chunks
from bifocal.models.precision import open_device
from bifocal.models.resnet import ResNetConfig
from bifocal.models.text import TextConfig
from bifocal.models.vision import VisionConfig
from bifocal.recipes.mixture import source_of
from bifocal.recipes.probes import zero_shot
from bifocal.recipes.ranges import require_counts
from bifocal.recipes.runs import mean_loss, open_run, run, start_from
from bifocal.recipes.sources import Pair, Source
from bifocal.training.feeding import to_device
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import Outcome, TrainSettings

PATCH_SHARE = (
    0.5  # of the regions, those of which a training step sees a single patch: each is to say what it shows
)
ATTEMPTS = 20  # captions tried for one place in a batch before a caption that fits is given up


@dataclass(frozen=True)
class CLIPRecipe:
    """A CLIP on scenes (``data`` none) or on the captions of a folder. The vocabulary is learnt from the texts.

    A picture with several captions is shown with one of them, drawn anew each time, or always with the first that fits
    the context, if they are not to vary (``vary_captions``). With ``skip_flat`` most flat
    patches are left out of training (``data.patches``), with ``patch_dropout`` that share of a picture's patches,
    whatever is on them; the last ``whole_share`` of the steps look at whole pictures. With ``regions`` the parts of a
    picture that the data describe are contrasted with their descriptions too. ``augment`` varies the pictures of
    training, as far as their texts stay true (``data.augment``). With a ``chunk_size`` the memory is that
    of so many pairs, whatever the batch, for one more pass forwards: gradients are cached (``CLIPModel``).
    """

    batch_size: int = 256
    objective: Objective = "softmax"
    chunk_size: int = 0
    text_tokens: int = 1024
    vary_captions: bool = True
    regions: bool = True
    skip_flat: bool = True
    patch_dropout: float = 0.0
    whole_share: float = 0.05
    augment: Augment = field(default_factory=Augment)
    data: str | None = None
    world: WorldSettings = field(default_factory=WorldSettings)
    model: CLIPConfig = field(default_factory=CLIPConfig)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        require_counts(self, "batch_size", "text_tokens")
        if self.world.picture_size != self.model.vision.picture_size:
            raise ValueError(
                f"world.picture_size is {self.world.picture_size} and model.vision.picture_size "
                f"{self.model.vision.picture_size}: give both the same size"
            )
        check_chunks(self.model, self.chunk_size)
        if not self.vary_captions and self.data is None:
            raise ValueError("vary_captions is for pictures of a folder: no scene comes twice")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout is a share of the patches below 1, got {self.patch_dropout}")
        if self.patch_dropout and self.skip_flat:
            raise ValueError("patch_dropout and skip_flat both choose the patches: set skip_flat to false")
        if isinstance(self.model.vision, ResNetConfig) and (self.patch_dropout or self.skip_flat):
            raise ValueError(
                "a ResNet looks at whole pictures: set skip_flat to false and patch_dropout to 0"
            )
        if self.augment.geometry and self.regions:
            raise ValueError("augment.geometry moves pictures away under their regions: set regions to false")
        if self.model.logit_bias and self.objective != "sigmoid":
            raise ValueError(
                "model.logit_bias is trained by the sigmoid objective alone: set objective to sigmoid"
            )


def contrastive_batch(
    source: Source,
    split: str,
    first: int,
    size: int,
    tokenizer: AnyTokenizer,
    model: CLIPConfig,
    *,
    regions: bool,
    vary: bool,
    variation: Augment = OFF,
    seed: int = 0,
) -> CLIPBatch:
    """``size`` pictures from number ``first`` on, each with a caption that fits the context.

    They are varied as a pure function of ``seed`` and ``first``.
    """
    context = model.text.context

    def pair_at(number: int, attempt: int) -> Pair:
        return mirrored_pair(
            source.pair(split, number, attempt, vary=vary), variation.flip, f"{seed}/{number}"
        )

    numbers = range(first, first + size)
    pairs = [pair_at(number, 0) for number in numbers]
    # one call for all texts, of which hardly one does not fit
    rows = tokenizer.sequences([pair.text for pair in pairs])
    for place, number in enumerate(numbers):
        for attempt in range(1, ATTEMPTS):
            if len(rows[place]) <= context:
                break
            pairs[place] = pair_at(number, attempt)
            (rows[place],) = tokenizer.sequences([pairs[place].text])
        if len(rows[place]) > context:
            raise UserError(
                f"no caption fits a context of {context} tokens, such as {pairs[place].text[:60]!r}: raise it"
            )
    described = [
        (place, box, phrase) for place, pair in enumerate(pairs) for box, phrase in pair.regions if regions
    ]
    spoken = tokenizer.sequences([phrase for _, _, phrase in described])
    short = [index for index, row in enumerate(spoken) if len(row) <= context]
    described, spoken = [described[index] for index in short], [spoken[index] for index in short]
    texts = [pair.text for pair in pairs]
    images = to_tensor([pair.picture for pair in pairs])
    said = [[pair.text, *(phrase for _, phrase in pair.regions if regions)] for pair in pairs]
    images = augment(
        images,
        variation,
        torch.Generator().manual_seed(seed * 1_000_003 + first),
        keep_colours_B=torch.tensor([speaks_of_colours(some) for some in said]),
        keep_places_B=torch.tensor([speaks_of_places(some) for some in said]),
    )
    return CLIPBatch(
        images=images,
        tokens=padded(rows, tokenizer.pad, context),
        text_ids=_numbered(texts),
        regions=Regions(
            pictures=torch.tensor([place for place, _, _ in described]),
            weights=inside([box for _, box, _ in described], model.vision.side),
            tokens=padded(spoken, tokenizer.pad, context),
            text_ids=_numbered([phrase for _, _, phrase in described]),
        )
        if described
        else None,
    )


def mirrored_pair(pair: Pair, strength: float, seed: str) -> Pair:
    """The pair, or its mirror image with left and right swapped in the words."""
    if not strength:
        return pair
    boxes, phrases = [box for box, _ in pair.regions], [phrase for _, phrase in pair.regions]
    rng = random.Random(f"mirror/{seed}")
    picture, texts, carried = mirrored(pair.picture, [pair.text, *phrases], boxes, strength, rng)
    return Pair(picture, texts[0], list(zip(carried, texts[1:], strict=True)), pair.key)


def _numbered(texts: Sequence[str]) -> Tensor:
    """(B,) int64, the same number for the same text, in every batch and on every rank: 63 bits of its hash."""
    return torch.tensor([int(fingerprint(text)[:16], 16) >> 1 for text in texts])


def train_clip(
    recipe: CLIPRecipe,
    out: Path,
    *,
    resume: bool = False,
    init_from: str | None = None,
    show: Callable[[CLIP, int], None] | None = None,
) -> Outcome:
    """Train into ``out``. A CLIP that begins as another (``begun_with``) keeps that one's tokenizer.

    ``show`` is given the model as it is and the step, at each validation.
    """
    device = open_device(recipe.train.device)
    source = source_of(recipe.data, recipe.world, 0, recipe.model.fitting)
    if init_from is None:
        trained = TextTokenizer.train(source.texts(), size=recipe.text_tokens, box_bins=0)
        tokenizer: AnyTokenizer = trained
        text = replace(recipe.model.text, vocabulary=len(trained), end=trained.eos)
    else:
        begin, tokenizer = open_clip(init_from)
        text = replace(recipe.model.text, vocabulary=begin.text.vocabulary, end=begin.text.end)
    size = recipe.batch_size
    torch.manual_seed(recipe.train.seed)
    if isinstance(recipe.model.vision, ResNetConfig) and recipe.model.vision.norm == "batch":
        if distributed.world_size() > 1:
            raise UserError(
                "batch norm takes the statistics of a rank's own rows, so several ranks do not train what one does: "
                "set model.vision.norm to group or frozen, or start without torchrun"
            )
    sigmoid = recipe.objective == "sigmoid"
    shape = replace(recipe.model, text=text, logit_bias=sigmoid)
    model = CLIPModel(shape, objective=recipe.objective, chunk_size=recipe.chunk_size)
    if sigmoid:
        model.start_sigmoid(size)
    start_from(model, init_from)
    open_run(out, "clip", recipe, resume=resume, init_from=init_from, source=source)
    if (idle := source.uncaptioned()) and distributed.is_main():
        print(
            f"clip: {idle} pictures have no caption of their own, and nothing is learnt from them", flush=True
        )

    def pairs(split: str, first: int, count: int, variation: Augment = OFF) -> CLIPBatch:
        return contrastive_batch(
            source,
            split,
            first,
            count,
            tokenizer,
            model.config,
            regions=recipe.regions,
            vary=recipe.vary_captions,
            variation=variation,
            seed=recipe.train.seed,
        )

    def batch_at(step: int) -> CLIPBatch:
        batch = pairs("train", step * size, size, recipe.augment)
        return training_batch(recipe, model.config, batch, step)

    held_out = [to_device(pairs("validation", 0, min(size, 256)), device)]
    return run(
        model,
        recipe.train,
        batch_at,
        out,
        recipe=recipe,
        samples_per_step=size,
        data_fingerprint=source.fingerprint,
        names_at=lambda step: [source.pair("train", step * size + row, 0).key for row in range(size)],
        tokenizer=tokenizer,
        validation=lambda: mean_loss(model, held_out),
        probes={"zero-shot": zero_shot(model, tokenizer, source, device)}
        | (
            {}
            if show is None
            else {"shown": lambda step: show(CLIP(model, tokenizer, out.name, device), step)}
        ),
        resume=resume,
        title="clip",
    )


def training_batch(recipe: CLIPRecipe, config: CLIPConfig, batch: CLIPBatch, step: int) -> CLIPBatch:
    """The pairs of a step with the patches and the parts of pictures that it looks at."""
    whole = step >= recipe.train.steps * (1 - recipe.whole_share)
    drawn = recipe.train.seed * 1_000_003 + step
    if recipe.patch_dropout and not whole:
        batch = drop_some_patches(batch, config.vision.patches, recipe.patch_dropout, drawn)
    if batch.regions is not None:
        batch.regions.weights = some_single_patches(batch.regions.weights, drawn)
    if recipe.skip_flat and not whole:
        assert isinstance(config.vision, VisionConfig)
        batch = look_at_detail(batch, config.vision.patch_size, drawn)
    return batch


def open_clip(path: str) -> tuple[CLIPConfig, AnyTokenizer]:
    """What a CLIP to begin with is, and its tokenizer; ``UserError`` if it is none, or cannot read."""
    model, tokenizer = load_model(path)
    if not isinstance(model, CLIPModel):
        raise UserError(f"--init-from {path} is no CLIP")
    if tokenizer is None:
        raise UserError(f"--init-from {path} has no tokenizer, and a CLIP learns from texts")
    return model.config, tokenizer


def begun_with(recipe: CLIPRecipe, init_from: str) -> CLIPRecipe:
    """The recipe for a model of another's shape and manner, its size of pictures, and the objective its bias asks for.

    The other may be a run or a directory that transformers or open_clip wrote.
    """
    begin, _ = open_clip(init_from)
    resnet = isinstance(begin.vision, ResNetConfig)
    return replace(
        recipe,
        model=begin,
        objective="sigmoid" if begin.logit_bias else recipe.objective,
        skip_flat=recipe.skip_flat and not resnet,
        world=replace(recipe.world, picture_size=begin.vision.picture_size),
    )


def some_single_patches(weights_RN: Tensor, seed: int) -> Tensor:
    """In a share of the regions one patch alone keeps its weight, drawn by how much of it lies in the region."""
    generator = torch.Generator().manual_seed(seed)
    one_RN = F.one_hot(torch.multinomial(weights_RN, 1, generator=generator)[:, 0], weights_RN.shape[1])
    single_R = torch.rand(len(weights_RN), generator=generator) < PATCH_SHARE
    return torch.where(single_R[:, None], weights_RN * one_RN, weights_RN)


def look_at_detail(batch: CLIPBatch, patch_size: int, seed: int) -> CLIPBatch:
    """The same pairs, sorted by how much there is to see, with the patches to look at."""
    full_BN = detailed(batch.images, patch_size)
    order = by_detail(full_BN)
    images = batch.images[order]
    kept = keep_patches(full_BN[order], torch.Generator().manual_seed(seed))
    regions = batch.regions
    if regions is not None:
        pictures, sorting = order.argsort()[regions.pictures].sort(stable=True)
        regions = Regions(
            pictures, regions.weights[sorting], regions.tokens[sorting], regions.text_ids[sorting]
        )
    return CLIPBatch(images, batch.tokens[order], batch.text_ids[order], kept, regions)


def drop_some_patches(batch: CLIPBatch, patches: int, share: float, seed: int) -> CLIPBatch:
    """The same pairs with the patches that patch dropout leaves, and the regions of which it leaves anything."""
    kept = drop_patches(len(batch), patches, share, torch.Generator().manual_seed(seed))
    regions = batch.regions
    if regions is not None:
        weights = regions.weights * looked_at(kept, patches)[regions.pictures]
        left = weights.sum(dim=1) > 0
        parts = (regions.pictures, weights, regions.tokens, regions.text_ids)
        regions = Regions(*(part[left] for part in parts)) if left.any() else None
    return replace(batch, kept=kept, regions=regions)


def recipe_clip(scale: str, tower: str = "vit") -> CLIPRecipe:
    """Toy size, the quickstart's, or the reference run's; with a ViT or a ResNet for the pictures."""
    if tower == "resnet":
        with_vit = recipe_clip(scale)
        vision = ResNetConfig()
        if scale == "smoke":
            vision = replace(vision, layers=(1, 1, 1, 1), width=16)
        return replace(with_vit, skip_flat=False, model=replace(with_vit.model, vision=vision))
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
    steps = {"quickstart": 480, "standard": 600}[scale]
    return CLIPRecipe(
        train=TrainSettings(
            steps=steps,
            validate_every=max(40, steps // 10),
            checkpoint_every=max(100, steps // 4),
            optimizer=OptimizerSettings(kind="muon", learning_rate=1.5e-3, matrix_learning_rate=0.02),
        )
    )
