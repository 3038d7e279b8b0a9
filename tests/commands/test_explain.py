"""The page of `bifocal ask --explain`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from bifocal import inference
from bifocal.commands.explain import heated, write_explanation


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a<b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def page_of(family: str, picture: Path, out: Path) -> str:
    model = inference.VLM(tiny.vlm(family), tiny.tokenizer(), family, torch.device("cpu"))
    explanation = model.explain([picture], "is <b> there?", max_new_tokens=5)
    write_explanation(out, explanation, [picture], "is <b> there?", model.name)
    return out.read_text(encoding="utf-8")


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_the_page_is_complete_in_itself(family: str, picture: Path, tmp_path: Path) -> None:
    html = page_of(family, picture, tmp_path / "page.html")
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(|@import|https?://", html)
    assert "is &lt;b&gt; there?" in html and "is <b>" not in html
    assert "a&lt;b.png" in html
    assert ("What it saw" in html) == (family == "discrete")


def test_the_hottest_place_is_coloured_and_a_cold_one_is_grey() -> None:
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[:] = (0, 0, 250)
    shown = heated(picture, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    hot, cold = shown[4, 4].astype(int), shown[60, 60].astype(int)
    assert hot[0] > hot[2]  # orange over blue
    assert cold.max() == cold.min()
