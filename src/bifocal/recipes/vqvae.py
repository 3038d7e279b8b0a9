"""Training an image tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bifocal import distributed
from bifocal.config import UserError
from bifocal.data.pictures import to_tensor
from bifocal.data.scenes import WorldSettings
from bifocal.inference import load_model
from bifocal.models.clip import CLIPModel, PictureTower
from bifocal.models.precision import fast_dtype, open_device, set_precision
from bifocal.models.vqvae import PatchAlignment, VQVAEConfig, VQVAEModel
from bifocal.recipes.alignment import CENTRED, open_teacher, patch_embeddings
from bifocal.recipes.mixture import source_of
from bifocal.recipes.probes import reconstructions
from bifocal.recipes.ranges import require_counts
from bifocal.recipes.runs import begun, mean_loss, open_run, run, start_from
from bifocal.training.alarms import CodebookAlarms
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.parallel import ByRows
from bifocal.training.trainer import Outcome, TrainSettings


@dataclass(frozen=True)
class VQVAERecipe:
    """A VQ-VAE on scenes (``data`` none) or on the pictures of a folder.

    ``perceptual`` names a finished CLIP; the distance of its patch features is a fourth term of this weight. ``align``
    names one that teaches encoder and decoder what is at each code's place (``PatchAlignment``).
    """

    batch_size: int = 32
    data: str | None = None
    perceptual: str | None = None
    perceptual_weight: float = 0.1
    align: str | None = None
    align_weight: float = 0.2
    world: WorldSettings = field(default_factory=WorldSettings)
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        require_counts(self, "batch_size")
        if self.world.picture_size != self.model.picture_size:
            raise ValueError(
                f"world.picture_size is {self.world.picture_size} and model.picture_size {self.model.picture_size}: "
                "give both the same size"
            )
        if self.align is not None and self.model.architecture != "cnn":
            raise ValueError(
                'align is for model.architecture "cnn", which has a middle between the codes and the pixels'
            )


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
    if recipe.model.quantizer.legacy_beta and not (resume and begun(out)):
        refuse_legacy_beta(init_from)
    source = source_of(recipe.data, recipe.world, 0)
    size = recipe.batch_size

    def batch_at(step: int) -> ByRows:
        return ByRows(lambda rows: to_tensor([source.picture("train", step * size + row) for row in rows]))

    torch.manual_seed(recipe.train.seed)
    model = VQVAEModel(recipe.model)
    start_from(model, init_from)
    model.perceptual = perceptual_of(recipe, device)
    clip = teacher_of(recipe)
    open_run(out, "vqvae", recipe, resume=resume, init_from=init_from, source=source)
    if clip is not None:  # behind the run's note of the pictures that cannot be read
        model.alignment = alignment_of(recipe, clip, lambda index: source.picture("train", index), device)
    held_out = [
        to_tensor([source.picture("validation", start + row) for row in range(32)]).to(device)
        for start in (0, 32, 64, 96)
    ]
    if recipe.model.quantizer.update == "ema" and distributed.is_main():
        print("vqvae: moving averages stand for the codebook term, which is 0 in the log", flush=True)
    return run(
        model,
        recipe.train,
        batch_at,
        out,
        recipe=recipe,
        samples_per_step=size,
        data_fingerprint=source.fingerprint,
        names_at=lambda step: [source.picture_key("train", step * size + row) for row in range(size)],
        validation=lambda: mean_loss(model, held_out),
        watch=CodebookAlarms(
            settings=recipe.model.quantizer,
            places=size * recipe.model.codes_per_picture // recipe.model.quantizer.depth,
        ),
        probes={"reconstructions": reconstructions(model, held_out[0])}
        | ({} if show is None else {"shown": lambda step: show(model, held_out[0][:16], step)}),
        resume=resume,
        title="vqvae",
    )


def perceptual_of(
    recipe: VQVAERecipe, device: torch.device
) -> tuple[Callable[[Tensor, Tensor], Tensor], float] | None:
    """The distance that a recipe adds to its loss, and its weight; None where it names no CLIP."""
    if recipe.perceptual is None:
        return None
    clip = open_clip(recipe.perceptual, recipe.world.picture_size)
    set_precision(clip.to(device), fast_dtype(device, recipe.train.dtype))
    return functools.partial(feature_distance, clip.vision_model), recipe.perceptual_weight


def teacher_of(recipe: VQVAERecipe) -> CLIPModel | None:
    """The CLIP that a recipe's ``align`` names, if any; refused if its patches are not where the codes are."""
    if recipe.align is None:
        return None
    clip, _ = open_teacher(recipe.align, recipe.model)
    if not isinstance(clip, CLIPModel):
        raise UserError(f"--align of a VQ-VAE needs a CLIP, and {recipe.align} is a VLM")
    return clip


def aligned_channels(recipe: VQVAERecipe, clip: CLIPModel) -> tuple[int, int]:
    """The channels of a middle, and in how many directions of them it is drawn to a CLIP; half are left to looks."""
    channels = recipe.model.base_channels * recipe.model.multipliers[-1]
    return channels, min(clip.config.width, channels // 2)


@torch.no_grad()
def alignment_of(
    recipe: VQVAERecipe, clip: CLIPModel, picture: Callable[[int], np.ndarray], device: torch.device
) -> PatchAlignment:
    """What teaches encoder and decoder to see.

    ``picture`` gives the training pictures, over the first of which each place's mean is taken: what CLIP says of a
    place whatever is there, and where it is, needs no code.
    """
    set_precision(clip.to(device), fast_dtype(device, recipe.train.dtype))
    drawn = torch.Generator().manual_seed(recipe.train.seed)
    channels, width = aligned_channels(recipe, clip)
    reduced, projection = (
        torch.linalg.qr(torch.randn(size, width, generator=drawn)).Q.to(device)
        for size in (clip.config.width, channels)
    )

    def said(images_BCHW: Tensor) -> Tensor:
        return patch_embeddings(clip, images_BCHW).float() @ reduced

    starts = range(0, CENTRED, recipe.batch_size)
    first = (to_tensor([picture(start + row) for row in range(recipe.batch_size)]) for start in starts)
    mean_NE = torch.cat([said(images.to(device)) for images in first]).mean(dim=0)
    return PatchAlignment(lambda images: said(images) - mean_NE, recipe.align_weight, projection)


def refuse_legacy_beta(init_from: str | None) -> None:
    """Beta on the codebook term is a mistake that only a model which was trained with it may go on with."""
    if init_from is not None:
        model, _ = load_model(init_from)
        if isinstance(model, VQVAEModel) and model.config.quantizer.legacy_beta:
            return
    raise UserError(
        "quantizer.legacy_beta puts beta on the wrong term, for old checkpoints only: leave it out, or go on from a "
        "checkpoint imported with --legacy-beta (--init-from RUN)"
    )


def open_clip(run: str, picture_size: int) -> CLIPModel:
    """A finished CLIP, frozen, refused if its pictures have another size."""
    clip, _ = load_model(run)
    if not isinstance(clip, CLIPModel):
        raise UserError(f"--perceptual needs a CLIP, and {run} is none")
    if clip.config.vision.picture_size != picture_size:
        size = clip.config.vision.picture_size
        raise UserError(f"--perceptual {run} takes pictures of {size} pixels, and these have {picture_size}")
    return clip.requires_grad_(False)


def feature_distance(vision: PictureTower, originals_BCHW: Tensor, others_BCHW: Tensor) -> Tensor:
    """Squared difference of unit-norm patch features of the last layer: LPIPS (Zhang et al. 2018) without weights.

    A mean over patches and pictures. The gradient goes to ``others_BCHW`` alone.
    """
    with torch.no_grad():
        wanted = F.normalize(vision.patch_features(originals_BCHW).float(), dim=-1)
    found = F.normalize(vision.patch_features(others_BCHW).float(), dim=-1)
    return (found - wanted).square().sum(dim=-1).mean()


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
    steps = {"quickstart": 900, "standard": 2000}[scale]
    return VQVAERecipe(
        batch_size=16,
        perceptual_weight=0.05,
        train=TrainSettings(
            steps=steps,
            validate_every=max(100, steps // 12),
            checkpoint_every=max(300, steps // 4),
            log_every=25,
            optimizer=OptimizerSettings(kind="muon", learning_rate=2e-3, warmup_steps=20),
        ),
    )
