"""What a run was trained on is read from its recipe, its encoder's recipe and the mixtures they name."""

from __future__ import annotations

from pathlib import Path

import pytest

import published
from bifocal.commands.contamination import LOOKS, contamination, training_sets
from bifocal.data.folder import FolderDataset
from bifocal.data.formats.base import make_sample
from bifocal.data.sample import write_samples


def folder(place: Path, seed: int) -> Path:
    published.draw(place / "a.png", seed, (96, 96))
    write_samples(place / "samples.jsonl", [make_sample("1", "vqa", ["a.png"], f"is it {seed}?", ["yes"])])
    return place


def run(place: Path, **recipe: object) -> Path:
    published.write(place / "recipe.json", {"kind": "vlm", "data": None, **recipe})
    return place


@pytest.fixture
def test_set(tmp_path: Path) -> FolderDataset:
    return FolderDataset(folder(tmp_path / "test", 1))


def test_the_data_of_encoder_and_teacher_count_too_and_so_do_all_sets_of_a_mixture(tmp_path):
    mix = published.write(tmp_path / "mix.json", {"sets": [{"data": "a"}, {"data": "scenes"}, {"data": "b"}]})
    clip = run(tmp_path / "clip", data=str(tmp_path / "c"))
    teacher = run(tmp_path / "teacher", data=str(tmp_path / "d"))
    vlm = run(tmp_path / "vlm", data=str(mix), vision=str(clip), align=str(teacher))
    parti = run(tmp_path / "parti", vision=str(teacher), text_from=str(clip))
    assert list(training_sets(vlm)) == [str(tmp_path / name) for name in "abcd"]
    assert list(training_sets(parti)) == [str(tmp_path / name) for name in "dc"]
    assert list(training_sets(run(tmp_path / "scenes"))) == []
    assert list(training_sets(tmp_path / "somebody-elses-model")) == []


def test_so_do_the_data_of_the_run_that_it_was_begun_with_and_of_those_before(tmp_path):
    first = run(tmp_path / "first", data="one")
    second = run(tmp_path / "second", data="two", init_from=str(first))
    third = run(tmp_path / "third", data="three", init_from=str(second))
    assert list(training_sets(third)) == ["three", "two", "one"]
    run(tmp_path / "first", data="one", init_from=str(third))  # in the place of the first: it goes round
    assert list(training_sets(third)) == ["three", "two", "one"]


def test_a_test_picture_in_the_training_folder_is_found_and_its_looks_are_kept(tmp_path, test_set):
    (match,) = contamination(run(tmp_path / "vlm", data=str(folder(tmp_path / "train", 1))), test_set)
    assert match.picture.exact and match.both.exact
    assert len(list((tmp_path / "vlm" / LOOKS).glob("*.npz"))) == 1
    (match,) = contamination(run(tmp_path / "other", data=str(folder(tmp_path / "others", 2))), test_set)
    assert not match.picture.near and not match.text.near


def test_a_folder_can_be_named_that_the_recipe_does_not(tmp_path, test_set):
    scenes = run(tmp_path / "vlm")
    assert contamination(scenes, test_set) is None
    (match,) = contamination(scenes, test_set, str(folder(tmp_path / "train", 1)))
    assert match.picture.exact


def test_a_folder_that_is_gone_is_named(tmp_path, test_set, capsys):
    assert contamination(run(tmp_path / "vlm", data=str(tmp_path / "gone")), test_set) is None
    assert "was trained on " in (said := capsys.readouterr().err) and "gone, which is not there" in said


@pytest.mark.parametrize("part", ["vision", "text_from", "align", "perceptual", "init_from"])
def test_a_run_that_is_named_and_gone_is_told(tmp_path, test_set, capsys, part):
    data = str(folder(tmp_path / "train", 2))
    inner = run(tmp_path / "inner", **{part: str(tmp_path / "moved")})
    contamination(run(tmp_path / "outer", data=data, vision=str(inner)), test_set)
    assert "has parts of " in (said := capsys.readouterr().err) and "moved, which is not there" in said
    (tmp_path / "moved").mkdir()  # a model of another tool, which has no recipe
    contamination(run(tmp_path / "outer", data=data, vision=str(inner)), test_set)
    assert "is not there" not in capsys.readouterr().err


def test_training_pictures_that_are_gone_are_named_and_the_others_looked_at(tmp_path, test_set, capsys):
    train = folder(tmp_path / "train", 1)
    published.draw(train / "b.png", 2)
    samples = [make_sample(n, "vqa", [f"{n}.png"], "is it?", ["yes"]) for n in ("a", "b", "gone", "broken")]
    write_samples(train / "samples.jsonl", samples)
    (train / "broken.png").write_bytes(b"no picture")
    vlm = run(tmp_path / "vlm")
    (match,) = contamination(vlm, test_set, str(train))
    assert match.picture.exact
    assert "2 of the pictures" in (said := capsys.readouterr().err) and "gone.png" in said
    assert not (vlm / LOOKS).exists()  # what is kept of a folder is kept of all of it
    published.draw(train / "gone.png", 3)
    published.draw(train / "broken.png", 4)
    contamination(vlm, test_set, str(train))
    assert "cannot be read" not in capsys.readouterr().err and (vlm / LOOKS).is_dir()


def test_a_test_picture_that_cannot_be_read_is_not_held_against_anything(tmp_path, test_set):
    (test_set.directory / "a.png").write_bytes(b"no picture")
    (match,) = contamination(run(tmp_path / "vlm", data=str(folder(tmp_path / "train", 1))), test_set)
    assert not match.picture.near
