"""The page of samples: complete in itself, and (where there is a browser) showing what the filters leave."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bifocal.config import UserError
from bifocal.evaluation import vqa
from bifocal.evaluation.compare import compare
from bifocal.evaluation.sample_page import comparison_page, evaluation_page
from evaluation.fakes import TwoModels


@pytest.fixture(scope="module")
def two() -> TwoModels:
    return TwoModels()


def page_of(two: TwoModels, *, names: tuple[str, str] = ("good", "bad")) -> str:
    comparison = compare(two.a, two.b, name_a=names[0], name_b=names[1])
    return comparison_page(comparison, two.a, two.b, two.picture)


def embedded(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


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


def test_the_page_needs_no_network_and_answers_are_no_markup():
    two = TwoModels(6)
    two.a["vqa", "test"][0]["prediction"] = evil = '</script><script>alert(1)</script><!--"\u2028'
    page = page_of(two)
    assert embedded(page, "samples-data")["rows"][0][8][0][0] == evil
    reader = Outside()
    reader.feed(page)
    assert all(address.startswith(("#", "data:")) for address in reader.addresses)
    assert reader.scripts == ["application/json", "application/json", "None", "module"]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_differences_stand_above_with_their_intervals(two):
    page = page_of(two)
    scores = page[page.index('id="scores"') : page.index('id="samples"')]
    assert "Acc@0.5" in scores and "points" in scores and "95% interval" in scores
    assert '<p class="lead">vqa, grounding, reasoning on test</p>' in page
    one = evaluation_page("good", {("vqa", "test"): two.a["vqa", "test"]},
                          vqa.score(two.a["vqa", "test"], model="good", split="test"), two.picture)  # fmt: skip
    assert embedded(one, "samples-data")["sides"] == ["good"]
    assert "Baseline" in one


def test_two_models_of_one_name_are_told_apart(two):
    page = page_of(two, names=("m", "m"))
    assert embedded(page, "samples-data")["sides"] == ["m (A)", "m (B)"]


def test_nothing_to_show_is_said(two):
    with pytest.raises(UserError, match="no answers about pictures to show of m"):
        evaluation_page("m", {}, [], two.picture)


def test_what_failed_too_often_to_be_compared_is_said():
    two = TwoModels(6)
    for key in ("prediction", "correct", "unparsed"):
        del two.b["vqa", "test"][0][key]
    two.b["vqa", "test"][0] |= {"failed": True, "failure": "no memory"}
    assert "vqa on test: not compared, because 1 request of bad failed, more than 1% of all" in page_of(two)


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
    (tmp_path / "page.html").write_text(page_of(two))
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
    (tmp_path / "page.html").write_text(page_of(two))
    data = embedded((tmp_path / "page.html").read_text(), "samples-data")
    wanted = [
        row[1]
        for row in data["rows"]
        if [answer[1] for answer in row[8]] == [1, 0] and "is there" in row[2] and row[0] == 0
    ]
    shown = opened(tmp_path / "page.html", "outcome=a&block=0&words=is+there")
    cards = re.findall(r'<article class="sample.*?</article>', shown, re.DOTALL)
    assert 0 < len(wanted) <= 24 and len(cards) == len(wanted)
    for card, identity in zip(cards, wanted, strict=True):
        assert identity in card and "✓" in card and "✗" in card and "data:image/webp;base64," in card
    assert f"{len(wanted)} of 90 samples" in shown
