"""What of a test was trained on: the same pictures and texts are found, the like ones too, others not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import published
from bifocal.data import overlap as module
from bifocal.data.folder import FolderDataset
from bifocal.data.formats.base import make_sample
from bifocal.data.overlap import NEW, OVERLAP, SEEN, Found, marked, near_text, overlap, same_text, trained_on
from bifocal.data.prompts import asked
from bifocal.data.sample import Sample, write_samples
from bifocal.recipes.folder_source import FolderSource

NOTHING, NEARLY, WHOLLY = Found(False, False), Found(False, True), Found(True, True)


def folder(place: Path, *samples: Sample, seeds: dict[str, int]) -> Path:
    place.mkdir()
    for name, seed in seeds.items():
        published.draw(place / name, seed, (96, 96))
    write_samples(place / "samples.jsonl", samples)
    return place


def ask(identity: str, picture: str, question: str) -> Sample:
    return make_sample(identity, "vqa", [picture], question, ["owl"])


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return folder(
        tmp_path / "train",
        ask("1", "a.png", "What is on the tree?"),
        ask("2", "b.png", "how many owls are there?"),
        ask("3", "copy.png", "is the owl red?"),
        seeds={"a.png": 1, "b.png": 2, "copy.png": 1},
    )


def matches_of(test: Path, *train: Path, cache: Path | None = None) -> list[module.Match]:
    return overlap(FolderDataset(test), trained_on(train, whole=train, cache=cache))


def test_picture_and_text_are_told_apart_and_together_they_are_the_sample(tmp_path, train):
    test = folder(
        tmp_path / "test",
        ask("same", "other-name.png", "what is on the tree"),
        ask("words moved", "other-name.png", "on a tree is what?"),
        ask("of its copy", "other-name.png", "is the owl red?"),
        ask("of another", "other-name.png", "how many owls are there?"),
        ask("new picture", "new.png", "is the owl red?"),
        ask("new", "new.png", "is the owl blue?"),
        seeds={"other-name.png": 1, "new.png": 9},
    )
    found = dict(
        zip(["same", "words", "copy", "another", "picture", "new"], matches_of(test, train), strict=True)
    )
    assert found["same"] == (WHOLLY, WHOLLY, WHOLLY)
    assert found["words"] == (WHOLLY, NEARLY, NEARLY)
    assert found["copy"] == (WHOLLY, WHOLLY, WHOLLY)  # the same picture is there under two names
    assert found["another"] == (WHOLLY, WHOLLY, NOTHING)
    assert found["picture"] == (NOTHING, WHOLLY, NOTHING)
    assert found["new"] == (NOTHING, NOTHING, NOTHING)


def test_a_picture_saved_anew_is_found_as_nearly_the_same(tmp_path, train):
    test = folder(tmp_path / "test", ask("1", "a.jpg", "what is on the tree?"), seeds={})
    Image.open(train / "a.png").resize((120, 120)).save(test / "a.jpg", quality=80)
    (match,) = matches_of(test, train)
    assert match.picture == NEARLY and match.both == NEARLY and match.text == WHOLLY


def test_captions_are_texts_and_what_everyone_is_asked_is_none(tmp_path):
    def captioned(identity: str, *captions: str) -> Sample:
        return make_sample(
            identity, "captioning", ["a.png"], asked("captioning"), captions[:1], references=captions
        )

    train = folder(tmp_path / "t", captioned("1", "an owl sits.", "a bird"), seeds={"a.png": 1})
    test = folder(
        tmp_path / "e", captioned("1", "a cat", "A bird!"), captioned("2", "a dog"), seeds={"a.png": 5}
    )
    assert [match.text for match in matches_of(test, train)] == [WHOLLY, NOTHING]
    label = make_sample("1", "zero-shot", ["a.png"], "what is this?", ["owl"])
    test = folder(tmp_path / "z", label, seeds={"a.png": 1})
    (match,) = matches_of(test, train)
    assert match == (WHOLLY, None, None)


def test_texts_are_compared_by_words():
    assert same_text("Is  the Owl red?") == same_text("is the owl red") != same_text("is owl red")
    assert (
        same_text("c++?") != same_text("c?") and same_text("कि") != same_text("की") and same_text("+") != ""
    )
    assert same_text("cafe\u0301") == same_text("Caf\u00e9")
    assert near_text("Is the owl red?") == near_text("is owl red") != near_text("is owl blue")


def test_samples_are_marked_by_their_pictures_and_keep_their_facts(tmp_path, train):
    sample = make_sample("1", "vqa", ["a.png"], "?", ["owl"], facts={"benchmark": "gqa"})
    test = folder(tmp_path / "test", sample, ask("2", "new.png", "what is on the tree?"),
                  seeds={"a.png": 1, "new.png": 9})  # fmt: skip
    both = marked(FolderDataset(test).samples, matches_of(test, train))
    assert [one.facts for one in both] == [{"benchmark": "gqa", OVERLAP: SEEN}, {OVERLAP: NEW}]


def test_what_training_keeps_for_validation_was_not_trained_on(tmp_path):
    names = [f"{number}.png" for number in range(60)]
    samples = [ask(name, name, f"is it number {name}?") for name in names]
    place = folder(tmp_path / "all", *samples, seeds={name: seed for seed, name in enumerate(names)})
    source = FolderSource(place, 32)
    learnt = {source.document_keys("train", number)[0] for number in range(source.documents("train"))}
    assert 0 < len(learnt) < 60
    matches = overlap(dataset := FolderDataset(place), trained_on([place]))
    found = {sample.id: match for sample, match in zip(dataset.samples, matches, strict=True)}
    assert {name for name, match in found.items() if match.both == WHOLLY} == learnt
    assert {name for name, match in found.items() if match.picture == NOTHING} == set(names) - learnt


def test_looks_are_kept_until_a_picture_changes(tmp_path, train, monkeypatch):
    test = folder(tmp_path / "test", ask("1", "a.png", "what is on the tree?"), seeds={"a.png": 1})
    cache = tmp_path / "looks"
    first = matches_of(test, train, cache=cache)
    looked: list[np.ndarray] = []
    look_at = module.look_at
    monkeypatch.setattr(module, "look_at", lambda picture: (looked.append(picture), look_at(picture))[1])
    assert matches_of(test, train, cache=cache) == first == [(WHOLLY, WHOLLY, WHOLLY)]
    assert len(looked) == 1  # the test's picture alone
    published.draw(train / "a.png", 7, (97, 96))
    published.draw(train / "copy.png", 7, (97, 96))
    assert matches_of(test, train, cache=cache)[0].picture == NOTHING
