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
from bifocal.data.fitting import WHOLE, Fitting, seen_part
from bifocal.data.sample import Box


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a<b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def page_of(family: str, picture: Path, out: Path, fitting: Fitting = WHOLE) -> str:
    model = inference.VLM(tiny.vlm(family), tiny.tokenizer(), family, torch.device("cpu"))
    model.fitting = fitting
    explanation = model.explain([picture], "is <b> there?", max_new_tokens=5)
    write_explanation(out, explanation, [picture], "is <b> there?", model)
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
    shown = heated(picture, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), Box(0, 0, 1, 1))
    hot, cold = shown[4, 4].astype(int), shown[60, 60].astype(int)
    assert hot[0] > hot[2]  # orange over blue
    assert cold.max() == cold.min()


def test_attention_lies_over_the_part_that_the_model_saw() -> None:
    picture = np.full((40, 80, 3), (0, 0, 250), dtype=np.uint8)
    cut = heated(picture, torch.ones(4, 4), seen_part(picture, 32, Fitting("shortest")))
    coloured = cut.max(axis=2) != cut.min(axis=2)
    assert coloured[:, 20:60].all() and not coloured[:, :20].any() and not coloured[:, 60:].any()
    # of a square that is filled up, its two upper and two lower rows lie outside the picture
    cells = torch.tensor([[1.0], [1.0], [0.0], [0.0]]).expand(4, 4)
    filled = heated(picture, cells, seen_part(picture, 32, Fitting("longest")))
    assert (filled[4, :, 0] > filled[4, :, 2]).all()
    assert (filled[36].max(axis=1) == filled[36].min(axis=1)).all()


def test_the_page_says_where_a_model_that_cuts_pictures_did_not_look(picture: Path, tmp_path: Path) -> None:
    said = "sees the middle of a picture"
    assert said in page_of("continuous", picture, tmp_path / "cut.html", Fitting("shortest"))
    assert said not in page_of("continuous", picture, tmp_path / "filled.html", Fitting("longest"))
