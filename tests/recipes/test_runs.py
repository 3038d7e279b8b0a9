"""A run's directory: its recipe says what it began with, and a resumed one must agree."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bifocal.config import UserError
from bifocal.recipes.runs import RECIPE, open_run, refuse_finished_otherwise
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import TrainSettings


@dataclass(frozen=True)
class Recipe:
    steps: int = 10


def test_the_recipe_says_which_run_it_was_begun_with(tmp_path: Path) -> None:
    open_run(tmp_path / "plain", "vlm", Recipe(), resume=False)
    open_run(tmp_path / "tuned", "vlm", Recipe(), resume=False, init_from="runs/plain")
    read = [json.loads((tmp_path / name / RECIPE).read_text()) for name in ("plain", "tuned")]
    assert read == [{"kind": "vlm", "steps": 10}, {"kind": "vlm", "steps": 10, "init_from": "runs/plain"}]


def test_a_run_goes_on_whether_or_not_its_beginning_is_said_again_but_not_from_another(
    tmp_path: Path,
) -> None:
    open_run(tmp_path / "tuned", "vlm", Recipe(), resume=False, init_from="runs/plain")
    for init_from in (None, "runs/plain"):
        open_run(tmp_path / "tuned", "vlm", Recipe(), resume=True, init_from=init_from)
    with pytest.raises(UserError, match="it differs in init_from"):
        open_run(tmp_path / "tuned", "vlm", Recipe(), resume=True, init_from="runs/other")
    open_run(tmp_path / "earlier", "vlm", Recipe(), resume=False)  # by a version that did not write it down
    open_run(tmp_path / "earlier", "vlm", Recipe(), resume=True, init_from="runs/plain")


@dataclass(frozen=True)
class Trained:
    train: TrainSettings = field(default_factory=TrainSettings)


def test_a_run_goes_on_with_other_workers_and_not_with_other_rates(tmp_path: Path) -> None:
    open_run(tmp_path / "run", "vlm", Trained(), resume=False)
    open_run(tmp_path / "run", "vlm", Trained(TrainSettings(workers=2, keep_checkpoints=5)), resume=True)
    other = TrainSettings(optimizer=OptimizerSettings(learning_rate=1.0))
    with pytest.raises(UserError, match=r"it differs in train\.optimizer\.learning_rate\)"):
        open_run(tmp_path / "run", "vlm", Trained(other), resume=True)


@dataclass(frozen=True)
class Standing:
    vision: str = ""
    train: TrainSettings = field(default_factory=TrainSettings)


def test_a_finished_run_stands_for_its_recipe_wherever_it_lies_and_for_no_other(tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(run, "vlm", Standing("before/clip"), resume=False)
    moved = Standing("after/clip", TrainSettings(checkpoint_every=7, workers=2, device="cuda"))
    refuse_finished_otherwise(run, "vlm", moved)
    for seed, kind, said in ((1, "vlm", r"train\.seed"), (0, "clip", "kind")):
        with pytest.raises(UserError, match=rf"trained by another recipe \(it differs in {said}\)"):
            refuse_finished_otherwise(run, kind, Standing("after/clip", TrainSettings(seed=seed)))
    with pytest.raises(UserError, match="does not say by what recipe it was trained"):
        refuse_finished_otherwise(tmp_path / "foreign", "vlm", Standing())
