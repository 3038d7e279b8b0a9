"""A CLIP that begins as one that another tool wrote: its shape, manner, tokenizer and pictures are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bifocal
import tiny
from bifocal import inference
from bifocal.commands.interpolate import interpolate_command
from bifocal.commands.train import train_command
from bifocal.config import UserError
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.recipes.clip import begun_with, recipe_clip
from bifocal.recipes.runs import start_from
from interop.foreign import CAUSAL, PLAIN, RESNET, SIGLIP, clip_directory, clip_model, ours, pictures

transformers = pytest.importorskip("transformers")


@pytest.fixture
def begin(tmp_path: Path) -> Path:
    return clip_directory(tmp_path / "begin", clip_model())


def train(begin: Path, out: Path, data: Path, **overrides: str) -> None:
    flags = {"batch_size": "8", "train.optimizer.kind": "adamw", "train.validate_every": "2"}
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    train_command(
        "clip",
        out,
        overrides={**flags, **given},
        scale="smoke",
        data=str(data),
        init_from=str(begin),
        steps=2,
    )


def test_a_foreign_checkpoint_is_trained_on_and_stays_what_it_was(tmp_path: Path, begin: Path) -> None:
    data = tiny.folder(tmp_path / "data", pictures=12)
    train(begin, tmp_path / "run", data)
    before, after = bifocal.load(begin, dtype="float32"), bifocal.load(tmp_path / "run", dtype="float32")
    assert isinstance(before, inference.CLIP) and isinstance(after, inference.CLIP)
    assert after.model.config == before.model.config  # quick GELU, cropping and all
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (begin / "tokenizer.json").read_bytes()
    moved = (after.embed_images(pictures()) - before.embed_images(pictures())).abs().max().item()
    assert moved > 0
    there, report = transformers.CLIPModel.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not any(report.values()), report
    said = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert said["model"]["text"]["activation"] == "quick_gelu"


def test_what_became_of_the_old_end_id_lies_on_a_line_with_its_start(tmp_path: Path) -> None:
    begin = clip_directory(tmp_path / "old", clip_model(text={"eos_token_id": 2}))
    data = tiny.folder(tmp_path / "data", pictures=12)
    train(begin, tmp_path / "run", data)
    interpolate_command(begin, tmp_path / "run", tmp_path / "mixed", share=0.0)
    before, mixed = inference.load(begin), inference.load(tmp_path / "mixed")
    assert isinstance(before, inference.CLIP) and isinstance(mixed, inference.CLIP)
    assert torch.equal(before.embed_images(pictures()), mixed.embed_images(pictures()))
    assert torch.equal(before.embed_texts(["an owl"]), mixed.embed_texts(["an owl"]))


def test_it_begins_with_the_very_weights(tmp_path: Path, begin: Path) -> None:
    data = tiny.folder(tmp_path / "data", pictures=12)
    # a rate at which no weight of float32 moves
    train(begin, tmp_path / "run", data, train__optimizer__learning_rate="1e-30")
    before, after = inference.load_model(begin)[0], inference.load_model(tmp_path / "run")[0]
    weights = after.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.state_dict().items())


def test_pictures_of_another_size_are_taken_where_asked_for(tmp_path: Path, begin: Path) -> None:
    data = tiny.folder(tmp_path / "data", pictures=12)
    larger = {"model__vision__picture_size": "48", "world__picture_size": "48"}
    train(begin, tmp_path / "run", data, **larger)
    model, _ = inference.load_model(tmp_path / "run")
    assert isinstance(model, CLIPModel) and model.config.vision.picture_size == 48


def test_the_recipe_follows_the_checkpoint(tmp_path: Path, begin: Path) -> None:
    recipe = begun_with(recipe_clip("smoke"), str(begin))
    assert recipe.world.picture_size == recipe.model.vision.picture_size == 32
    assert recipe.objective == "softmax"
    (tmp_path / "siglip").mkdir()
    inference.save(tmp_path / "siglip", ours(SIGLIP), tiny.tokenizer())
    assert begun_with(recipe_clip("smoke"), str(tmp_path / "siglip")).objective == "sigmoid"


def test_a_checkpoint_that_cannot_read_is_refused(tmp_path: Path) -> None:
    clip_model().save_pretrained(tmp_path / "begin")
    with pytest.raises(UserError, match="has no tokenizer, and a CLIP learns from texts"):
        begun_with(recipe_clip("smoke"), str(tmp_path / "begin"))


def test_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vqvae").mkdir()
    inference.save(tmp_path / "vqvae", tiny.vqvae())
    with pytest.raises(UserError, match="is no CLIP"):
        begun_with(recipe_clip("smoke"), str(tmp_path / "vqvae"))


def test_a_tower_of_one_s_own_is_refused_beside_it(tmp_path: Path, begin: Path) -> None:
    with pytest.raises(UserError, match="--tower is that of the CLIP that --init-from names"):
        train_command("clip", tmp_path / "run", overrides={}, init_from=str(begin), tower="resnet")


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (CLIPConfig(replace(PLAIN, activation="quick_gelu"), CAUSAL, 16), r"model\.vision\.activation"),
        (CLIPConfig(PLAIN, replace(CAUSAL, norm_eps=1e-6), 16), r"model\.text\.norm_eps"),
    ],
)
def test_weights_of_one_shape_and_another_manner_are_refused(
    tmp_path: Path, changed: CLIPConfig, name: str
) -> None:
    (tmp_path / "run").mkdir()
    inference.save(tmp_path / "run", ours(CLIPConfig(PLAIN, CAUSAL, 16)), tiny.tokenizer())
    with pytest.raises(UserError, match=f"has {name} .*its weights would mean something else"):
        start_from(CLIPModel(changed), str(tmp_path / "run"))


def test_a_resnet_goes_on_with_the_statistics_that_it_found(tmp_path: Path) -> None:
    found = ours(CLIPConfig(RESNET, CAUSAL, 16))
    (tmp_path / "found").mkdir()
    inference.save(tmp_path / "found", found, tiny.tokenizer())
    data = tiny.folder(tmp_path / "data", pictures=12)
    more = {"chunk_size": "4", "regions": "false"}
    with pytest.raises(UserError, match="or to frozen to keep those that are stored"):
        train(tmp_path / "found", tmp_path / "run", data, **more)
    train(tmp_path / "found", tmp_path / "run", data, model__vision__norm="frozen", **more)
    weights = inference.load_model(tmp_path / "run")[0].state_dict()
    kept = [name for name in weights if "running_" in name or "num_batches" in name]
    assert kept and all(torch.equal(weights[name], found.state_dict()[name]) for name in kept)
    name = "text_projection.weight"
    assert not torch.equal(weights[name], found.state_dict()[name])  # and it learnt


def test_one_size_of_pictures_without_the_other_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"world\.picture_size is 64 and model\.vision\.picture_size 128"):
        train_command("clip", tmp_path / "run", overrides={"model.vision.picture_size": "128"}, scale="smoke")
    assert not (tmp_path / "run").exists()


def test_words_of_one_s_own_are_refused_beside_it(tmp_path: Path, begin: Path) -> None:
    with pytest.raises(UserError, match="--text-tokens would change nothing: the words are those of"):
        train_command("clip", tmp_path / "run", overrides={"text_tokens": "500"}, init_from=str(begin))
