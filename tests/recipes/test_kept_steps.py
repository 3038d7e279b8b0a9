"""A checkpoint of a finished run opens as the model was then."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
import toys
from bifocal import artifacts, inference
from bifocal.config import UserError
from bifocal.recipes.kept_steps import kept_steps, open_step
from bifocal.training import checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A continuous VLM that kept every other of its four steps."""
    place = tmp_path_factory.mktemp("kept")
    tiny.folder(place / "data")
    starts = toys.starts(place, replace(toys.SETTINGS, keep_checkpoints=1, keep_every=2))
    for name in ("clip", "vlm-continuous"):
        starts[name](place / name)
    return place / "vlm-continuous"


def test_the_last_step_is_the_finished_model(run: Path) -> None:
    finished = inference.load(run, dtype="float32")
    at = open_step(run, toys.STEPS, dtype="float32")
    assert at.model.fingerprint == finished.fingerprint
    assert (at.name, at.step) == ("vlm-continuous-step-4", toys.STEPS)


def test_on_the_way_what_learns_is_as_it_was_and_what_is_frozen_as_it_stays(run: Path) -> None:
    assert kept_steps(run) == [2, 4]
    weights, last = (open_step(run, step, dtype="float32").model.model.state_dict() for step in (2, 4))
    saved = checkpoint.load_step(run / "checkpoints" / "step-2").model_tensors
    changed = {name for name, value in last.items() if not torch.equal(weights[name], value)}
    assert changed and changed <= saved.keys()
    assert all(torch.equal(weights[name], value) for name, value in saved.items() if name in weights)
    assert not any(name.startswith("image_path.vision_model") for name in changed)


def test_it_knows_how_long_training_had_taken(run: Path) -> None:
    logged = {row["step"]: row["seconds"] for row in artifacts.read_json_lines(run / "log.jsonl")}
    # it was saved behind the row of its step and before the next; the log has hundredths
    assert logged[2] - 0.01 <= open_step(run, 2).seconds <= logged[3] + 0.01


def test_a_step_that_was_not_kept_is_an_error(run: Path) -> None:
    with pytest.raises(UserError, match="step-3"):
        open_step(run, 3)


def test_weights_that_the_finished_model_does_not_have_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    lora = {"language_model.layers.0.self_attn.q_proj.lora_a": torch.zeros(2, 2)}
    state = {"seconds": 1.0}
    checkpoint.save(tmp_path / "run" / "checkpoints", 9, model_tensors=lora, trainer_tensors={}, state=state)
    with pytest.raises(
        UserError, match=r"has language_model\.layers\.0\.self_attn\.q_proj\.lora_a, which the"
    ):
        open_step(tmp_path / "run", 9)
