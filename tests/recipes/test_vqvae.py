"""The recipe of a VQ-VAE: what a CLIP adds to its loss, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from bifocal import inference
from bifocal.artifacts import read_json_lines
from bifocal.config import UserError
from bifocal.data.pictures import to_tensor
from bifocal.data.scenes import WorldSettings
from bifocal.models.quantize import Codebook, QuantizerConfig
from bifocal.models.vitvq import ViTSizes
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.sketches import sketch
from bifocal.recipes.vqvae import (
    VQVAERecipe,
    alignment_of,
    feature_distance,
    recipe_vqvae,
    teacher_of,
    train_vqvae,
)
from bifocal.training import trainer as training
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trace import stand_ins


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    words = tiny.tokenizer()
    run = tmp_path / "clip"
    run.mkdir()
    inference.save(run, tiny.clip(len(words)), words)
    return run


def recipe(**changes: object) -> VQVAERecipe:
    smoke = recipe_vqvae("smoke")
    small = replace(smoke, batch_size=4, world=WorldSettings(picture_size=32), model=tiny.IMAGE_TOKENS)
    train = replace(smoke.train, steps=3, log_every=1, validate_every=3, checkpoint_every=3)
    return replace(small, **{"train": train, **changes})  # type: ignore[arg-type]


def test_the_distance_is_zero_between_equals_and_moves_the_other_picture_only() -> None:
    vision = tiny.clip(300).vision_model.requires_grad_(False)
    images = torch.rand(2, 3, 32, 32)
    assert feature_distance(vision, images, images).item() == 0
    others = torch.rand(2, 3, 32, 32, requires_grad=True)
    feature_distance(vision, images, others).backward()
    assert others.grad is not None and others.grad.abs().max() > 0
    assert all(weight.grad is None for weight in vision.parameters())


def test_a_perceptual_term_is_logged_added_and_leaves_no_trace_in_the_model(
    tmp_path: Path, clip: Path
) -> None:
    train_vqvae(recipe(perceptual=str(clip), perceptual_weight=0.5), tmp_path / "with")
    first = next(row for row in read_json_lines(tmp_path / "with" / "log.jsonl") if row["phase"] == "train")
    terms = first["reconstruction"] + first["codebook"] + 0.25 * first["commitment"]
    assert first["perceptual"] > 0
    # figures in the log are rounded to six decimals
    assert first["loss"] == pytest.approx(terms + 0.5 * first["perceptual"], abs=5e-6)
    model, _ = inference.load_model(tmp_path / "with")
    assert not any("vision" in name for name in model.state_dict())


def test_an_alignment_is_logged_added_and_leaves_no_trace_in_the_model(tmp_path: Path, clip: Path) -> None:
    train_vqvae(recipe(align=str(clip), align_weight=0.5), tmp_path / "with")
    first = next(row for row in read_json_lines(tmp_path / "with" / "log.jsonl") if row["phase"] == "train")
    terms = first["reconstruction"] + first["codebook"] + 0.25 * first["commitment"]
    apart = 2 - first["alignment_encoder"] - first["alignment_decoder"]
    assert apart > 0.1
    assert first["loss"] == pytest.approx(terms + 0.5 * apart, abs=5e-6)
    train_vqvae(recipe(), tmp_path / "without")
    kept = [inference.load_model(tmp_path / name)[0].state_dict() for name in ("with", "without")]
    assert kept[0].keys() == kept[1].keys()


def test_what_the_decoder_is_to_say_teaches_the_encoder_through_the_codes(clip: Path) -> None:
    made = recipe(align=str(clip), align_weight=1.0)
    model = VQVAEModel(made.model).train()
    grey = np.zeros((32, 32, 3), np.uint8)
    teacher = teacher_of(made)
    assert teacher is not None
    alignment = alignment_of(made, teacher, lambda index: grey + np.uint8(index % 251), torch.device("cpu"))
    middles: list[Tensor] = []
    images = torch.rand(4, 3, 32, 32)
    quantised = model.quantize(model._latents(images))
    model._outputs(quantised.vectors, middles.append)
    alignment.apart(middles[0], alignment.features(images)).backward()
    for weight in (model.encoder.conv_in.weight, model.quant_conv.weight, model.decoder.conv_in.weight):
        assert weight.grad is not None and weight.grad.abs().max() > 0
    assert model.decoder.conv_out.weight.grad is None  # the pixels have no part in it


def test_a_place_has_its_own_mean_taken_off(clip: Path) -> None:
    made = recipe(align=str(clip))
    pictures = [tiny.picture(seed) for seed in range(512)]
    teacher = teacher_of(made)
    assert teacher is not None
    alignment = alignment_of(made, teacher, pictures.__getitem__, torch.device("cpu"))
    features = torch.cat([alignment.features(to_tensor(pictures[n : n + 64])) for n in range(0, 512, 64)])
    assert features.shape == (512, 16, 16)
    assert features.mean(dim=0).abs().max() < 1e-3 * features.std()


def test_what_is_drawn_to_a_clip_is_told_better_after_some_steps(tmp_path: Path, clip: Path) -> None:
    optimizer = OptimizerSettings(learning_rate=2e-3, warmup_steps=1)
    long = recipe(align=str(clip), align_weight=1.0, batch_size=8)
    long = replace(long, train=replace(long.train, steps=60, log_every=5, optimizer=optimizer))
    train_vqvae(long, tmp_path / "run")
    rows = [row for row in read_json_lines(tmp_path / "run" / "log.jsonl") if row["phase"] == "train"]
    for part in ("alignment_encoder", "alignment_decoder"):
        assert rows[-1][part] > rows[0][part] + 0.1


def test_an_alignment_wants_a_middle_and_a_patch_for_each_code(tmp_path: Path, clip: Path) -> None:
    vit = replace(tiny.IMAGE_TOKENS, architecture="vit", vit=ViTSizes(patch_size=8))
    with pytest.raises(ValueError, match=r'align is for model\.architecture "cnn"'):
        recipe(align=str(clip), model=vit)
    coarse = replace(tiny.IMAGE_TOKENS, multipliers=(1, 1, 1), decoder_blocks=(0, 1, 1))
    with pytest.raises(UserError, match="each code needs its patch"):
        train_vqvae(recipe(align=str(clip), model=coarse), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("term", ["align", "perceptual"])
def test_a_forecast_needs_no_weights_of_what_teaches(clip: Path, term: str) -> None:
    planned = sketch(recipe(**{term: str(clip)}))
    with stand_ins("cpu"):
        model = planned.build()
        assert isinstance(model, VQVAEModel)
        assert (model.alignment is None, model.perceptual is None) == (term != "align", term != "perceptual")


def test_beta_on_the_wrong_term_is_for_runs_that_go_on_from_an_old_checkpoint(tmp_path: Path) -> None:
    quantizer = replace(tiny.IMAGE_TOKENS.quantizer, legacy_beta=True)
    legacy = recipe(model=replace(tiny.IMAGE_TOKENS, quantizer=quantizer))
    modern, old = tmp_path / "modern", tmp_path / "old"
    for place, config in ((modern, tiny.IMAGE_TOKENS), (old, legacy.model)):
        place.mkdir()
        inference.save(place, VQVAEModel(config))
    for init_from in (None, str(modern)):
        with pytest.raises(UserError, match=r"legacy_beta puts beta on the wrong term.*--init-from RUN"):
            train_vqvae(legacy, tmp_path / "run", init_from=init_from)
    assert not (tmp_path / "run").exists()
    train_vqvae(legacy, tmp_path / "run", init_from=str(old))
    first = next(row for row in read_json_lines(tmp_path / "run" / "log.jsonl") if row["phase"] == "train")
    terms = first["reconstruction"] + 0.25 * first["codebook"] + first["commitment"]
    assert first["loss"] == pytest.approx(terms, abs=5e-6)  # figures in the log are rounded to six decimals
    # what was allowed to begin may be resumed; the other way round, an old checkpoint may go on with the mistake mended
    train_vqvae(legacy, tmp_path / "run", resume=True)
    train_vqvae(recipe(), tmp_path / "mended", init_from=str(old))


def test_a_clip_for_pictures_of_another_size_is_refused(tmp_path: Path, clip: Path) -> None:
    large = recipe(
        perceptual=str(clip),
        world=WorldSettings(picture_size=64),
        model=replace(tiny.IMAGE_TOKENS, picture_size=64),
    )
    with pytest.raises(UserError, match="takes pictures of 32 pixels, and these have 64"):
        train_vqvae(large, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # so that the corrected command can go there


@pytest.mark.parametrize(
    "quantizer",
    [
        QuantizerConfig(codes=16, width=4),
        QuantizerConfig(codes=16, width=4, normalise=True),
        QuantizerConfig(codes=16, width=4, update="ema"),
        QuantizerConfig(codes=16, width=4, kind="simvq"),
        QuantizerConfig(codes=16, width=4, kind="residual", depth=2),
    ],
    ids=lambda quantizer: f"{quantizer.kind}, {quantizer.update}, {quantizer.normalise}",
)
def test_the_codes_that_a_run_starts_from_are_those_of_its_first_batch(
    tmp_path: Path, quantizer: QuantizerConfig
) -> None:
    """The optimizer steps weights of its own, and must not put the random codes back."""
    rate = 1e-5
    run = recipe(model=replace(tiny.IMAGE_TOKENS, quantizer=quantizer))
    optimizer = OptimizerSettings(learning_rate=rate, warmup_steps=1)
    train = replace(run.train, steps=1, validate_every=1, checkpoint_every=1, optimizer=optimizer)
    model = VQVAEModel(run.model)
    codebooks = [part for part in model.modules() if isinstance(part, Codebook)]
    random = [book.codebook().detach().clone() for book in codebooks]
    started: list[Tensor] = []
    for book in codebooks:
        book.register_forward_hook(
            lambda module, *_: started.append(module.codebook().detach().clone()) if module.training else None
        )
    pictures = torch.rand(4, 3, 32, 32)
    training.train(model, train, lambda _: pictures, tmp_path, samples_per_step=4)
    for book, before, start in zip(codebooks, random, started, strict=True):
        moved = (book.codebook() - start).abs().max()
        assert moved < (0.05 * start.std() if quantizer.update == "ema" else 20 * rate)
        assert (start - before).abs().max() > 1000 * rate
