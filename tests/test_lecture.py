"""Whatever docs/lecture.md names is there: its tests, its functions, its files and the sections of the report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bifocal.evaluation.report import write_report

ROOT = Path(__file__).parent.parent
LECTURE = ROOT / "docs" / "lecture.md"
TEXT = LECTURE.read_text(encoding="utf-8")
LINKS = [(name, path) for name, path in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", TEXT) if "://" not in path]


NAMED = {
    (name, path) for names, path in LINKS if path.endswith(".py") for name in re.findall(r"`([\w.]+)`", names)
}


@pytest.mark.parametrize("path", sorted({path.split("#")[0] for _, path in LINKS} - {""}))
def test_every_file_that_is_linked_is_there(path: str) -> None:
    assert (LECTURE.parent / path).resolve().exists()


@pytest.mark.parametrize(("name", "path"), sorted(NAMED))
def test_every_function_is_in_the_file_that_is_linked(name: str, path: str) -> None:
    text = (LECTURE.parent / path).read_text(encoding="utf-8")
    own = name.split(".")[-1]
    assert re.search(rf"^\s*(?:def|class) {own}\b|^{own}\b.* = ", text, re.MULTILINE)


def test_every_test_that_is_named_is_there() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py")))
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 50
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []


def test_the_sections_of_the_report_are_called_as_the_lecture_calls_them(tmp_path: Path) -> None:
    (sentence,) = re.findall(r"the report's sections ([^;]*?) are made by", " ".join(TEXT.split()))
    titles = re.findall(r'"([^"]+)"', sentence)
    report = write_report(tmp_path).read_text(encoding="utf-8")
    assert len(titles) == 2 and all(f">{title}</h2>" in report for title in titles)
