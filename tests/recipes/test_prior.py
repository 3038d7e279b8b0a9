"""The recipe of a prior: where its codes come from, what it refuses, and the bits that evaluation reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from bifocal import inference
from bifocal.commands.encode import encode_command
from bifocal.commands.evaluate import evaluate_command
from bifocal.config import UserError
from bifocal.data.scenes import WorldSettings
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.prior import PriorRecipe, halves, recipe_prior, train_prior


def finished(place: Path, **quantizer: object) -> Path:
    """A VQ-VAE of random weights whose codebook has seen pictures."""
    torch.manual_seed(4)
    config = replace(tiny.IMAGE_TOKENS, quantizer=QuantizerConfig(**quantizer))  # type: ignore[arg-type]
    model = VQVAEModel(config)
    model.loss(torch.rand(8, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE))
    place.mkdir(parents=True)
    inference.save(place, model)
    return place


@pytest.fixture
def vqvae(tmp_path: Path) -> Path:
    return finished(tmp_path / "vqvae", codes=tiny.CODES, width=4)


def recipe(vision: Path, data: Path | None = None, **changes: object) -> PriorRecipe:
    smoke = recipe_prior("smoke")
    train = replace(smoke.train, steps=3, log_every=1, validate_every=3, checkpoint_every=3)
    world = WorldSettings(picture_size=tiny.PICTURE_SIZE)
    small = replace(smoke, vision=str(vision), batch_size=4, episodes=6, world=world, train=train)
    return replace(small, data=None if data is None else str(data), **changes)  # type: ignore[arg-type]


QUANTIZERS = {
    "codebook": {"codes": tiny.CODES, "width": 4},
    "residual": {"codes": 8, "width": 4, "kind": "residual", "depth": 2},
    "fsq": {"codes": 20, "width": 2, "kind": "fsq", "levels": (5, 4)},
}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_evaluation_reports_the_bits_of_a_prior_over_any_codes(tmp_path: Path, kind: str) -> None:
    vqvae = finished(tmp_path / "vqvae", **QUANTIZERS[kind])
    data = tiny.folder(tmp_path / "data", pictures=12)
    train_prior(recipe(vqvae, data), tmp_path / "prior")
    rows = evaluate_command(
        vqvae, "reconstruction", data=str(data), prior=tmp_path / "prior", dtype="float32"
    )
    (row,) = [row for row in rows if row.metric == "bits_per_dim"]
    (unigram,) = [row for row in rows if row.metric == "bits_per_dim_unigram"]
    model, prior = (inference.load(tmp_path / name, dtype="float32") for name in ("vqvae", "prior"))
    assert isinstance(model, inference.VQVAE) and isinstance(prior, inference.Prior)
    pixels = torch.stack([torch.from_numpy(tiny.picture(i)).permute(2, 0, 1) / 255 for i in range(12)])
    bits = prior.bits(model.encode(pixels)) / (3 * tiny.PICTURE_SIZE**2)
    assert row.value == pytest.approx(bits.mean().item(), rel=1e-5)
    assert row.low is not None and row.low < row.value < row.high  # type: ignore[operator]
    assert row.variant == "prior=prior" and unigram.low is None
    assert row.baseline == unigram.baseline and unigram.value < unigram.baseline  # type: ignore[operator]


def test_a_prior_is_trained_on_the_store_that_encode_writes(tmp_path: Path, vqvae: Path) -> None:
    data = tiny.folder(tmp_path / "data", pictures=30)
    (data / "samples.jsonl").unlink()  # a store needs pictures alone
    store = encode_command(vqvae, data)
    train_prior(recipe(vqvae, store.path), tmp_path / "prior")
    assert inference.load_model(tmp_path / "prior")[0].config.codes == tiny.CODES
    assert not (tmp_path / "prior" / "encoded").exists()
    other = finished(tmp_path / "other", codes=8, width=4)
    with pytest.raises(UserError, match="encoded by another model than"):
        train_prior(recipe(other, store.path), tmp_path / "second")


def test_scenes_are_encoded_on_the_way_and_kept(tmp_path: Path, vqvae: Path) -> None:
    train_prior(recipe(vqvae), tmp_path / "prior")
    assert (tmp_path / "prior" / "encoded" / "train" / "values.npy").is_file()


def test_a_store_is_parted_by_the_names_of_its_pictures() -> None:
    keys = [f"{number}.png" for number in range(200)]
    parts = halves(keys)
    assert sorted(parts["train"] + parts["validation"]) == sorted(keys)
    assert 8 <= len(parts["validation"]) <= 35  # a tenth by a hash
    assert halves(keys[:50])["validation"] == [key for key in parts["validation"] if key in keys[:50]]
    assert halves(["only"]) == {"train": ["only"], "validation": ["only"]}


def test_what_is_no_tokenizer_or_has_other_pictures_is_refused(tmp_path: Path, vqvae: Path) -> None:
    with pytest.raises(UserError, match="name its run with --vision RUN"):
        train_prior(replace(recipe(vqvae), vision=""), tmp_path / "out")
    with pytest.raises(UserError, match=r"give --world\.picture-size 32"):
        train_prior(recipe(vqvae, world=WorldSettings(picture_size=64)), tmp_path / "out")
    train_prior(recipe(vqvae), tmp_path / "prior")
    with pytest.raises(UserError, match="prior is none"):
        train_prior(recipe(tmp_path / "prior"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prior_of_another_tokenizer_is_refused(tmp_path: Path, vqvae: Path) -> None:
    data = tiny.folder(tmp_path / "data", pictures=4)
    train_prior(recipe(vqvae, data), tmp_path / "prior")
    other = finished(tmp_path / "other", codes=tiny.CODES, width=3)
    with pytest.raises(UserError, match="over the codes of another VQ-VAE than"):
        evaluate_command(other, "reconstruction", data=str(data), prior=tmp_path / "prior")
    with pytest.raises(UserError, match="is a vqvae: train one with bifocal train prior --vision"):
        evaluate_command(vqvae, "reconstruction", data=str(data), prior=vqvae)
    with pytest.raises(UserError, match="--prior is for reconstruction"):
        evaluate_command(tmp_path / "prior", "vqa", data=str(data), prior=tmp_path / "prior")
