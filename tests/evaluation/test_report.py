"""The report: every part of it there, self-contained, and honest about what is missing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bifocal.config import UserError
from bifocal.evaluation.report import write_report
from bifocal.evaluation.report_plots import curves
from bifocal.evaluation.report_recipes import how_alike
from bifocal.evaluation.report_samples import choose
from bifocal.evaluation.results import prediction_path, read_about, read_predictions, write_predictions
from evaluation.fakes import write_quickstart

SECTIONS = [
    "headline", "goals", "kinds", "answers", "drawings", "vqvae", "clip", "curves", "results", "run",
]  # fmt: skip


def _picture(key: str) -> np.ndarray:
    return np.full((64, 64, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("quickstart")
    write_quickstart(directory, count=18)
    Image.fromarray(_picture("")).save(directory / "figures" / "codebook.png")
    figures = [
        {"file": "codebook.png", "title": "The codebook", "caption": "All <codes>", "section": "codebook"},
        {"file": "gone.png", "title": "Gone", "caption": "", "section": "reconstruction"},
    ]
    (directory / "figures" / "index.json").write_text(json.dumps(figures))
    return directory


@pytest.fixture(scope="module")
def html(quickstart) -> str:
    return write_report(quickstart, picture=_picture, facts={"seed": 7}).read_text()


class _Balance(HTMLParser):
    """Checks that every element is closed by its own end tag."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def _section(html: str, name: str) -> str:
    match = re.search(rf'<section id="{name}">(.*?)</section>', html, re.DOTALL)
    assert match, f"no section {name}"
    return match.group(1)


def test_the_page_is_well_formed_and_asks_nothing_of_the_network(html):
    parser = _Balance()
    parser.feed(html)
    assert parser.wrong == [] and parser.open == []
    for address in re.findall(r'(?:src|href|xlink:href)="([^"]*)"', html):
        assert address.startswith(("data:", "#")), address
    assert not re.search(r"@import|fetch\(|XMLHttpRequest", html)


def test_all_parts_are_there(html):
    assert re.findall(r'<section id="([^"]+)">', html) == SECTIONS
    assert "notice" not in _section(html, "headline")


def test_the_headline_compares_the_families_with_intervals_and_a_test(html):
    headline = _section(html, "headline")
    for task in ("captioning", "vqa", "grounding", "reasoning"):
        assert f"<td>{task} <span" in headline
    assert headline.count('class="line continuous"') == headline.count('class="line discrete"') == 7
    assert "points" in headline and "0." in headline


def test_examples_show_boxes_of_both_kinds_and_can_be_chosen(html):
    answers = _section(html, "answers")
    assert '<rect class="true"' in answers and '<rect class="predicted"' in answers
    assert 'data-tag="grounding"' in answers and 'data-tags="grounding ' in answers
    assert "only CLIP right" in answers


def test_drawings_stand_beside_true_pictures_with_what_was_found(html):
    drawings = _section(html, "drawings")
    assert "a true picture" in drawings and "✓" in drawings
    assert "It finds" in drawings  # the checker's own accuracy


def test_a_figure_is_embedded_and_a_missing_one_is_said_to_be(html):
    part = _section(html, "vqvae")
    assert "The codebook" in part and "All &lt;codes&gt;" in part and "data:image/png" in part
    assert "The figure gone.png is missing." in part


def test_curves_are_drawn_for_every_run(html):
    curves = _section(html, "curves")
    # the loss and each score: three for the VQ-VAE, two for CLIP, two that both VLMs share
    assert curves.count('<svg class="plot"') == 7
    assert "vlm-discrete, validation" in curves and "minutes of training" in curves


def test_every_row_is_in_the_table_that_can_be_filtered(html, quickstart):
    rows = json.loads((quickstart / "results.json").read_text())["results"]
    part = _section(html, "results")
    assert part.count("<tr>") == len(rows) + 1
    assert 'type="search"' in part


def test_how_it_was_run_has_facts_times_and_recipes(html):
    part = _section(html, "run")
    assert "<td>seed</td><td>7</td>" in part
    assert "Recipe of vlm-discrete" in part and "&quot;width&quot;: 256" in part
    assert "5.0 min" in part


def test_an_empty_directory_gives_a_page_that_says_what_is_missing(tmp_path):
    html = write_report(tmp_path).read_text()
    assert re.findall(r'<section id="([^"]+)">', html) == SECTIONS
    for name in SECTIONS:
        assert 'class="notice"' in _section(html, name), name


def test_without_pictures_the_examples_are_left_out_in_words(quickstart, tmp_path):
    html = write_report(quickstart).read_text()
    assert "The pictures were not at hand" in _section(html, "answers")
    assert "drawn" in _section(html, "drawings")


def test_one_language_model_alone_is_shown_without_a_comparison(tmp_path):
    write_quickstart(tmp_path, count=6)
    for path in (tmp_path / "predictions" / "vlm-discrete").glob("*.jsonl"):
        path.unlink()
    headline = _section(write_report(tmp_path, picture=_picture).read_text(), "headline")
    assert "no paired test" in headline


def test_a_broken_file_is_an_error_not_a_gap(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json"):
        write_report(tmp_path)


def test_a_log_cut_off_in_its_last_line_is_still_drawn(tmp_path):
    (tmp_path / "clip").mkdir()
    line = {"phase": "train", "step": 1, "samples": 8, "seconds": 2.0, "loss": 3.0}
    (tmp_path / "clip" / "log.jsonl").write_text(json.dumps(line) + '\n{"phase": "tr')
    assert "clip, training" in _section(write_report(tmp_path).read_text(), "curves")


def test_examples_come_from_every_outcome_and_as_many_slices_as_there_are():
    def side(right: str) -> list[dict]:
        return [{"id": i, "slice": "ab"[i % 2], "correct": r == "1"} for i, r in enumerate(right)]

    chosen = choose({"vlm-continuous": side("11110011"), "vlm-discrete": side("11001011")}, each=2)
    assert [(name, both["vlm-discrete"]["id"]) for name, both in chosen] == [
        ("both-right", 0),
        ("both-right", 1),
        ("only-continuous", 2),
        ("only-continuous", 3),
        ("only-discrete", 4),
        ("both-wrong", 5),
    ]


def test_text_of_answers_is_escaped(quickstart, tmp_path):
    folder = tmp_path / "predictions" / "vlm-continuous"
    folder.mkdir(parents=True)
    prediction = {
        "id": "1", "pictures": ["p"], "slice": "<s>", "question": "<script>alert(1)</script>", "prediction": "<i>",
        "answer": "<u>", "references": ["<u>"], "correct": False, "boxes": [], "finish_reason": "stop",
    }  # fmt: skip
    (folder / "vqa.test.jsonl").write_text(json.dumps(prediction) + "\n")
    answers = _section(write_report(tmp_path, picture=_picture).read_text(), "answers")
    assert "<script>alert" not in answers and "&lt;script&gt;alert" in answers and "<i>" not in answers


def test_what_was_asked_of_whom_is_said(quickstart, html):
    stamps = read_about(quickstart / "results.json")
    assert {stamp["model"] for stamp in stamps} == {"vqvae", "clip", "vlm-continuous", "vlm-discrete"}
    part = _section(html, "run")
    for stamp in stamps:
        assert stamp["data_fingerprint"][:12] in part and stamp["answers_fingerprint"][:12] in part
    assert (
        "max_new_tokens 12" in part and "max_new_tokens 48" in part
    )  # of boxes, and of answers with reasons


def test_what_failed_too_often_to_be_compared_is_said(tmp_path):
    write_quickstart(tmp_path, count=6)
    path = prediction_path(tmp_path, "vlm-discrete", "vqa", "test")
    predictions = read_predictions(path)
    for key in ("correct", "unparsed", "references", "finish_reason"):
        del predictions[0][key]
    predictions[0] |= {"prediction": "", "boxes": [], "failed": True, "failure": "no memory"}
    write_predictions(path, predictions)
    text = write_report(tmp_path).read_text()
    assert "vqa on test: not compared, because 1 request of vlm-discrete failed, more than 1% of all" in text


def test_every_figure_of_a_log_has_its_plot():
    named = [
        "loss",
        "reconstruction",
        "codebook",
        "commitment",
        "psnr",
        "usage",
        "perplexity",
        "gradient_norm",
    ]
    log = [{"phase": "train", "step": step, **dict.fromkeys(named, 1.0 / step)} for step in (1, 2)]
    assert curves({"vqvae": log}).count('<svg class="plot"') == len(named)


def vlm(steps: int, layers: int = 4, drawing: float = 0.0, **more: object) -> dict:
    return {
        "train": {"steps": steps}, "language": {"layers": layers, "width": 192}, "batch_size": 24, "episodes": 8000,
        "stages": [], "align": None, "tasks": {"drawing": drawing}, **more,
    }  # fmt: skip


def test_what_the_two_were_trained_unlike_in_is_said_from_their_recipes(tmp_path):
    both = {
        "vlm-continuous": vlm(620, stages=[{}]),
        "vlm-discrete": vlm(70, 6, 0.15, episodes=4000, align="clip"),
    }
    said = how_alike({**both, "vqvae": {"perceptual": "clip"}})
    for part in (
        "620 and 70 steps of training", "8,000 and 4,000 scenes", "4 and 6 layers", "for CLIP alone", "taught",
        "knows things by", "15% of the rows spent on drawing", "not that of the eyes alone",
    ):  # fmt: skip
        assert part in said, part
    begun = {**both, "vlm-discrete": vlm(70, 7, 0.3, align="runs/vlm-continuous")}
    assert "the decoder of the one, which the other began with" in how_alike(begun)
    for name, recipe in both.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(json.dumps(recipe))
    assert "620 and 70 steps of training" in write_report(tmp_path).read_text()


def test_what_they_were_trained_alike_in_is_claimed_of_like_recipes_alone():
    alike = {"vlm-continuous": vlm(620), "vlm-discrete": vlm(620)}
    assert how_alike(alike) == "Beside their eyes both were trained alike."
    assert how_alike({"vlm-continuous": vlm(620)}) == ""
