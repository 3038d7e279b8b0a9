"""Recipes by name: what a run that is begun with another cannot change."""

from __future__ import annotations

import re

import pytest

from bifocal.config import UserError
from bifocal.recipes.named import recipe_named


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ("vlm", "text_tokens"),
        ("vlm", "box_bins"),
        ("vlm-smollm", "box_bins"),
        ("parti", "text_tokens"),
    ],
)
def test_what_the_words_of_another_run_decide_is_refused_beside_it(model: str, setting: str) -> None:
    flag = f"--{setting.replace('_', '-')}"
    said = f"{flag} would change nothing: the words are those of runs/other (--init-from), so leave it out"
    with pytest.raises(UserError, match=re.escape(said)):
        recipe_named(model, "smoke", {setting: "500"}, vision="eyes", init_from="runs/other")
    assert recipe_named(model, "smoke", {}, vision="eyes", init_from="runs/other")
    if model != "vlm-smollm" or setting == "box_bins":
        assert getattr(recipe_named(model, "smoke", {setting: "500"}, vision="eyes"), setting) == 500
