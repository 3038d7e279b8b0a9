"""Whatever docs/lecture.md names is there: tests, functions, files, sections of the report; and its lines run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import published
from bifocal.cli import main, parse
from bifocal.config import apply_overrides, parse_flags
from bifocal.evaluation.report import write_report
from bifocal.recipes.parti import recipe_parti
from bifocal.recipes.prior import recipe_prior
from bifocal.recipes.vlm import recipe_vlm
from bifocal.recipes.vqvae import recipe_vqvae

ROOT = Path(__file__).parent.parent
LECTURE = ROOT / "docs" / "lecture.md"
TEXT = LECTURE.read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
SHELL = re.findall(r"^bifocal .*$", TEXT, re.MULTILINE)
RECIPES = {
    "vqvae": recipe_vqvae("smoke"),
    "vlm": recipe_vlm("smoke", "discrete"),  # every line with a setting of a VLM is of that family
    "prior": recipe_prior("smoke"),
    "parti": recipe_parti("smoke"),
}
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


@pytest.mark.parametrize("line", SHELL)
def test_a_command_is_read_as_it_stands(line: str) -> None:
    _, name, *words = shlex.split(line)
    _, settings = parse(name, words)
    if settings:
        assert name == "train"
        apply_overrides(RECIPES[words[0]], parse_flags(settings))


def test_there_are_as_many_commands_and_python_lines_as_slides_have() -> None:
    assert len(SHELL) > 15 and len(PYTHON) > 12


def test_the_python_lines_run_one_after_the_other_and_say_what_their_comments_say(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("vqvae", "clip", "vlm-continuous", "vlm-discrete"):
        shutil.copytree(smoke / run, tmp_path / "runs" / "quickstart" / run)
    rows = ["image,caption,question,answer"]
    for number, animal in enumerate(("owl", "cat", "dog", "fox", "cow", "pig")):
        published.draw(tmp_path / "photos" / f"{animal}.png", number, (64, 64))
        rows.append(f"{animal}.png,a picture of a {animal}.,what animal is this?,{animal}")
    (tmp_path / "pets.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "import", "csv", "pets.csv", "--images", "photos", "--out", "pets"]) == 0
    names: dict[str, Any] = {}
    said = []
    for lines in PYTHON:
        capsys.readouterr()
        exec(lines, names)
        said.append(capsys.readouterr().out)
    for told in (
        "torch.Size([8, 8, 8]) torch.int64",
        "tensor([1, 2])",
        "tensor([0., 2.])",
        "(tensor(0.), 1.0)",
    ):
        assert told in TEXT and any(told in part for part in said), told
    assert said[-1].splitlines()[-1] == "owl"
