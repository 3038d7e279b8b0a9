"""`bifocal ask`: what a terminal shows of an answer while it grows, and the settings of an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from bifocal.cli import main
from bifocal.commands.ask import answer_aloud
from bifocal.inference import VLM, load, save


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_what_is_shown_is_the_answer(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = VLM(tiny.vlm(family), tiny.tokenizer(), family, torch.device("cpu"))
    Image.fromarray(tiny.picture(0)).save(tmp_path / "a.png")
    wanted = model.answer(tmp_path / "a.png", "what?", max_new_tokens=12)
    answer = answer_aloud(model, [tmp_path / "a.png"], "what?", max_new_tokens=12)
    assert capsys.readouterr().out.strip() == answer.text == wanted.text
    assert (answer.boxes, answer.finish_reason) == (wanted.boxes, wanted.finish_reason)
    assert answer.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    save(place, tiny.vlm("continuous"), tiny.tokenizer())
    Image.fromarray(tiny.picture(0)).save(place / "a.png")
    return place


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 3},
        {"top_p": 0.1},
        {"stop": ("e", "o")},
        {"top_k": 5, "top_p": 0.8, "stop": ("zz",), "seed": 3},
    ],
)
def test_the_settings_of_an_answer_are_those_of_the_command(
    run: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, object]
) -> None:
    words = ["--temperature", "1.5", "--max-new-tokens", "16"]
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    assert main(["ask", str(run), str(run / "a.png"), "what?", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    vlm = load(run)
    assert isinstance(vlm, VLM)
    wanted = vlm.answer(run / "a.png", "what?", temperature=1.5, max_new_tokens=16, **settings)  # type: ignore[call-overload]
    plain = vlm.answer(run / "a.png", "what?", temperature=1.5, max_new_tokens=16)
    assert (found["text"], found["finish_reason"]) == (wanted.text, wanted.finish_reason)
    assert found["text"] != plain.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stop", ""], "stop must be a list of texts that are not empty"),
        (["--top-p", "2"], "top_p must be above 0 and at most 1"),
        (["--stop", "x", "--explain", "page.html"], "--explain is about every word up to the end"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["ask", str(run), str(run / "a.png"), "what?", *words]) == 2
    assert message in capsys.readouterr().err
