"""A user's walk: a folder of pictures and a table to a fine-tuned model that answers, in the commands of the guide."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

import published
from bifocal.cli import main

GUIDE = Path(__file__).parent.parent / "docs" / "own-data.md"
ANIMALS = ("owl", "cat", "dog", "fox", "cow", "pig")


def commands() -> list[list[str]]:
    """The commands between the marks in the guide, as words without the name of the program."""
    marked = GUIDE.read_text().split("four-commands -->")[1]
    block = re.search(r"```sh\n(.*?)```", marked, re.DOTALL)
    assert block is not None
    return [shlex.split(line)[1:] for line in block.group(1).splitlines()]


@pytest.fixture
def place(tmp_path: Path, smoke: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures, a table about them, and the runs of a quickstart at toy size."""
    rows = ["image,caption,question,answer"]
    for number, animal in enumerate(ANIMALS):
        published.draw(tmp_path / "pictures" / f"{animal}.png", number, (64, 64))
        rows.append(f"{animal}.png,a picture of a {animal}.,what animal is this?,{animal}")
    (tmp_path / "pets.csv").write_text("\n".join(rows) + "\n")
    for run in ("clip", "vlm-continuous"):
        shutil.copytree(smoke / run, tmp_path / "runs" / "quickstart" / run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_four_commands_lead_from_a_table_to_answers(place, capsys):
    assert len(commands()) == 4
    said = []
    for words in commands():
        if words[0] == "train":  # at toy size, like the run it goes on from
            words[words.index("--steps") + 1] = "40"
            words.append("--smoke")
        capsys.readouterr()
        assert main(words) == 0, capsys.readouterr().err
        said.append(capsys.readouterr().out)
    assert "wrote 12 samples about 6 pictures to pets" in said[0]
    assert "12 of 12 samples survive; they are about 6 pictures" in said[1]
    assert said[3].strip() == "owl"
