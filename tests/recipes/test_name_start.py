"""A projector that begins with the decoder's own words for what stands where."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
import toys
from bifocal.cli import main
from bifocal.config import UserError
from bifocal.data.sample import Box
from bifocal.data.scenes import Scene, SceneObject, World, WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.models.language import LanguageConfig
from bifocal.models.vision import VisionConfig, VisionTransformer
from bifocal.models.vlm import VLM, ContinuousPath, VLMConfig
from bifocal.recipes import vlm as recipes_vlm
from bifocal.recipes.curriculum import TaskWeights
from bifocal.recipes.mixture import source_of
from bifocal.recipes.name_start import (
    Positions,
    Words,
    named_rightly,
    positions_of,
    require_truth,
    solve,
    start_with_names,
)
from bifocal.recipes.vlm import VLMRecipe, train_vlm
from bifocal.training import checkpoint
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import TrainSettings

SETTINGS = WorldSettings(concepts="small", picture_size=tiny.PICTURE_SIZE)
LANGUAGE = LanguageConfig(width=80, layers=1, heads=2, kv_heads=1, hidden=48)
SCENES = 400
# eyes that have learnt nothing, and so must at least let through what they look at
EYES = VisionConfig(picture_size=tiny.PICTURE_SIZE, patch_size=8, width=96, layers=1, heads=2)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SETTINGS)


@pytest.fixture(scope="module")
def tokenizer(world: World) -> TextTokenizer:
    return TextTokenizer.train([concept.name for concept in world.concepts] * 4, size=500, box_bins=8)


def drawn(tokenizer: TextTokenizer, seed: int = 0, **changes: Any) -> VLM:
    """Eyes that are always the same, the rest drawn by a seed."""
    torch.manual_seed(3)
    eyes = VisionTransformer(EYES)
    torch.manual_seed(seed)
    language = replace(LANGUAGE, vocabulary=len(tokenizer))
    model = VLM(VLMConfig(language=language, vision=EYES, **changes))
    assert isinstance(model.image_path, ContinuousPath)
    model.image_path.vision_model.load_state_dict(eyes.state_dict())
    return model


def begun(model: VLM, tokenizer: TextTokenizer, world: World, scenes: int = SCENES) -> VLM:
    assert isinstance(model.image_path, ContinuousPath)
    start_with_names(model, tokenizer, world, model.image_path.encode, scenes=scenes, title="vlm")
    return model


def share_named(model: VLM, tokenizer: TextTokenizer, world: World) -> float:
    """Of the positions that things cover in scenes that nothing was solved from."""
    path = model.image_path
    assert isinstance(path, ContinuousPath)
    words = Words(world, tokenizer, model.language_model.embed_tokens.weight)
    found = positions_of(world, "validation", words, path, path.encode, 200)
    covered, right = named_rightly(path, words, list(found))
    assert covered > 200
    return right / covered


@pytest.mark.parametrize("shuffle", [1, 2])
def test_names_are_said_where_things_stand_in_scenes_never_seen(
    world: World, tokenizer: TextTokenizer, shuffle: int
) -> None:
    model = drawn(tokenizer, pixel_shuffle=shuffle)
    before = share_named(model, tokenizer, world)
    after = share_named(begun(model, tokenizer, world, 2000), tokenizer, world)
    assert after > 2 * max(before, 1 / len(world.concepts))


def test_names_come_out_nearly_always_where_eyes_tell_things_apart(
    world: World, tokenizer: TextTokenizer
) -> None:
    model = drawn(tokenizer, pixel_shuffle=2)
    path = model.image_path
    assert isinstance(path, ContinuousPath)
    words = Words(world, tokenizer, model.language_model.embed_tokens.weight)
    generator = torch.Generator().manual_seed(0)
    looks = torch.randn(len(words), path.linear_1.in_features, generator=generator)
    told = []
    for number in range(10):
        scenes = [world.scene("train", 80 * number + place) for place in range(80)]
        said = torch.cat([words.said(scene, 4) for scene in scenes])
        noise = torch.randn(len(said), looks.shape[1], generator=generator)
        told.append(Positions(said.float() @ looks + noise, said))
    before = named_rightly(path, words, told[8:])
    solve(path, words, told[:8], told[8:9])
    covered, right = named_rightly(path, words, told[9:])
    assert before[1] < 0.1 * before[0] and right > 0.9 * covered


def test_what_is_said_has_the_length_of_the_words_themselves(world: World, tokenizer: TextTokenizer) -> None:
    model = begun(drawn(tokenizer), tokenizer, world)
    table = model.language_model.embed_tokens.weight
    path = model.image_path
    assert isinstance(path, ContinuousPath)
    words = Words(world, tokenizer, table)
    some = next(positions_of(world, "validation", words, path, path.encode, 200))
    with torch.no_grad():
        said = path.linear_2(F.gelu(path.linear_1(some.inputs_ND))) - words.mean_D
    wanted = some.said_NK.float() @ words.embeddings(dict.fromkeys(range(len(words.kinds)), 1.0))
    # the same root mean square, kind by kind, found on other scenes than these
    assert said.square().mean().sqrt().item() == pytest.approx(wanted.square().mean().sqrt().item(), rel=0.15)


def test_the_seed_decides_what_comes_out(world: World, tokenizer: TextTokenizer) -> None:
    one, again, other = (
        begun(drawn(tokenizer, seed), tokenizer, world).image_path.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["linear_1.weight"], other["linear_1.weight"])
    assert not torch.equal(one["linear_2.weight"], other["linear_2.weight"])


def test_the_decoder_and_the_eyes_stay_as_they_are(world: World, tokenizer: TextTokenizer) -> None:
    model = drawn(tokenizer)
    before = copy.deepcopy(model.state_dict())
    begun(model, tokenizer, world)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {f"image_path.linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}


def test_the_thing_that_covers_most_is_named_and_its_middle_tells_more(
    world: World, tokenizer: TextTokenizer
) -> None:
    words = Words(world, tokenizer, torch.randn(len(tokenizer), 8))
    one, other = world.concepts[:2]
    scene = Scene(
        "train/0/0",
        "white",
        (
            SceneObject(replace(one, can_tilt=True), "large", "tilted", "red", Box(0.0, 0.0, 0.6, 0.45)),
            SceneObject(replace(other, can_tilt=False), "small", "upright", None, Box(0.55, 0.5, 1.0, 1.0)),
        ),
    )
    said = words.said(scene, 2)
    names = {word: place for place, word in enumerate(words.names)} | {"": words.background}

    def expected(*indices: int) -> Tensor:
        return torch.zeros(len(words), dtype=torch.bool).index_fill(0, torch.tensor(indices), value=True)

    looks = [words.look_at[word] for word in ("large", "tilted", "red", "top", "left")]
    assert torch.equal(said[0], expected(names[one.name], *looks))
    assert torch.equal(said[1], expected(names[""]))  # a fifth of it is covered
    assert torch.equal(said[2], expected(names[""]))
    looks = [words.look_at[word] for word in ("small", "bottom", "right")]
    assert torch.equal(said[3], expected(names[other.name], *looks))


def test_it_stands_in_the_log_what_was_solved(
    world: World, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(drawn(tokenizer), tokenizer, world)
    said = capsys.readouterr().out
    assert f"solved from {SCENES * 16:,} positions of {SCENES} training scenes (ridge " in said
    assert said.rstrip().endswith("have its name nearest") and len(said.splitlines()) == 1


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.eyes_and_data(tmp_path_factory.mktemp("parts"))


def recipe(parts: Path, **changes: Any) -> VLMRecipe:
    plain = VLMRecipe(
        vision=str(parts / "clip"), batch_size=2, row_length=160, text_tokens=300, box_bins=8, episodes=12,
        name_start=64, world=SETTINGS, language=LANGUAGE, tasks=TaskWeights(grounding=0),
        train=TrainSettings(
            steps=2, log_every=1, validate_every=2, checkpoint_every=1, keep_checkpoints=3, dtype="float32",
            optimizer=OptimizerSettings(warmup_steps=1),
        ),
    )  # fmt: skip
    return replace(plain, **changes)


def test_a_run_that_goes_on_does_not_begin_again(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_vlm(recipe(parts), parts / "whole")
    toys.stopped_at(1, lambda: train_vlm(recipe(parts), parts / "stopped"))
    solved: list[str] = []
    monkeypatch.setattr(recipes_vlm, "start_with_names", lambda *_, title, **__: solved.append(title))
    train_vlm(recipe(parts), parts / "stopped", resume=True)
    assert not solved
    ends = [checkpoint.load_step(parts / run / "checkpoints" / "step-2") for run in ("whole", "stopped")]
    one, other = (dict(end.model_tensors) for end in ends)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_refused_where_nothing_says_what_stands_where(parts: Path) -> None:
    with pytest.raises(
        UserError, match=r"nothing in these data says which thing stands where .*only scenes do"
    ):
        train_vlm(recipe(parts, data=str(parts / "data")), parts / "refused")
    with pytest.raises(UserError, match=r"brings a projector that has learnt, .*give one of them"):
        train_vlm(recipe(parts), parts / "refused", init_from=str(parts / "whole"))


def test_scenes_that_are_mixed_in_have_the_truth(parts: Path) -> None:
    file = parts / "mixed.toml"
    file.write_text('[[sets]]\ndata = "data"\n[[sets]]\ndata = "scenes"\n')
    assert require_truth(source_of(str(file), SETTINGS, 12)).settings == SETTINGS


@pytest.mark.parametrize(("family", "scenes"), [("discrete", 64), ("continuous", 3)])
def test_recipes_that_cannot_be_are_refused(family: Any, scenes: int) -> None:
    with pytest.raises(ValueError, match="name_start is for the continuous family"):
        VLMRecipe(family=family, name_start=scenes)


def test_a_language_model_on_data_of_ones_own_begins_as_drawn_and_says_so(
    parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "vlm-smollm", "--vision", str(parts / "clip"), "--out", str(parts / "own"), "--smoke"]
    settings = ["--world.picture-size", "32", "--steps", "1", "--data", str(parts / "data")]
    assert main([*words, *settings]) == 0
    said = capsys.readouterr().out
    assert "the projector begins as it was drawn" in said and "solved from" not in said
