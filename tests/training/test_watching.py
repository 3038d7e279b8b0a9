"""Who watches a run is told its figures and shown its samples; who is not there is refused in words."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from bifocal.config import UserError, apply_overrides
from bifocal.training.guards import Stopped
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import TrainSettings, train
from bifocal.training.watching import Shown, open_tracker, require_tracker


class Point(nn.Module):
    """One weight, which is drawn to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def loss(self, batch: float) -> tuple[Tensor, int, dict[str, float]]:
        return (self.weight * batch).square().sum(), 2, {}


OWN = """
class Run:
    def __init__(self, out, recipe):
        self.file = out / "told.txt"
        self.file.write_text(f"{recipe}\\n")
    def log(self, figures, step):
        self.file.open("a").write(f"{step} {sorted(figures)}\\n")
    def finish(self):
        self.file.open("a").write("over\\n")

begin = Run

def nothing(out, recipe):
    return None
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tracker.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def run(out: Path, **more: Any) -> None:
    settings = TrainSettings(
        steps=2, log_every=1, dtype="float32", optimizer=OptimizerSettings(warmup_steps=1),
        tracker=more.pop("tracker", ""), validate_every=more.pop("validate_every", 200),
    )  # fmt: skip
    train(Point(), settings, lambda step: 1.0, out, samples_per_step=1, **more)


@pytest.mark.usefixtures("own")
def test_a_tracker_of_ones_own_is_told_everything_and_when_it_is_over(tmp_path: Path) -> None:
    run(
        tmp_path / "run",
        tracker="own_tracker:begin",
        about={"recipe": {"batch_size": 3}},
        validation=lambda: {"loss": 0.5},
    )
    recipe, *told, over = (tmp_path / "run" / "told.txt").read_text().splitlines()
    assert recipe == "{'batch_size': 3}" and over == "over"
    assert [line.split()[0] for line in told] == ["1", "2", "2"]
    assert "train/loss" in told[0] and "train/waiting" in told[0] and told[2] == "2 ['validation/loss']"


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("how", ["stops", "fails"])
def test_a_tracker_is_told_that_it_is_over_however_a_run_ends(tmp_path: Path, how: str) -> None:
    def probe(step: int) -> None:
        if how == "fails":
            raise ZeroDivisionError
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped if how == "stops" else ZeroDivisionError):
        run(tmp_path / "run", tracker="own_tracker:begin", probes={"ends": probe}, validate_every=1)
    assert (tmp_path / "run" / "told.txt").read_text().splitlines()[-1] == "over"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights", "there is no tracker 'weights': choose wandb, trackio or module:function"),
        ("no_such_module:begin", "needs the module no_such_module, which is not installed"),
        ("wandb", r"needs the module wandb, which is not installed \(pip install wandb\)"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_anything_begins(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if module == "wandb" else find(module)
    )
    with pytest.raises(UserError, match=said):
        apply_overrides(TrainSettings(), {"tracker": name})


@pytest.mark.usefixtures("own")
def test_a_function_that_makes_no_tracker_is_refused(tmp_path: Path) -> None:
    require_tracker("own_tracker:nothing")
    with pytest.raises(UserError, match=r"must return something with log\(figures, step\) and finish"):
        open_tracker("own_tracker:nothing", tmp_path, {})
    with pytest.raises(UserError, match="has no function missing"):
        open_tracker("own_tracker:missing", tmp_path, {})


def test_what_a_probe_shows_is_kept_in_the_run_and_in_tensorboard(tmp_path: Path) -> None:
    sheet = np.full((4, 6, 3), 200, np.uint8)

    def probe(step: int) -> Shown:
        return Shown(sheet, [{"question": "how many?", "answer": str(step)}])

    run(tmp_path, probes={"answers": probe, "silent": lambda step: None})
    samples = tmp_path / "samples"
    assert {path.name for path in samples.iterdir()} == {"answers-step-2.png", "answers-step-2.jsonl"}
    assert np.array_equal(np.asarray(Image.open(samples / "answers-step-2.png")), sheet)
    assert json.loads((samples / "answers-step-2.jsonl").read_text())["answer"] == "2"
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["images"] == ["answers"]
    assert "train/waiting" in board.Tags()["scalars"]
