"""The whole road at toy size: from nothing to two trained, compared VLMs and a report."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bifocal import artifacts
from bifocal.cli import main, parse
from bifocal.commands import quickstart as road
from bifocal.commands.quickstart import (
    MODELS,
    kept_results,
    questions,
    require_falling_loss,
    seconds_in,
    train_part,
    vlm_recipe,
)
from bifocal.config import UserError
from bifocal.evaluation.answers import OtherAnswers
from bifocal.evaluation.results import read_about, read_results, write_results
from bifocal.recipes.vlm import VLMRecipe, recipe_vlm
from conftest import SmokeRun

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


def test_it_takes_less_than_90_seconds_of_two_cores(smoke_run: SmokeRun) -> None:
    # seconds that the cores worked, not those of the clock: a machine that others use too is not slower by it
    assert smoke_run.core_seconds < 2 * 90


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


@pytest.mark.parametrize("split", road.SPLITS)
def test_questions_are_also_put_with_blank_pictures(rows: list[dict], split: str) -> None:
    main_rows = [row for row in rows if row["split"] == split and row["slice"] == "all"]
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
    assert "CLIP against VQ-VAE" in said and "difference" in said
    assert str(smoke / "report.html") in said.replace("\n", "")
    lines = said.split("try next:")[1].strip().splitlines()
    program = shlex.split(lines[0])[0]
    assert program == sys.executable or shutil.which(program)
    for line, command in zip(lines, ("ask", "draw", "evaluate"), strict=True):
        words = shlex.split(line)
        parse(command, words[words.index(command) + 1 :])


def test_the_minutes_of_a_resumed_quickstart_are_those_of_all_its_starts(smoke: Path) -> None:
    times = json.loads((smoke / "times.json").read_text())
    assert list(times) == [*(f"train {name}" for name in MODELS), "evaluate", "figures"]
    assert all(times[f"train {name}"] >= seconds_in(smoke / name) > 0 for name in MODELS)


@pytest.mark.parametrize(
    ("words", "said"), [(["--smoke", "--seed", "1"], r"train\.seed\)"), ([], "batch_size, .*train.steps")]
)
def test_results_of_another_seed_or_scale_are_not_passed_off_as_these(
    smoke: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    report = (smoke / "report.html").stat().st_mtime_ns
    assert main(["quickstart", *words, "--resume", "--out", str(smoke)]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"vqvae was trained by another recipe \(it differs in {said}", error), error
    assert (smoke / "report.html").stat().st_mtime_ns == report


def test_scores_are_kept_where_model_and_number_of_samples_are_those_of_now(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, about = read_results(smoke / "results.json"), read_about(smoke / "results.json")
    wanted = questions("smoke")
    prints = {stamp["model"]: stamp["model_fingerprint"] for stamp in about}
    assert kept_results(smoke / "results.json", wanted, prints) == (rows, about)
    assert capsys.readouterr().err == ""
    kept, stamps = kept_results(smoke / "results.json", wanted, {**prints, "clip": "of another device"})
    assert kept == [row for row in rows if row.model != "clip"]
    assert stamps == [stamp for stamp in about if stamp["model"] != "clip"]
    assert "are of other models, of these on another device" in capsys.readouterr().err
    more = {**wanted, ("clip", "zero-shot", "test"): 600}
    kept, _ = kept_results(smoke / "results.json", more, prints)
    assert {row.key[:3] for row in rows} - {row.key[:3] for row in kept} == {("clip", "zero-shot", "test")}
    write_results(tmp_path / "results.json", rows)  # as an earlier version did
    assert kept_results(tmp_path / "results.json", wanted, prints) == ([], [])


def test_answers_that_were_begun_on_another_device_are_asked_anew(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in MODELS:
        (tmp_path / name).symlink_to(smoke / name)
    asked: list[tuple[str, bool]] = []

    def ask(run: Path, task: str, *, split: str, restart: bool = False, **_: Any) -> list[Any]:
        asked.append((f"{run.name} {task} {split}", restart))
        if asked[-1] == ("vlm-continuous vqa test", False):
            raise OtherAnswers("begun elsewhere")
        return []

    monkeypatch.setattr(road, "evaluate_command", ask)
    road.evaluate_all(tmp_path, "smoke", world=None, device="cpu")  # type: ignore[arg-type]
    assert len(asked) == len(questions("smoke")) + 1
    assert [each for each, restart in asked if restart] == ["vlm-continuous vqa test"]
    assert "vlm-continuous gave the first answers to vqa on test elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "place"), [([], "runs/quickstart"), (["--smoke"], "runs/smoke")])
def test_each_scale_has_a_place_of_its_own(
    monkeypatch: pytest.MonkeyPatch, words: list[str], place: str
) -> None:
    places: list[Path] = []
    monkeypatch.setattr(road, "quickstart", lambda out, *scale, **settings: places.append(out))
    assert main(["quickstart", *words]) == 0
    assert places == [Path(place)]


def test_a_program_that_no_shell_finds_is_called_by_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert road.called() == f"{sys.executable} -m bifocal"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "bifocal").touch()
    assert road.called() == str(tmp_path / ".venv" / "bin" / "bifocal")
    monkeypatch.chdir(tmp_path)
    assert road.called() == ".venv/bin/bifocal"


def test_at_smoke_scale_a_loss_that_does_not_fall_ends_the_road(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def learn_nothing(name: str, out: Path, *settings: object) -> None:
        for step in range(2):
            artifacts.append_json_line(
                out / name / "log.jsonl", {"phase": "train", "step": step, "loss": 1.0}
            )

    for name in MODELS:
        (tmp_path / "run" / name).mkdir(parents=True)
    monkeypatch.setattr(road, "train_part", learn_nothing)
    assert main(["quickstart", "--smoke", "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "the loss of vqvae did not fall: 1.0000 at first, 1.0000 at last" in capsys.readouterr().err


@pytest.mark.parametrize("losses", [[1.0, 1.0], [1.0, 2.0], [1.0], []])
def test_a_loss_that_does_not_fall_is_an_error(tmp_path: Path, losses: list[float]) -> None:
    (tmp_path / "log.jsonl").touch()
    for step, loss in enumerate(losses):
        artifacts.append_json_line(tmp_path / "log.jsonl", {"phase": "train", "step": step, "loss": loss})
    with pytest.raises(UserError, match="did not fall"):
        require_falling_loss(tmp_path)


def test_a_loss_that_falls_is_none(tmp_path: Path) -> None:
    for step, loss in enumerate([2.0, 3.0, 1.0]):
        artifacts.append_json_line(tmp_path / "log.jsonl", {"phase": "train", "step": step, "loss": loss})
    require_falling_loss(tmp_path)
