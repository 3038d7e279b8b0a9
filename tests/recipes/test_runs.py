"""A run's directory: its recipe says what it began with, and a resumed one must agree."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from bifocal.config import UserError
from bifocal.recipes.runs import RECIPE, open_run


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
