"""The whole road at toy size: from nothing to two trained, compared VLMs and a report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bifocal import artifacts
from bifocal.cli import main
from bifocal.commands import quickstart as road
from bifocal.commands.quickstart import MODELS, require_falling_loss, train_part, vlm_recipe
from bifocal.config import UserError
from bifocal.recipes.vlm import VLMRecipe, recipe_vlm

FIELDS = [
    "model", "task", "split", "slice", "metric", "variant", "value", "low", "high", "n", "baseline", "blank",
    "unparsed", "truncated", "failed",
]  # fmt: skip
READING = ("captioning", "vqa", "grounding", "reasoning")
TASKS = {
    "vqvae": {"reconstruction"},
    "clip": {"zero-shot", "retrieval"},
    "vlm-continuous": {*READING},
    "vlm-discrete": {*READING, "text-to-image"},
}


@pytest.fixture(scope="module")
def rows(smoke: Path) -> list[dict]:
    return json.loads((smoke / "results.json").read_text())["results"]


def test_every_model_is_finished(smoke: Path) -> None:
    for name in MODELS:
        about = "open_clip_config.json" if name == "clip" else "config.json"
        assert {about, "model.safetensors", "recipe.json", "log.jsonl", "checkpoints"} <= {
            path.name for path in (smoke / name).iterdir()
        }


def test_every_loss_falls(smoke: Path) -> None:
    for name in MODELS:
        require_falling_loss(smoke / name)


@pytest.mark.parametrize("family", ["continuous", "discrete"])
def test_checkpoints_on_the_way_change_nothing_that_is_learnt(family: Any) -> None:
    plain, kept = (vlm_recipe(f"vlm-{family}", Path("runs"), "quickstart", {}, count) for count in (0, 10))
    assert plain.train == recipe_vlm("quickstart", family).train
    every = plain.train.steps // 10
    assert kept == replace(plain, train=replace(plain.train, checkpoint_every=every, keep_every=every))


def test_as_many_checkpoints_as_are_asked_for_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[VLMRecipe] = []
    monkeypatch.setattr(road, "train_vlm", lambda recipe, place, resume: trained.append(recipe))
    train_part("vlm-discrete", tmp_path, "smoke", {"seed": 3}, vlm_checkpoints=4)
    (train,) = [recipe.train for recipe in trained]
    assert (train.steps, train.keep_every, train.checkpoint_every, train.seed) == (24, 6, 6, 3)


def test_more_checkpoints_than_steps_are_refused() -> None:
    with pytest.raises(UserError, match="vlm-discrete has 24 steps, after 25 of which it cannot be kept"):
        vlm_recipe("vlm-discrete", Path("runs"), "smoke", {}, 25)


def test_every_model_is_scored_on_every_task_of_its_kind(rows: list[dict]) -> None:
    for split in ("test", "test-novel-pairs", "test-novel-concepts"):
        for model, tasks in TASKS.items():
            scored = {row["task"] for row in rows if row["model"] == model and row["split"] == split}
            # a single object is no pair, so zero-shot has no novel pairs
            assert scored == tasks - ({"zero-shot"} if split == "test-novel-pairs" else set()), (model, split)


def test_rows_have_the_documented_fields(rows: list[dict]) -> None:
    assert all(list(row) == FIELDS for row in rows)


def test_intervals_hold_their_value(rows: list[dict]) -> None:
    bounded = [row for row in rows if None not in (row["low"], row["high"], row["value"])]
    assert len(bounded) > 100
    for row in bounded:
        assert row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9, row


def test_questions_on_the_test_split_are_also_put_with_blank_pictures(rows: list[dict]) -> None:
    main_rows = [row for row in rows if row["split"] == "test" and row["slice"] == "all"]
    for task in ("vqa", "reasoning"):
        some = [row for row in main_rows if row["task"] == task and row["metric"] == "accuracy"]
        assert len({row["model"] for row in some}) == 2
        assert all(row["blank"] is not None and row["baseline"] is not None for row in some)


def test_predictions_are_kept(smoke: Path) -> None:
    for model, tasks in TASKS.items():
        kept = {path.name.split(".")[0] for path in (smoke / "predictions" / model).glob("*.jsonl")}
        assert tasks - {"reconstruction"} <= kept


class Links(HTMLParser):
    """Everything that a browser would load for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pictures += tag in ("img", "svg")
        for name, value in attrs:
            if name in ("src", "srcset", "poster", "data") or (name == "href" and tag != "a"):
                self.loaded.append(value or "")


def test_the_report_is_one_file(smoke: Path) -> None:
    text = (smoke / "report.html").read_text(encoding="utf-8")
    page = Links()
    page.feed(text)
    assert page.pictures > 20
    assert [link for link in page.loaded if not link.startswith(("data:", "#"))] == []
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", text)


def test_the_report_speaks_of_every_model(smoke: Path) -> None:
    text = (smoke / "report.html").read_text(encoding="utf-8")
    assert all(name in text for name in MODELS)


def test_a_finished_quickstart_resumes_into_itself(smoke: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (smoke / name / "model.safetensors").read_bytes() for name in MODELS}
    results = (smoke / "results.json").read_bytes()
    assert main(["quickstart", "--smoke", "--resume", "--out", str(smoke)]) == 0
    assert {name: (smoke / name / "model.safetensors").read_bytes() for name in MODELS} == before
    assert (smoke / "results.json").read_bytes() == results
    said = capsys.readouterr().out
    assert str(smoke / "report.html") in said.replace("\n", "")
    assert all(f"bifocal {command} " in said for command in ("ask", "draw", "evaluate"))


@pytest.mark.parametrize("losses", [[1.0, 1.0], [1.0, 2.0], [1.0]])
def test_a_loss_that_does_not_fall_is_an_error(tmp_path: Path, losses: list[float]) -> None:
    for step, loss in enumerate(losses):
        artifacts.append_json_line(tmp_path / "log.jsonl", {"phase": "train", "step": step, "loss": loss})
    with pytest.raises(UserError, match="did not fall"):
        require_falling_loss(tmp_path)


def test_a_loss_that_falls_is_none(tmp_path: Path) -> None:
    for step, loss in enumerate([2.0, 3.0, 1.0]):
        artifacts.append_json_line(tmp_path / "log.jsonl", {"phase": "train", "step": step, "loss": loss})
    require_falling_loss(tmp_path)
