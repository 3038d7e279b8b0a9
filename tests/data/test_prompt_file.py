"""Files of prompts: the three ways to write one, and what is said of a line that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from bifocal.config import UserError
from bifocal.data.prompt_file import PromptFile


def written(path: Path, text: str) -> PromptFile:
    path.write_text(text, encoding="utf-8")
    return PromptFile(path)


def test_a_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.txt", "an owl\r\n\n  two hearts \n")
    assert [sample.question for sample in file.samples] == ["an owl", "two hearts"]
    assert [sample.id for sample in file.samples] == ["prompt-0001", "prompt-0002"]
    assert file.where["prompt-0002"] == f"Line 3 of {tmp_path / 'mine.txt'}"
    assert all(sample.slice == "all" and not sample.pictures and not sample.facts for sample in file.samples)
    assert (file.name, file.split, file.task) == ("mine", "prompts", "text-to-image")


def test_a_table_is_one_of_partiprompts_whatever_its_name(tmp_path: Path) -> None:
    rows = (
        "Prompt\tCategory\tChallenge\tNote\nan owl\tAnimals\tBasic\tof mine\n"
        '"stop" on a sign\tArtifacts\t\t\nhope\n'
    )
    for name in ("prompts.tsv", "prompts.txt"):
        one, other, last = written(tmp_path / name, rows).samples
        assert (one.slice, one.facts) == ("Basic", {"slices": ["Basic", "Animals"]})
        assert (other.question, other.facts) == ('"stop" on a sign', {"slices": ["Artifacts"]})
        assert (last.slice, last.facts) == ("all", None)


def test_json_lines_may_say_what_objects_are_wanted(tmp_path: Path) -> None:
    lines = '"an owl"\n{"Prompt": "two hearts", "category": "shapes", "objects": ["heart"], "source": "me"}\n'
    one, other = written(tmp_path / "mine.jsonl", lines).samples
    assert (one.question, one.facts) == ("an owl", None)
    assert other.facts == {"slices": ["shapes"], "objects": {"heart": 1}}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "\n\n", "holds no prompts: write one a line"),
        (
            "a.txt",
            "an owl\tanimals\n",
            "Line 1 of .* has 2 cells .* more than the 1 that the first line names",
        ),
        (
            "a.tsv",
            "Prompt\tCategory\nan owl\tanimals\tbasic\n",
            "Line 2 of .* has 3 cells .* more than the 2",
        ),
        ("a.tsv", "Category\tPrompt\n\nanimals\t\n", "Line 3 of .*: the prompt is empty"),
        ("a.jsonl", '{"prompt": "an owl"}\n{"text": "a cat"}\n', 'Line 2 of .*: "prompt" is missing'),
        ("a.jsonl", '{"prompt": "an owl"}\n{"prompt": 3}\n', 'Line 2 of .*: "prompt" is not a text'),
        ("a.jsonl", '{"prompt": "an owl"}\n[1]\n', "Line 2 of .*: a prompt .* is not an object"),
        ("a.jsonl", '{"prompt": "an owl"}\n{"prompt"\n', "Line 2 of .* is not JSON"),
        (
            "a.jsonl",
            '{"prompt": "owls", "objects": {"owl": 2}}',
            'Line 1 of .*: "objects" is not a list of names',
        ),
        ("a.jsonl", '{"prompt": "owls", "category": ["a"]}', 'Line 1 of .*: "category" is not a text'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        written(tmp_path / name, text)


def test_there_is_no_true_picture(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="prompts have no pictures"):
        written(tmp_path / "a.txt", "an owl").picture("owl")
