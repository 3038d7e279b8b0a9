"""Stages of a VLM's training: what is asked when."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from bifocal import config
from bifocal.config import UserError
from bifocal.data.batch import Template
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.recipes.curriculum import Stage, TaskWeights, scene_stages, stage_at
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.packing import Packer
from bifocal.recipes.sources import SceneSource
from bifocal.recipes.vlm import VLMRecipe, recipe_vlm
from bifocal.training.trainer import TrainSettings

TASKS = TaskWeights().reading()


@pytest.fixture(scope="module")
def scenes() -> SceneSource:
    return SceneSource(WorldSettings(), 200)


def slices(source: SceneSource, kinds: dict[str, float]) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(60):
        samples = source.document("train", number, random.Random(number), TASKS, kinds)
        found.update(sample.slice for sample in samples)
    return found


def test_a_step_belongs_to_the_first_stage_that_has_not_ended() -> None:
    stages = (Stage(0.4, TaskWeights(vqa=1)), Stage(1.0, TaskWeights(vqa=2)))
    found = [stage_at(stages, step, 10) for step in (0, 3, 4, 9)]
    assert [stage.tasks.vqa for stage in found if stage is not None] == [1, 1, 2, 2]
    assert stage_at(stages[:1], 4, 10) is None
    assert stage_at((), 0, 10) is None


def test_the_stages_for_scenes_end_with_the_training_and_ask_for_kinds_that_there_are(
    scenes: SceneSource,
) -> None:
    ends = [stage.until for stage in scene_stages(0.4, 0.85)]
    assert ends == sorted(set(ends)) and ends[-1] == 1
    for stage in scene_stages(0.4, 0.85):
        assert scenes.document("train", 0, random.Random(0), stage.tasks.reading(), stage.kinds)
    found, *later = zip(scene_stages(0.4, 0.85), scene_stages(0.4, 0.85, captions=2), strict=True)
    assert found[0] == found[1]
    for some, more in later:
        assert more == replace(some, tasks=replace(some.tasks, captioning=2 * some.tasks.captioning))


@pytest.mark.parametrize(
    ("until", "tasks", "kinds", "says"),
    [
        (0.0, TaskWeights(), {}, "above 0 and at most 1"),
        (1.5, TaskWeights(), {}, "above 0 and at most 1"),
        (1.0, TaskWeights(0, 0, 0, 0), {}, "needs a task that reads"),
        (1.0, TaskWeights(), {"exists": 0.0}, "exists has 0.0"),
    ],
)
def test_an_impossible_stage_is_refused(
    until: float, tasks: TaskWeights, kinds: dict[str, float], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Stage(until, tasks, kinds)


def test_a_favoured_kind_comes_more_often_and_the_others_still_come(scenes: SceneSource) -> None:
    plain, favoured = slices(scenes, {}), slices(scenes, {"exists": 10})
    assert favoured["exists"] > 3 * plain["exists"]
    assert favoured.keys() == plain.keys()


def test_what_is_told_of_a_picture_has_kinds_too(scenes: SceneSource) -> None:
    def first(kinds: dict[str, float]) -> Counter[str]:
        told = [
            scenes.document("train", number, random.Random(number), {"captioning": 1.0}, kinds)[0]
            for number in range(200)
        ]
        return Counter(sample.slice for sample in told)

    plain, rare = first({}), first({"list": 0.01})
    assert plain.keys() == {"caption", "list", "place"}
    # 45 of 100, and less than one
    assert 60 < plain["list"] < 120
    assert rare["list"] < 10 and rare["place"] > plain["place"]


def test_an_unknown_kind_of_question_is_refused_with_those_there_are(scenes: SceneSource) -> None:
    with pytest.raises(UserError, match=r'no kind "exist" of question about scenes; choose from .*exists'):
        slices(scenes, {"exist": 10})


def test_a_folder_draws_favoured_slices_first(tmp_path: Path) -> None:
    asked = [{"type": "image"}, {"type": "text", "text": "what?"}]
    rows = [
        {
            "id": f"{number}",
            "task": "vqa",
            "slice": "rare" if number == 0 else "plain",
            "pictures": ["a.png"],
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "owl"}],
        }
        for number in range(20)
    ]
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FolderSource(tmp_path, 64)

    def first(kinds: dict[str, float]) -> int:
        drawn = [source.document("train", 0, random.Random(seed), {"vqa": 1.0}, kinds) for seed in range(100)]
        assert all(len(samples) == 20 for samples in drawn)
        return sum(samples[0].slice == "rare" for samples in drawn)

    assert first({}) < 20
    assert first({"rare": 1000.0}) > 80


def test_stages_survive_the_file_that_a_recipe_is_written_to() -> None:
    recipe = recipe_vlm("quickstart")
    assert recipe.stages == scene_stages(0.35, 0.7, captions=2)
    written = json.loads(json.dumps(config.to_dict(recipe)))
    assert config.from_dict(VLMRecipe, written) == recipe


def test_training_rows_follow_the_stage_and_validation_rows_do_not(scenes: SceneSource) -> None:
    class Store:
        def get(self, keys: list[str]) -> torch.Tensor:
            return torch.zeros(len(keys), 4, 2)

    tokenizer = TextTokenizer.train(scenes.texts()[:2000], size=400, box_bins=64)
    boxes_only = Stage(0.5, TaskWeights(captioning=0, vqa=0, grounding=1, reasoning=0))
    recipe = VLMRecipe(batch_size=4, row_length=128, train=TrainSettings(steps=10))

    def answers(stages: tuple[Stage, ...], split: str, step: int) -> list[int]:
        stores = {"train": Store(), "validation": Store()}
        packer = Packer(replace(recipe, stages=stages), scenes, Template(tokenizer, 4), stores)  # type: ignore[arg-type]
        rows = packer.rows(split, step, 4)
        return rows.tokens[rows.supervised].tolist()

    def boxes(tokens: list[int]) -> float:
        return sum(token in tokenizer.boxes for token in tokens) / len(tokens)

    assert boxes(answers((boxes_only,), "train", 4)) > 0.6
    assert boxes(answers((boxes_only,), "train", 5)) < 0.6
    assert answers((boxes_only,), "validation", 0) == answers((), "validation", 0)
