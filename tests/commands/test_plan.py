"""`bifocal plan` as it is called: JSON, a plot, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bifocal.cli import main


def test_a_plan_as_json_and_as_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plots" / "plan.png"
    words = [
        "plan",
        "prior",
        "--smoke",
        "--machines",
        "l4,8xh100@2",
        "--steps",
        "50",
        "-o",
        str(plot),
        "--json",
    ]
    assert main([*words, "--batch-size", "32"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["recipe"], said["steps"], said["batch_size"]) == ("prior, smoke", 50, 32)
    assert [row["name"] for row in said["machines"]] == ["l4", "8xh100"]
    assert said["machines"][1]["batch"] == 4 and said["machines"][1]["cost"] > 0
    assert said["calibration"] is None and said["flops_per_sample"] > 0
    assert {"weights", "masters", "peak"} <= said["machines"][0]["memory"].keys()
    assert Image.open(plot).size[0] > 500


def test_a_plan_without_this_machine_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "prior", "--smoke", "--machines", "rtx4090"]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA Ada architecture paper" in out and "cpu is this machine" not in out
    assert "language_model" in out and "answering keeps" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--machines", "8xtpu"], "choose cpu (this machine) or one of a100, h100, h200, l4, rtx4090"),
        (["--machines", ","], "--machines names no machine"),
        (["--batch-sise", "3"], "did you mean 'batch_size'?"),
        (["--family", "discrete"], "--family is for vlm, not for prior"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "prior", "--smoke", *words]) == 2
    assert said in capsys.readouterr().err
