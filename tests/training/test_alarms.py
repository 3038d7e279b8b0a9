"""Alarms about a codebook: when they ring, what they say, and that a run's log and screen show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bifocal.models.quantize import QuantizerConfig
from bifocal.training.alarms import CodebookAlarms
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import TrainSettings, train

GOOD = {"usage": 0.6, "perplexity": 200.0, "reconstruction": 0.01, "codebook": 0.1, "commitment": 0.1}


def watched(
    *windows: dict[str, float], ema: bool = False, places: int = 1024, **settings: Any
) -> list[list[str]]:
    settings = {"codes": 512, "update": "ema" if ema else "gradient", **settings}
    alarms = CodebookAlarms(QuantizerConfig(**settings), places)
    return [alarms(step, {**GOOD, **window}) for step, window in enumerate(windows)]


def test_a_healthy_run_is_quiet() -> None:
    assert watched(*[{}] * 10) == [[]] * 10


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"usage": 0.02, "perplexity": 8.0}, "chooses 10 of 512 codes"),
        ({"perplexity": 8.0}, "perplexity 8.0 of 512"),
        ({"reconstruction": 0.2}, "the reconstruction term is 0.2, its median so far 0.01"),
        ({"codebook": 5.0}, "the codebook term is 5"),
        ({"commitment": 5.0}, "the commitment term is 5"),
    ],
)
def test_each_trouble_is_named_once_while_it_lasts(bad: dict[str, float], words: str) -> None:
    said = watched(*[{}] * 5, bad, bad, {}, bad)
    assert [len(sentences) for sentences in said] == [0] * 5 + [1, 0, 0, 1]
    assert words in said[5][0]


COLLAPSE, FEW, FALLEN = {"usage": 0.02, "perplexity": 8.0}, {"perplexity": 8.0}, {"usage": 0.12}


@pytest.mark.parametrize(
    ("settings", "works", "does_not"),
    [
        ({}, ("restart_after", "normalise", "width"), ("levels",)),
        ({"normalise": True}, ("restart_after", "width"), ("levels", "normalise")),
        ({"kind": "residual", "depth": 2}, ("restart_after", "width"), ("levels", "normalise")),
        ({"kind": "simvq"}, ("width",), ("levels", "normalise", "restart_after")),
        (
            {"kind": "fsq", "levels": (8, 8, 8), "width": 3},
            ("levels",),
            ("width", "normalise", "restart_after", "beta"),
        ),
    ],
)
def test_only_what_this_kind_of_quantizer_looks_at_is_recommended(
    settings: dict[str, Any], works: tuple[str, ...], does_not: tuple[str, ...]
) -> None:
    said = " ".join(watched(*[{}] * 5, bad, **settings)[5][0] for bad in (COLLAPSE, FEW, FALLEN))
    assert all(f"quantizer.{name}" in said for name in works)
    assert not any(f"quantizer.{name}" in said for name in does_not)
    assert "lower the learning rate" in said


def test_a_fall_is_named_though_what_is_left_would_do() -> None:
    assert "usage of the codebook has fallen to 0.12" in watched(*[{}] * 5, {"usage": 0.12})[5][0]
    assert "perplexity of the codebook has fallen to 40" in watched(*[{}] * 5, {"perplexity": 40.0})[5][0]


def test_a_likelihood_below_zero_can_explode_too() -> None:
    assert (
        "the reconstruction term is 500"
        in watched(*[{"reconstruction": -1.0}] * 5, {"reconstruction": 500.0})[5][0]
    )
    assert watched(*[{"reconstruction": -1.0}] * 5, {"reconstruction": 2.0})[5] == []


def test_a_slow_flight_from_the_averages_is_seen() -> None:
    growing = [{"commitment": 0.1 * 1.12**window} for window in range(12)]
    said = watched(*growing, ema=True)
    assert [len(sentences) for sentences in said] == [0] * 8 + [1, 0, 0, 0]
    assert "grew in each of the last 8 windows, from 0.1 to 0.248" in said[8][0]
    assert watched(*growing, ema=False) == [[]] * 12  # a gradient pulls the codes after the encoder


def test_an_average_that_the_encoder_outruns_is_called_so() -> None:
    assert "faster than their averages follow" in watched(*[{}] * 5, {"commitment": 5.0}, ema=True)[5][0]


def test_a_small_batch_cannot_use_a_large_codebook_and_is_not_blamed() -> None:
    assert watched(*[{"usage": 0.05, "perplexity": 20.0}] * 6, places=40) == [[]] * 6


def test_the_first_windows_are_not_judged() -> None:
    assert watched({"usage": 0.002, "perplexity": 1.0}, {"usage": 0.002, "perplexity": 1.0}) == [[], []]


class Line(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def loss(self, batch: Tensor) -> tuple[Tensor, int, dict[str, float]]:
        return (self.weight * batch).square().sum(), len(batch), {}


def test_a_sentence_stands_in_the_log_and_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TrainSettings(steps=4, log_every=2, optimizer=OptimizerSettings(warmup_steps=1))
    train(
        Line(),
        settings,
        lambda step: torch.ones(3),
        tmp_path,
        samples_per_step=3,
        watch=lambda step, figures: ["all is lost"] if step == 2 else [],
    )
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["message"]) for row in rows if row["phase"] == "alarm"] == [(2, "all is lost")]
    assert "step 2: all is lost" in " ".join(capsys.readouterr().err.split())
