"""A sample as a VLM learns from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from bifocal import inference
from bifocal.commands.inspect import recipe_of, show_data
from bifocal.commands.tokens import coloured, pieces_of, supervised_count
from bifocal.config import to_dict
from bifocal.data.prompts import RATIONALE
from bifocal.data.sample import Message, Picture, Sample, write_samples
from bifocal.recipes.runs import open_run
from bifocal.recipes.vlm import VLMRecipe


def model() -> inference.VLM:
    return inference.VLM(tiny.vlm("discrete"), tiny.tokenizer(), "tiny", torch.device("cpu"))


def sample() -> Sample:
    question = Message("user", (Picture(0), "is there an owl? <image>"))
    return Sample(
        "one",
        "vqa",
        "all",
        ("a.png",),
        (question, Message("assistant", ("yes", (0.1, 0.1, 0.9, 0.9)))),
        ("yes",),
    )


def test_the_answer_and_its_end_are_supervised_and_nothing_else() -> None:
    found = pieces_of(sample(), model().template)
    learnt = [piece for piece in found if piece.supervised]
    assert "".join(piece.text for piece in learnt if piece.kind == "text").strip() == "yes"
    assert [piece.kind for piece in learnt][-5:] == ["box", "box", "box", "box", "control"]
    assert learnt[-1].text == "</s>"
    given = "".join(piece.text for piece in found if not piece.supervised and piece.kind == "text")
    assert given.strip() == "is there an owl? <image>"  # what a user types stays text
    assert [piece.text for piece in found if piece.kind == "picture"] == ["picture 1: 16 positions"]
    assert supervised_count(found).startswith(f"{len(learnt)} of ")


def test_in_a_terminal_the_supervised_tokens_are_green() -> None:
    found = pieces_of(sample(), model().template)
    line = coloured(found)
    green = "".join(line.plain[span.start : span.end] for span in line.spans if "green" in str(span.style))
    assert green == "".join(piece.text for piece in found if piece.supervised)


def test_the_page_shows_pictures_as_they_are_seen(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((50, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    write_samples(tmp_path / "samples.jsonl", [sample()])
    show_data(tmp_path, tmp_path / "page.html", model=model())
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a.png, as seen: 32 x 32" in html
    assert html.count('<span class="learnt">') == 1


@pytest.mark.parametrize("rationales", [True, False])
def test_answers_are_shown_in_the_words_that_the_run_was_taught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rationales: bool
) -> None:
    Image.fromarray(np.zeros((50, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    said = (
        Message("user", (Picture(0), "there is one owl. true or false?")),
        Message("assistant", ("false",)),
    )
    judged = Sample("one", "reasoning", "single", ("a.png",), said, ("false",), {RATIONALE: "two"})
    write_samples(tmp_path / "samples.jsonl", [judged])
    recipe = VLMRecipe(rationales=rationales)
    open_run(tmp_path / "run", "vlm", recipe, resume=False, init_from="runs/other")
    found = recipe_of(tmp_path / "run")
    assert found is not None and to_dict(found) == to_dict(recipe)
    show_data(tmp_path, tmp_path / "page.html", model=model(), recipe=found)
    assert ("two: false" in capsys.readouterr().out) is rationales


def test_a_directory_of_another_library_has_no_recipe(tmp_path: Path) -> None:
    assert recipe_of(tmp_path) is None
