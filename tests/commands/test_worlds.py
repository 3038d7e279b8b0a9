"""A run is asked about scenes of the world that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from bifocal import config, inference
from bifocal.commands.evaluate import evaluate_command
from bifocal.commands.worlds import world_in, world_trained_on
from bifocal.config import UserError
from bifocal.data.scenes import WorldSettings
from bifocal.data.scenes.concepts import small_concepts
from bifocal.evaluation.results import Stamp, prediction_path, read_predictions

SMALL = WorldSettings(concepts="small", picture_size=tiny.PICTURE_SIZE)


def recipe(run: Path, world: WorldSettings | None = None, **settings: object) -> Path:
    run.mkdir(exist_ok=True)
    written = {} if world is None else {"world": config.to_dict(world)}
    (run / "recipe.json").write_text(json.dumps({"kind": "vlm", "data": None, **written, **settings}))
    return run


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    words = tiny.tokenizer()
    (tmp_path / "clip").mkdir()
    inference.save(tmp_path / "clip", tiny.clip(len(words), context=40), words)
    return tmp_path / "clip"


def test_the_recipe_says_the_world_or_that_of_what_the_run_stands_on(tmp_path: Path) -> None:
    eyes = recipe(tmp_path / "eyes", SMALL)
    own = recipe(tmp_path / "own", WorldSettings(), data="pets", vision=str(eyes))
    assert world_trained_on(eyes) == world_trained_on(own) == SMALL
    assert (
        world_trained_on(recipe(tmp_path / "tuned", WorldSettings(), data="pets", init_from=str(own)))
        == SMALL
    )
    recipe(tmp_path / "mixed", SMALL, data="mix.toml")
    assert world_trained_on(tmp_path / "mixed") == SMALL
    assert world_trained_on(recipe(tmp_path / "alone", WorldSettings(), data="pets")) is None
    assert world_trained_on(tmp_path / "foreign") is None
    recipe(eyes, SMALL, data="pets", init_from=str(own))  # goes round
    assert world_trained_on(own) is None


def test_a_clip_of_few_concepts_is_asked_about_those(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(clip, SMALL)
    about: list[Stamp] = []
    evaluate_command(clip, "zero-shot", count=8, blank=False, about=about)
    assert "clip is asked about scenes of concepts small, picture_size 32" in capsys.readouterr().err
    said = {
        each["prediction"] for each in read_predictions(prediction_path(clip, "clip", "zero-shot", "test"))
    }
    assert said <= {concept.name for concept in small_concepts()}
    assert about[0]["world"] == config.to_dict(SMALL)
    # its pictures are those of the page too
    assert world_in(about).settings == SMALL


def test_a_foreign_model_can_be_asked_about_any(clip: Path, tmp_path: Path) -> None:
    about: list[Stamp] = []
    evaluate_command(clip, "zero-shot", count=4, blank=False, concepts="small", about=about)
    assert about[0]["world"]["concepts"] == "small"
    with pytest.raises(UserError, match="--concepts are those of scenes"):
        evaluate_command(clip, "retrieval", data=str(tmp_path), concepts="small")


def test_scenes_of_several_worlds_have_no_page(tmp_path: Path) -> None:
    stamps: list[Stamp] = [{"world": config.to_dict(SMALL)}, {}]
    with pytest.raises(
        UserError, match=r"several worlds \(small concepts, 32 pixels and quickstart concepts, 64"
    ):
        world_in(stamps)
    assert world_in([{}]).settings == world_in([]).settings == WorldSettings()
