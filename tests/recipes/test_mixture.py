"""Several sets as one source: the right shares, the same turns every time, and clear words about a broken file."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

import published
from bifocal.config import UserError
from bifocal.data.batch import Template
from bifocal.data.sample import Message, Picture, Sample, write_samples
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.mixture import MixtureSource, read_mixture, source_of, turn_of, whole_weights
from bifocal.recipes.packing import Packer
from bifocal.recipes.sources import SceneSource
from bifocal.recipes.vlm import VLMRecipe

WORLD = WorldSettings(picture_size=32)


def folder(place: Path, count: int, *, task: str = "vqa", question: str = "what is it?") -> Path:
    """A folder of ``count`` pictures with one question each; all folders have pictures of the same names."""
    samples = []
    for number in range(count):
        published.draw(place / f"{number}.png", number, (32, 32))
        messages = (Message("user", (Picture(0), question)), Message("assistant", (place.name,)))
        samples.append(Sample(f"q{number}", task, "all", (f"{number}.png",), messages, (place.name,)))
    write_samples(place / "samples.jsonl", samples)
    return place


def mixed(place: Path, *sets: dict[str, object]) -> MixtureSource:
    path = published.write(place / "mix.json", {"sets": list(sets)})
    source = source_of(str(path), WORLD, 100)
    assert isinstance(source, MixtureSource)
    return source


@pytest.fixture
def two(tmp_path: Path) -> MixtureSource:
    """ "many" with 40 pictures and three shares, "few" with 12 and one."""
    folder(tmp_path / "many", 40)
    folder(tmp_path / "few", 12)
    return mixed(tmp_path, {"data": "many", "weight": 3}, {"data": "few", "weight": 1})


def set_of(source: MixtureSource, turn: int) -> str:
    return source.document_keys("train", turn)[0].split("/")[0]


# ------------------------------------------------------------ turns


@pytest.mark.parametrize("weights", [[3, 1], [1, 1, 1], [0.1, 0.7, 0.2], [1000, 1], [5, 3, 3, 1, 0.25]])
def test_after_any_number_of_turns_every_set_had_its_share_to_about_one(weights):
    whole, had = whole_weights(weights), Counter[int]()
    for number in range(3000):
        place, rank = turn_of(number, whole)
        assert rank == had[place]  # none left out, none twice
        had[place] += 1
        for each, weight in enumerate(weights):
            assert abs(had[each] - (number + 1) * weight / sum(weights)) < 1.5


def test_decimals_are_taken_as_they_are_written():
    assert whole_weights([0.1, 0.2]) == [1, 2]
    assert whole_weights([3, 1.5]) == [6, 3]


def test_the_share_is_right_in_the_long_run_also_where_a_step_uses_few_of_its_numbers(two):
    # 96 numbers are kept for a step, which uses the first ten: 96 is a multiple of the turns' period of four
    used = [step * 96 + place for step in range(400) for place in range(10)]
    counts = Counter(set_of(two, two.turn("train", number, seed=0)) for number in used)
    # without replacement within a block, so the spread is below that of 4000 tosses: 0.0068
    assert counts["many"] / len(used) == pytest.approx(0.75, abs=0.02)


def test_every_document_of_a_set_comes_as_often_as_the_others_of_it(two):
    counts = Counter(two.turn("train", number, seed=0) for number in range(4096))
    for name in ("many", "few"):
        own = [count for turn, count in counts.items() if set_of(two, turn) == name]
        assert len(own) == two.sources[two.names.index(name)].documents("train")
        assert max(own) - min(own) <= 1


def test_turns_are_a_function_of_seed_and_number(two, tmp_path):
    again = source_of(str(tmp_path / "mix.json"), WORLD, 100)
    turns = [two.turn("train", number, seed=3) for number in range(200)]
    assert [again.turn("train", number, seed=3) for number in reversed(range(200))][::-1] == turns
    assert [two.turn("train", number, seed=4) for number in range(200)] != turns


# ------------------------------------------------------------ what the sets give


def test_pictures_of_one_name_in_two_sets_are_told_apart(two):
    for turn in range(two.documents("train")):
        (key,) = two.document_keys("train", turn)
        (sample,) = two.document("train", turn, random.Random(0), {"vqa": 1.0})
        name, _, file = key.partition("/")
        assert sample.pictures == (key,) and sample.answer_text == name
        assert (two.pixels(key) == two.sources[two.names.index(name)].pixels(file)).all()
    ids = [
        two.document("train", n, random.Random(0), {"vqa": 1})[0].id for n in range(two.documents("train"))
    ]
    assert len(set(ids)) == len(ids)


def test_scenes_can_be_mixed_in(tmp_path):
    folder(tmp_path / "pets", 12)
    source = mixed(tmp_path, {"data": "pets"}, {"data": "scenes"})
    kinds = {
        type(source.sources[source.names.index(set_of(source, source.turn("train", number, 0)))])
        for number in range(20)
    }
    assert kinds == {FolderSource, SceneSource}
    number = next(n for n in range(source.documents("train")) if set_of(source, n) == "scenes")
    assert source.document("train", number, random.Random(0), {"captioning": 1.0, "vqa": 1.0})
    assert source.picture("train", 0).shape == (32, 32, 3)


def test_the_fingerprint_is_of_sets_and_shares(tmp_path, two):
    def of(*sets: dict[str, object]) -> str:
        return mixed(tmp_path, *sets).fingerprint

    assert of({"data": "many", "weight": 3}, {"data": "few", "weight": 1.0}) == two.fingerprint
    assert of({"data": "many", "weight": 2}, {"data": "few", "weight": 1}) != two.fingerprint
    assert of({"data": "many", "weight": 3}, {"data": "few", "name": "less"}) != two.fingerprint


def test_toml_says_the_same_as_json(tmp_path, two):
    path = tmp_path / "mix.toml"
    path.write_text('[[sets]]\ndata = "many"\nweight = 3\n\n[[sets]]\ndata = "few"\n')
    assert source_of(str(path), WORLD, 100).fingerprint == two.fingerprint


def test_the_shares_are_said(two, capsys, tmp_path):
    source_of(str(tmp_path / "mix.json"), WORLD, 100)
    assert "mix.json: many 75%, few 25%" in capsys.readouterr().out


# ------------------------------------------------------------ broken files


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ([{"data": "pets", "weight": 0}], r'set 1 \("pets"\): its weight is 0 and must be above 0'),
        ([{"data": "pets"}, {"data": "x", "weight": -2}], r'set 2 \("x"\): its weight is -2'),
        ([{"data": "pets"}, {"data": "./pets"}], 'set 2: another set is called "pets" too'),
        ([{"data": "pets", "name": "a/b"}], "without a slash"),
        ([{"data": "pets", "wieght": 1}], "unknown setting 'wieght'"),
        ([{"weight": 1}], "'data' is missing"),
        ([{"data": "pets", "weight": "much"}], "weight: expected a finite number, got 'much'"),
        ([], "mixes no sets"),
        ([{"data": "pets"}, {"data": "gone"}], 'the set "gone" of .*mix.json: There is no directory'),
    ],
)
def test_a_wrong_mixture_is_refused_in_a_sentence(tmp_path, sets, said):
    folder(tmp_path / "pets", 2)
    with pytest.raises(UserError, match=said):
        mixed(tmp_path, *sets)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mix.json", "{", "mix.json is no valid JSON"),
        ("mix.toml", "[[sets]", "mix.toml is no valid TOML"),
        ("mix.toml", None, "there is no file .*mix.toml"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        read_mixture(tmp_path / name)


def test_a_set_without_anything_of_what_is_trained_is_refused(tmp_path):
    folder(tmp_path / "pets", 2)
    folder(tmp_path / "labels", 2, task="zero-shot")
    source = mixed(tmp_path, {"data": "pets"}, {"data": "labels"})
    source.require({"vqa", "zero-shot"})
    with pytest.raises(UserError, match='the set "labels" has samples of zero-shot alone'):
        source.require({"vqa", "captioning"})


# ------------------------------------------------------------ training


def test_the_rows_of_a_vlm_hold_documents_in_the_right_shares_whatever_the_row_s_length(two):
    seen: list[str] = []

    class Store:
        def get(self, keys: list[str]) -> torch.Tensor:
            seen.extend(key.split("/")[0] for key in keys)
            return torch.zeros(len(keys), 4, 2)

    tokenizer = TextTokenizer.train(two.texts(), size=300, box_bins=64)
    recipe = VLMRecipe(batch_size=4, row_length=100)
    packer = Packer(recipe, two, Template(tokenizer, 4), {"train": Store()})  # type: ignore[dict-item]
    rows = [packer.rows("train", step, 4) for step in range(120)]
    assert len(seen) > 1000
    # a binomial spread of a thousand documents would be 0.014
    assert Counter(seen)["many"] / len(seen) == pytest.approx(0.75, abs=0.04)
    again = packer.rows("train", 7, 4)
    assert torch.equal(again.tokens, rows[7].tokens)


def test_a_vlm_trains_on_a_mixture(tmp_path, smoke, capsys):
    from bifocal.cli import main

    folder(tmp_path / "pets", 12)
    path = published.write(
        tmp_path / "mix.json", {"sets": [{"data": "pets", "weight": 1}, {"data": "scenes", "weight": 3}]}
    )
    words = ["train", "vlm", "--smoke", "--steps", "2", "--vision", str(smoke / "clip"), "--data", str(path)]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["data"] == str(path)
    assert main(["train", "prior", "--smoke", "--vision", str(smoke / "vqvae"), "--data", str(path),
                 "--out", str(tmp_path / "prior")]) == 2  # fmt: skip
    assert "a prior learns every picture as often" in capsys.readouterr().err


def test_a_file_that_leads_back_to_itself_is_refused(tmp_path):
    published.write(tmp_path / "mix.json", {"sets": [{"data": "other.json", "name": "other"}]})
    published.write(tmp_path / "other.json", {"sets": [{"data": "mix.json", "name": "first"}]})
    with pytest.raises(UserError, match=r'the set "first" of .*other\.json: it mixes itself'):
        source_of(str(tmp_path / "mix.json"), WORLD, 100)
