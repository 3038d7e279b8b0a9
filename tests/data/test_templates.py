"""Templates and class names, from lists of our own and from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bifocal.config import UserError
from bifocal.data.templates import TEMPLATES, fill_template, read_classes, read_templates


def test_a_name_goes_in_with_its_article_or_alone() -> None:
    assert fill_template("a picture of {a}", "owl") == "a picture of an owl"
    assert fill_template("{a}", "dog") == "a dog"
    assert [fill_template("{a}", name) for name in ("unicorn", "Hourglass")] == ["a unicorn", "an Hourglass"]
    assert fill_template("two of {}", "owl") == "two of owl"
    assert fill_template("one {c}", "{a}") == "one {a}"  # a name is put in as it is


def test_our_lists_have_a_place_for_the_name_in_every_line() -> None:
    for lines in TEMPLATES.values():
        assert len({fill_template(line, "owl") for line in lines}) == len(lines)
        assert all("owl" in fill_template(line, "owl") for line in lines)


@pytest.mark.parametrize("name", ["lines.txt", "lines.json"])
def test_templates_come_from_a_file(tmp_path: Path, name: str) -> None:
    lines = ["a photo of {a}.", "art of the {c}."]
    text = json.dumps(lines) if name.endswith("json") else "\n".join(lines) + "\n\n"
    (tmp_path / name).write_text(text)
    assert read_templates(str(tmp_path / name)) == tuple(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a photo of {a}.\na photo", "template 2 of .*no place for the name"),
        ("a photo of {name}.", "no place for the name"),
        ("\n", "holds no templates"),
    ],
)
def test_a_line_without_a_place_for_the_name_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "lines.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_templates(str(tmp_path / "lines.txt"))


def test_an_unknown_list_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="drawings, photos, name"):
        read_templates("imagenet")


def test_class_names_keep_the_order_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("tench\n goldfish \n\ngreat white shark\n")
    assert read_classes(tmp_path / "names.txt") == (("tench", "goldfish", "great white shark"), {})


def test_a_json_object_gives_folders_their_names(tmp_path: Path) -> None:
    folders = {"n01": "crane", "n02": "tench", "n03": "crane"}
    (tmp_path / "names.json").write_text(json.dumps(folders))
    assert read_classes(tmp_path / "names.json") == (("crane", "tench"), folders)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.txt", "owl\ncat\nowl\n", "'owl' comes twice"),
        ("n.txt", "owl\n", "holds 1 names"),
        ("n.json", "3", "neither a JSON list"),
        ("n.json", "{", "not valid JSON"),
        ("n.json", '["owl", 3]', "neither a JSON list"),
    ],
)
def test_names_that_cannot_be_chosen_from_are_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_classes(tmp_path / name)


def test_a_file_of_names_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt cannot be read"):
        read_classes(tmp_path / "nowhere.txt")
