"""What benchmarks/vlm_step.py compares is the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from bifocal.recipes.vlm import recipe_vlm
from bifocal.training.trainer import TrainSettings
from scripts import benchmark


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, Any]]:
    """vlm_step's script, and a tiny setting of it in which the tower is trained."""
    with benchmark("vlm_step") as module:
        place = tmp_path_factory.mktemp("vlm_step")
        module.prepare(place / "data", pictures=12, questions=4, seed=0)
        sizes = replace(recipe_vlm("smoke"), batch_size=2, train_vision=True)
        yield module, module.set_up(place / "data", module.recipe_of(sizes, TrainSettings(steps=2)), place)[0]


def test_a_step_of_llava_learns_what_a_step_of_ours_does(sides: tuple[ModuleType, Any]) -> None:
    module, setting = sides
    theirs = module.Theirs(setting, "eager", rounded=False)
    module.require_equal(setting, theirs)
    conversations = setting.conversations(0)
    assert len({sample.pictures for sample in conversations}) < len(conversations)
    loss = theirs.model(**theirs.batch(conversations)).loss.item()
    ours = module.contestants(setting, compiled=False, piece=0)
    for name in ("bifocal", "bifocal, a picture for each question"):
        total, count, _ = copy.deepcopy(setting.start).loss(ours[name]().rows(0))
        # float32 on both sides, sums in another order
        assert total.item() / count == pytest.approx(loss, rel=1e-5)


def test_what_llava_has_learnt_is_looked_at_in_our_model(sides: tuple[ModuleType, Any]) -> None:
    module, setting = sides
    theirs = module.Theirs(setting, "sdpa", rounded=False)
    weight = theirs.model.lm_head.weight
    with torch.no_grad():
        weight.mul_(2)
    learnt, start = theirs.trained().state_dict(), setting.start.state_dict()
    changed = [name for name, value in start.items() if not torch.equal(learnt[name], value)]
    assert changed == ["language_model.lm_head.weight"]


def test_a_row_of_the_table_of_steps_is_measured_by_ours() -> None:
    with benchmark("vlm_step") as module:
        timings = {
            "transformers": module.Timing(7.0, [0.02, 0.02, 0.03], [0.1, 0.1, 0.1]),
            "bifocal": module.Timing(7.0, [0.005], [0.5]),
        }
        lines = module.table_of(timings)
    assert lines[2:] == [
        "| bifocal | 200 | 200 to 200 | 1.00 | 50% | 7.000 |",
        "| transformers | 50 | 33 to 50 | 4.00 | 10% | 7.000 |",
    ]
