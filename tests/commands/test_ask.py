"""What a terminal shows of an answer while it grows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from bifocal.commands.ask import answer_aloud
from bifocal.inference import VLM


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_what_is_shown_is_the_answer(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = VLM(tiny.vlm(family), tiny.tokenizer(), family, torch.device("cpu"))
    Image.fromarray(tiny.picture(0)).save(tmp_path / "a.png")
    wanted = model.answer(tmp_path / "a.png", "what?", max_new_tokens=12)
    answer = answer_aloud(model, [tmp_path / "a.png"], "what?", max_new_tokens=12)
    assert capsys.readouterr().out.strip() == answer.text == wanted.text
    assert (answer.boxes, answer.finish_reason) == (wanted.boxes, wanted.finish_reason)
    assert answer.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
