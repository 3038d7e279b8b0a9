"""Class folders and captioned folders as evaluation sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from bifocal.config import UserError
from bifocal.data.folder import FolderDataset
from bifocal.data.own_sets import CaptionedFolder, ClassFolders, zero_shot_folder
from bifocal.data.sample import Message, Picture, Sample, write_samples


def classes(place: Path) -> Path:
    """Two classes, one with a subfolder of its own, and a picture outside every class."""
    for number, name in enumerate(["tawny_owl/a.png", "tawny_owl/b.png", "cat/deep/c.png", "stray.png"]):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.picture(number)).save(place / name)
    (place / "cat" / "notes.txt").write_text("not a picture")
    return place


def test_a_folder_is_a_class_and_its_name_the_label(tmp_path: Path) -> None:
    dataset = ClassFolders(classes(tmp_path / "pets"))
    assert [(sample.id, sample.references) for sample in dataset.samples] == [
        ("cat/deep/c.png", ("cat",)),
        ("tawny_owl/a.png", ("tawny owl",)),
        ("tawny_owl/b.png", ("tawny owl",)),
    ]
    assert dataset.name == "pets"
    assert np.array_equal(dataset.picture("cat/deep/c.png"), tiny.picture(2))


def test_folders_may_be_given_names(tmp_path: Path) -> None:
    place = classes(tmp_path / "pets")
    dataset = ClassFolders(place, {"tawny_owl": "owl", "cat": "house cat"})
    assert {sample.references[0] for sample in dataset.samples} == {"owl", "house cat"}
    with pytest.raises(UserError, match=r"folder cat of .* is given no name"):
        ClassFolders(place, {"tawny_owl": "owl"})


def test_a_directory_of_neither_kind_is_refused(tmp_path: Path) -> None:
    Image.fromarray(tiny.picture(0)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"neither samples\.jsonl nor a folder of pictures"):
        ClassFolders(tmp_path)
    with pytest.raises(UserError, match="There is no directory"):
        ClassFolders(tmp_path / "nowhere")


def said(number: int, task: str, key: str, *captions: str) -> Sample:
    messages = (Message("user", (Picture(0), "describe")), Message("assistant", (captions[0],)))
    return Sample(f"{task}/{number}", task, "all", (key,), messages, captions[1:])


def captioned(place: Path, *samples: Sample) -> Path:
    place.mkdir()
    for sample in samples:
        Image.fromarray(tiny.picture(0)).save(place / sample.pictures[0])
    write_samples(place / "samples.jsonl", samples)
    return place


def test_captions_of_one_picture_come_together_once_each(tmp_path: Path) -> None:
    place = captioned(
        tmp_path / "set",
        said(0, "captioning", "a.png", "an owl"),
        said(1, "captioning", "b.png", "a cat", "a cat", "a grey cat"),
        said(2, "captioning", "a.png", "a bird"),
        said(3, "captioning", "a.png", "an owl"),
        said(4, "vqa", "b.png", "two"),
    )
    dataset = CaptionedFolder(place)
    assert [(s.task, s.pictures, s.references) for s in dataset.samples] == [
        ("retrieval", ("a.png",), ("an owl", "a bird")),
        ("retrieval", ("b.png",), ("a cat", "a grey cat")),
    ]


def test_samples_of_retrieval_go_before_captions(tmp_path: Path) -> None:
    place = captioned(
        tmp_path / "set",
        said(0, "captioning", "a.png", "an owl"),
        said(1, "retrieval", "b.png", "a cat"),
    )
    assert [sample.references for sample in CaptionedFolder(place).samples] == [("a cat",)]


def test_a_folder_without_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of retrieval or captioning"):
        CaptionedFolder(captioned(tmp_path / "set", said(0, "vqa", "a.png", "two")))


def test_a_file_of_samples_goes_before_class_folders(tmp_path: Path) -> None:
    place = classes(tmp_path / "pets")
    assert isinstance(zero_shot_folder(place, {}, "test"), ClassFolders)
    write_samples(place / "samples.jsonl", [said(0, "zero-shot", "stray.png", "owl")])
    assert isinstance(zero_shot_folder(place, {}, "test"), FolderDataset)
