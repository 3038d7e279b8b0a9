"""Names of data: what counts changes them, and what does not leaves them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

import tiny
from bifocal.data.fingerprints import asked_fingerprint, data_fingerprint, questions_fingerprint
from bifocal.data.folder import FolderDataset
from bifocal.data.own_sets import ClassFolders
from bifocal.data.sample import Message, Picture, Sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.folder(tmp_path / "data", pictures=3)


def names(folder: Path) -> tuple[str, str, str]:
    """What training calls a folder, what scores call its questions, and what kept answers call them."""
    dataset = FolderDataset(folder, "vqa")
    return dataset.fingerprint, questions_fingerprint(dataset), asked_fingerprint(dataset)


def test_a_copy_is_the_same_data_and_other_files(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / "0.png", ns=(5, 5))
    training, questions, asked = names(folder)
    assert names(tmp_path / "copy")[:2] == (training, questions)
    assert names(tmp_path / "copy")[2] != asked


def test_another_right_answer_is_other_data_to_learn_from_and_the_same_question(folder):
    training, questions, asked = names(folder)
    file = folder / "samples.jsonl"
    file.write_text(file.read_text().replace('"text": "2"', '"text": "two"'))
    assert names(folder)[0] != training
    assert names(folder)[1:] == (questions, asked)


@pytest.mark.parametrize("change", ["question", "picture"])
def test_another_question_or_picture_is_other_data_to_all(folder, change):
    before = names(folder)
    file = folder / "samples.jsonl"
    if change == "question":
        file.write_text(file.read_text().replace("which number?", "which one?"))
    else:
        (folder / "1.png").write_bytes((folder / "1.png").read_bytes() + b"x")
    assert not set(names(folder)) & set(before)


def test_a_picture_that_stands_elsewhere_is_another_question(tmp_path):
    def name(*parts: str | Picture) -> str:
        turns = (Message("user", parts), Message("assistant", ("yes",)))
        return data_fingerprint([Sample("s", "vqa", "all", ("0.png",), turns)], lambda _: [], answers=False)

    usual, behind = name(Picture(0), "is this an owl?"), name("is this an owl?", Picture(0))
    between = name("is", Picture(0), "this an owl?")
    assert len({usual, behind, between}) == 3


@pytest.mark.parametrize(
    ("task", "asked", "answer", "question"),
    [
        ("vqa", (Picture(0), "is this an owl?"), ("yes",), "is this an owl?"),
        ("zero-shot", (Picture(0),), ("owl",), ""),
        ("text-to-image", ("an owl",), (Picture(0),), "an owl"),
    ],
)
def test_a_usual_question_is_named_by_its_words_and_pictures(task, asked, answer, question):
    sample = Sample("s", task, "all", ("0.png",), (Message("user", asked), Message("assistant", answer)))
    assert sample.asked == question
    said = json.dumps(["s", question, ["0.png"]]) + json.dumps(["0.png", 7])
    expected = hashlib.sha256(said.encode()).hexdigest()
    assert data_fingerprint([sample], lambda _: [7], answers=False) == expected


def test_class_folders_have_names_too(tmp_path):
    (tmp_path / "own" / "owl").mkdir(parents=True)
    picture = tmp_path / "own" / "owl" / "0.png"
    picture.write_bytes(b"any")
    before = questions_fingerprint(ClassFolders(tmp_path / "own"))
    os.utime(picture, ns=(5, 5))
    assert questions_fingerprint(ClassFolders(tmp_path / "own")) == before
    picture.write_bytes(b"other")
    assert questions_fingerprint(ClassFolders(tmp_path / "own")) != before
