"""A sample as a VLM learns from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from bifocal import inference
from bifocal.commands import tokens
from bifocal.commands.inspect import recipe_of, show_data
from bifocal.commands.tokens import coloured, pieces_of, supervised_count
from bifocal.config import UserError, to_dict
from bifocal.data.batch import Template
from bifocal.data.fitting import Fitting
from bifocal.data.prompts import RATIONALE
from bifocal.data.sample import Box, Message, Picture, Sample, write_samples
from bifocal.data.text import TextTokenizer
from bifocal.recipes.runs import open_run
from bifocal.recipes.vlm import VLMRecipe
from interop.vlms import llava_directory, opened


def model() -> inference.VLM:
    return inference.VLM(tiny.vlm("discrete"), tiny.tokenizer(), "tiny", torch.device("cpu"))


def sample() -> Sample:
    question = Message("user", (Picture(0), "is there an owl? <image>"))
    return Sample(
        "one",
        "vqa",
        "all",
        ("a.png",),
        (question, Message("assistant", ("yes", Box(0.1, 0.1, 0.9, 0.9)))),
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


@pytest.mark.parametrize(
    ("fitting", "wanted"),
    [
        # scaled to 32 x 57 pixels, of which the 12 left ones are cut off; and to 18 x 32, with 7 rows above
        (Fitting("shortest"), (0.0, 0.1, (0.5 * 57 - 12) / 32, 0.9)),
        (Fitting("longest"), (0.1, (7 + 0.1 * 18) / 32, 0.5, (7 + 0.9 * 18) / 32)),
    ],
)
def test_boxes_lie_on_the_pixels_that_the_model_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitting: Fitting, wanted: tuple[float, ...]
) -> None:
    Image.fromarray(np.zeros((50, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    answer = Message("assistant", (Box(0.1, 0.1, 0.5, 0.9),))
    write_samples(
        tmp_path / "samples.jsonl",
        [Sample("one", "grounding", "all", ("a.png",), (sample().messages[0], answer))],
    )
    drawn = []
    monkeypatch.setattr(tokens, "picture_html", lambda *_, boxes, **others: drawn.append(boxes) or "")
    cuts = model()
    cuts.fitting = fitting
    show_data(tmp_path, tmp_path / "page.html", model=cuts)
    ((mark,),) = drawn
    assert mark.box == pytest.approx(wanted)


def test_of_another_tool_s_vlm_all_that_it_is_given_is_shown(tmp_path: Path) -> None:
    llava_directory(tmp_path / "llava")
    vlm = opened(tmp_path / "llava")
    said = (Message("user", (Picture(0), "is there an owl?")), Message("assistant", ("yes",)))
    found = pieces_of(Sample("one", "vqa", "all", ("a.png",), said), vlm.template)
    assert len([piece for piece in found if piece.kind != "picture"]) == len(vlm.prompt(said).tokens) - 16
    text = "".join(piece.text for piece in found if piece.kind == "text")
    assert text.startswith("USER:") and "is there an owl? ASSISTANT: yes" in text
    assert not any(piece.supervised for piece in found)
    with pytest.raises(UserError, match="sample one: this VLM has no tokens for boxes: write a box in words"):
        pieces_of(sample(), vlm.template)


def test_a_box_for_which_there_are_no_tokens_is_one_sentence() -> None:
    words = TextTokenizer.train(tiny.TEXTS * 4, size=300, codes=tiny.CODES, box_bins=0)
    with pytest.raises(UserError, match="sample one: this VLM has no tokens for boxes: write a box in words"):
        pieces_of(sample(), Template(words, picture_positions=16))
