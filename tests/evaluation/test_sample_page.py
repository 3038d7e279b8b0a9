"""The page of samples: what its script is given, how large it is, and (where there is a browser) what it shows."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bifocal.config import UserError
from bifocal.data.formats.base import make_sample
from bifocal.evaluation import captioning, grounding, reasoning, vqa
from bifocal.evaluation.asking import prediction_of
from bifocal.evaluation.compare import compare
from bifocal.evaluation.results import Prediction
from bifocal.evaluation.sample_page import (
    SIDES,
    comparison_page,
    evaluation_page,
    sample_data,
    thumbnail,
    thumbnails,
)
from evaluation.fakes import FakeDataset, FakeVLM, read_caption

TASKS = {"vqa": vqa, "grounding": grounding, "reasoning": reasoning}
NAMES = ["block", "id", "question", "truth", "also", "slices", "pictures", "boxes", "answers"]


class Fixture:
    """Two models on three tasks of the same shapes."""

    def __init__(self, count: int = 30) -> None:
        self.sets = {task: FakeDataset(task, count) for task in TASKS}
        self.a, self.b = (
            {
                (task, "test"): TASKS[task].predict(FakeVLM(name, accuracy, data.shapes), data)
                for task, data in self.sets.items()
            }
            for name, accuracy in (("good", 0.9), ("bad", 0.5))
        )

    def picture(self, key: str) -> np.ndarray:
        # the sets name their pictures alike, and draw the same under one name
        return next(data for data in self.sets.values() if key in data.truth).picture(key)

    def page(self) -> str:
        return comparison_page(
            compare(self.a, self.b, name_a="good", name_b="bad"), self.a, self.b, self.picture
        )


@pytest.fixture(scope="module")
def two() -> Fixture:
    return Fixture()


def embedded(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def rows_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(NAMES, row, strict=True)) for row in data["rows"]]


# ------------------------------------------------------------ data


def test_every_sample_has_both_answers_and_who_is_right(two):
    data = embedded(two.page(), "samples-data")
    rows = rows_of(data)
    assert data["sides"] == ["good", "bad"] and data["blocks"] == ["vqa", "grounding", "reasoning"]
    assert len(rows) == 90
    for row, p, q in zip(rows[:30], two.a["vqa", "test"], two.b["vqa", "test"], strict=True):
        assert (row["id"], row["question"], row["truth"]) == (p["id"], p["question"], p["answer"])
        assert [answer[0] for answer in row["answers"]] == [p["prediction"], q["prediction"]]
        assert [answer[1] for answer in row["answers"]] == [int(p["correct"]), int(q["correct"])]
        assert [data["slices"][number] for number in row["slices"]] == [p["slice"]]


def test_the_order_of_the_other_s_samples_does_not_matter(two):
    turned = {key: some[::-1] for key, some in two.b.items()}
    assert sample_data({"a": two.a, "b": turned}) == sample_data({"a": two.a, "b": two.b})


def test_boxes_are_true_and_predicted_ones_with_their_overlap(two):
    rows = rows_of(sample_data({"good": two.a})[0])[30:60]
    for row, p in zip(rows, two.a["grounding", "test"], strict=True):
        assert row["boxes"] == [pytest.approx(p["true_boxes"][0], abs=1e-4)]
        _, verdict, boxes, note, flags = row["answers"][0]
        assert len(boxes) == len(p["boxes"]) and verdict == int(p["correct"])
        assert note == (f"IoU {p['iou']:.3f}" if boxes else "no box")
        assert ("unparsed" in flags) == (not boxes)


def vqav2(said: str, number: int, references: list[str]) -> Prediction:
    sample = make_sample(str(number), "vqa", ["a"], "?", ["yes"], slice="yes/no", references=references,
                         facts={"benchmark": "vqav2"})  # fmt: skip
    prediction = prediction_of(sample, said)
    vqa.judge(prediction, sample)
    return prediction


def test_a_verdict_is_that_of_the_benchmark_s_own_score():
    people = ["yes"] * 9 + ["no"]
    predictions = [vqav2("yes", 0, people), vqav2("no", 1, people)]
    assert predictions[1]["correct"]  # one of ten said so, for which VQA gives 0.3
    rows = rows_of(sample_data({"m": {("vqa", "val"): predictions}})[0])
    assert [row["answers"][0][1] for row in rows] == [1, 0]
    assert rows[1]["answers"][0][3] == "scores 0.3"
    assert rows[0]["also"] == ["no"]


def test_what_failed_was_cut_off_or_is_not_judged_says_so(two):
    a = [dict(p) for p in two.a["vqa", "test"]]
    a[0] = {key: a[0][key] for key in ("id", "pictures", "slice", "question", "answer")} | {
        "failed": True,
        "failure": "connection reset",
    }
    a[1]["finish_reason"] = "length"
    rows = rows_of(sample_data({"m": {("vqa", "test"): a}})[0])
    assert rows[0]["answers"][0] == ["", None, [], "connection reset", ["failed"]]
    assert rows[1]["answers"][0][4] == ["cut off"]


def test_a_caption_is_judged_where_it_is_known_what_is_there():
    captions = FakeDataset("captioning", 4)
    said = captioning.predict(FakeVLM("m", 1.0, captions.shapes), captions, reader=read_caption)

    def verdicts() -> list[int | None]:
        rows = rows_of(sample_data({"m": {("captioning", "test"): said}})[0])
        return [row["answers"][0][1] for row in rows]

    assert verdicts() == [1] * 4
    for caption in said:
        del caption["correct"]  # as those of other data are
    assert verdicts() == [None] * 4


def test_more_samples_than_anyone_reads_are_thinned_out_evenly_and_counted(two):
    data, keys, left_out = sample_data({"a": two.a, "b": two.b}, most=10)
    assert (len(data["rows"]), left_out) == (10, 80)
    assert {row["block"] for row in rows_of(data)} == {0, 1, 2}
    assert sorted({n for row in rows_of(data) for n in row["pictures"]}) == list(range(len(keys)))


def test_nothing_to_show_is_said(two):
    with pytest.raises(UserError, match="no answers about pictures to show of m"):
        evaluation_page("m", {}, [], two.picture)


# ------------------------------------------------------------ the file


class Outside(HTMLParser):
    """Collects what a page would fetch, and its scripts' types."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [str(given[name]) for name in ("src", "href", "action", "data") if name in given]
        if tag == "script":
            self.scripts.append(str(given.get("type")))


def test_the_page_needs_no_network_and_answers_are_no_markup(two):
    two.a["vqa", "test"][0]["prediction"] = evil = '</script><script>alert(1)</script><!--"\u2028'
    page = two.page()
    assert embedded(page, "samples-data")["rows"][0][8][0][0] == evil
    reader = Outside()
    reader.feed(page)
    assert all(address.startswith(("#", "data:")) for address in reader.addresses)
    assert reader.scripts == ["application/json", "application/json", "None", "module"]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_differences_stand_above_with_their_intervals(two):
    page = two.page()
    scores = page[page.index('id="scores"') : page.index('id="samples"')]
    assert "Acc@0.5" in scores and "points" in scores and "95% interval" in scores
    assert '<p class="lead">vqa, grounding, reasoning on test</p>' in page
    one = evaluation_page("good", {("vqa", "test"): two.a["vqa", "test"]},
                          vqa.score(two.a["vqa", "test"], model="good", split="test"), two.picture)  # fmt: skip
    assert embedded(one, "samples-data")["sides"] == ["good"]
    assert "Baseline" in one


def test_two_models_of_one_name_are_told_apart(two):
    page = comparison_page(compare(two.a, two.b, name_a="m", name_b="m"), two.a, two.b, two.picture)
    assert embedded(page, "samples-data")["sides"] == ["m (A)", "m (B)"]


# ------------------------------------------------------------ thumbnails


def noise(key: str) -> np.ndarray:
    return np.random.default_rng(int(key)).integers(0, 255, (240, 320, 3), dtype=np.uint8)


def test_a_thumbnail_keeps_the_shape_and_nothing_is_enlarged():
    bytes_, width, height = thumbnail(noise("0"), 96)
    with Image.open(io.BytesIO(base64.b64decode(bytes_))) as image:
        assert image.format == "WEBP" and image.size == (width, height) == (96, 72)
    assert thumbnail(np.zeros((20, 10, 3), np.uint8), 96)[1:] == (10, 20)


def test_pictures_are_as_large_as_fits_together():
    keys = [str(number) for number in range(20)]
    sizes = []
    for most in (10_000_000, 130_000, 40_000):
        shots = thumbnails(keys, noise, most)
        assert sum(len(shot[0]) for shot in shots) <= most
        sizes.append(shots[0][1])
    assert sizes[0] == SIDES[0] > sizes[1] > sizes[2] >= SIDES[-1]


@pytest.mark.slow
def test_five_thousand_samples_stay_below_25_megabytes():
    # noise takes more bytes than any photograph
    sample = [f"{number}" for number in range(5000)]
    cache = {n: noise(str(n)) for n in range(50)}
    shots = thumbnails(sample, lambda key: cache[int(key) % 50], 23_000_000)
    assert 10_000_000 < sum(len(shot[0]) for shot in shots) < 23_000_000


# ------------------------------------------------------------ in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def opened(page: Path, state: str, script: str = "") -> str:
    """What the page is in a browser after its script, and another one, have run."""
    text = page.read_text()
    page.write_text(text.replace("</body></html>", f'<script type="module">{script}</script></body></html>'))
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    words += ["--dump-dom", f"--user-data-dir={page.parent / 'profile'}", f"file://{page}#{state}"]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with")
def test_cards_are_made_as_one_scrolls(two, tmp_path: Path):
    (tmp_path / "page.html").write_text(two.page())
    # ten times to the end, each time with the event that the screen, which is not drawn here, would give
    scroll = """const count = () => document.querySelectorAll('article').length;
      document.body.dataset.before = count();
      for (let i = 0; i < 10; i++) {
        scrollTo({ top: document.body.scrollHeight, behavior: 'instant' });
        dispatchEvent(new Event('scroll'));
      }
      document.body.dataset.after = count();"""
    shown = opened(tmp_path / "page.html", "", scroll)
    assert 'data-before="24"' in shown and 'data-after="90"' in shown and "That was all." in shown


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with")
def test_a_browser_shows_the_samples_that_the_filters_leave(two, tmp_path: Path):
    (tmp_path / "page.html").write_text(two.page())
    rows = rows_of(embedded((tmp_path / "page.html").read_text(), "samples-data"))
    only_a = [
        r for r in rows if [answer[1] for answer in r["answers"]] == [1, 0] and "is there" in r["question"]
    ]
    shown = opened(tmp_path / "page.html", "outcome=a&block=0&words=is+there")
    cards = re.findall(r'<article class="sample.*?</article>', shown, re.DOTALL)
    assert 0 < len(only_a) <= 24 and len(cards) == len(only_a)
    for card, row in zip(cards, only_a, strict=True):
        assert row["id"] in card and "✓" in card and "✗" in card and "data:image/webp;base64," in card
    assert f"{len(only_a)} of 90 samples" in shown
    assert "alert(1)" not in re.sub(
        r'<script type="application/json".*?</script>', "", shown, flags=re.DOTALL
    )
