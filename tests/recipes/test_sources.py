"""A folder as a source of training: captions in turn, conversations without pictures, what is kept for validation."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import published
import tiny
from bifocal.config import UserError, fingerprint
from bifocal.data.batch import RowBuilder, Template
from bifocal.data.boxes import bins_to_box
from bifocal.data.folder import kept_for_validation
from bifocal.data.sample import Box, Message, Picture, Sample, write_samples
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.spoilt import Spoilt


def folder(place: Path, *samples: Sample) -> FolderSource:
    for name in {key for sample in samples for key in sample.pictures}:
        published.draw(place / name, 0)
    write_samples(place / "samples.jsonl", samples)
    return FolderSource(place, 32)


def caption(*texts: str) -> Sample:
    messages = (Message("user", (Picture(0), "describe the picture.")), Message("assistant", texts[:1]))
    return Sample("c", "captioning", "all", ("a.png",), messages, texts)


HELLO = Sample("t", "vqa", "all", (), (Message("user", ("hello",)), Message("assistant", ("good day",))))


def test_every_caption_of_a_picture_is_learnt(tmp_path):
    source = folder(tmp_path, caption("an owl", "a bird", "a brown owl"))
    rng = random.Random(0)
    said = {source.document("train", 0, rng, {"captioning": 1.0})[0].answer_text for _ in range(40)}
    assert said == {"an owl", "a bird", "a brown owl"}
    assert {"an owl", "a bird", "a brown owl"} <= set(source.texts())


def test_conversations_without_a_picture_are_told_and_not_looked_at(tmp_path):
    source = folder(tmp_path, caption("an owl"), HELLO)
    for split in ("train", "validation"):
        for number in range(4):
            assert source.picture(split, number).shape == (32, 32, 3)
            assert source.pair(split, number, 0).text == "an owl"
    documents = {
        split: [source.document_keys(split, n) for n in range(2)] for split in ("train", "validation")
    }
    assert () in documents["train"] + documents["validation"]


def test_each_conversation_without_a_picture_comes_as_often_as_a_picture(tmp_path):
    talks = [replace(HELLO, id=f"t{number}") for number in range(200)]
    source = folder(tmp_path, caption("an owl"), *talks)
    told: dict[str, list[str]] = {}
    for split in ("train", "validation"):
        one_each = [
            source.document(split, n, random.Random(0), {"vqa": 1.0, "captioning": 1.0})
            for n in range(source.documents(split))
        ]
        assert [len(samples) for samples in one_each] == [1] * len(one_each)
        told[split] = [samples[0].id for samples in one_each]
    # about a tenth is held out
    talked = {split: {name for name in names if name != "c"} for split, names in told.items()}
    assert not talked["train"] & talked["validation"]
    assert len(talked["train"] | talked["validation"]) == 200 and 10 <= len(talked["validation"]) <= 30
    assert all(kept_for_validation(talk) == (talk.id in talked["validation"]) for talk in talks)


# ------------------------------------------------------------ samples about two pictures


def about(*keys: str, task: str = "captioning") -> Sample:
    asked = Message("user", (*(Picture(place) for place in range(len(keys))), "what is there?"))
    messages = (asked, Message("assistant", (f"said of {' '.join(keys)}",)))
    return Sample(f"{task}/{'+'.join(keys)}", task, "all", keys, messages)


NAMES = [f"{number}.png" for number in range(60)]
PAIRS = [about(*pair, task="reasoning") for pair in zip(NAMES, NAMES[1:], strict=False)]


def test_clip_learns_from_the_captions_of_single_pictures_beside_pairs(tmp_path):
    alone, asked, only_in_pairs = NAMES[:20], NAMES[20:30], NAMES[30:]
    singles = [about(name) for name in alone] + [about(name, task="vqa") for name in asked]
    source = folder(tmp_path, *singles, *PAIRS)
    taken = {
        split: [source.pair(split, number, 0) for number in range(40)] for split in ("train", "validation")
    }
    assert all(pair.text == f"said of {pair.key}" for some in taken.values() for pair in some)
    keys = {split: {pair.key for pair in some} for split, some in taken.items()}
    assert keys["train"] | keys["validation"] == set(alone) and not keys["train"] & keys["validation"]
    assert source.uncaptioned() == len(asked) + len(only_in_pairs)


def test_a_folder_without_captions_is_refused_by_clip_alone(tmp_path):
    source = folder(tmp_path, about("a.png", task="vqa"), about("a.png", "b.png", task="reasoning"))
    assert source.picture("train", 0).shape == (32, 32, 3)
    with pytest.raises(UserError, match=r"no picture of .* has a caption, and CLIP learns from captions"):
        source.pair("train", 0, 0)


def test_no_picture_that_is_held_out_is_trained_on_beside_another(tmp_path):
    singles = [about(name) for name in NAMES]
    held_out = {sample.pictures[0] for sample in singles if kept_for_validation(sample)}
    assert held_out
    source = folder(tmp_path, *singles, *PAIRS)
    for split, clash in (("train", 0), ("validation", 1)):
        documents = [source.document_keys(split, number) for number in range(source.documents(split))]
        assert {min(1, len(held_out & {*keys})) for keys in documents} == {clash}
        assert {len(keys) for keys in documents} == {1, 2}


def test_single_pictures_are_held_out_by_the_hash_of_their_names_as_ever(tmp_path):
    for name in NAMES:
        tenth = int(fingerprint([name])[:8], 16) % 10 == 0
        assert kept_for_validation(about(name)) == tenth


def test_the_fingerprint_is_of_answers_and_pictures_and_that_of_a_copy(tmp_path):
    def captioned(name: str, words: str, size: int = 8) -> str:
        published.draw(tmp_path / name / "a.png", 0, (size, 20))
        write_samples(tmp_path / name / "samples.jsonl", [caption(words)])
        return FolderSource(tmp_path / name, 32).fingerprint

    first = captioned("first", "an owl", 20)
    assert captioned("copy", "an owl", 20) == first
    assert captioned("answer", "an elk", 20) != first
    assert captioned("picture", "an owl", 40) != first


def test_a_folder_without_any_picture_is_refused(tmp_path):
    with pytest.raises(UserError, match="have no pictures"):
        folder(tmp_path, HELLO)


def test_every_picture_of_a_pair_is_looked_at_in_an_order_that_is_not_the_folders(tmp_path):
    source = FolderSource.__new__(FolderSource)
    source.pictured = {"train": [(f"{n}a", f"{n}b") for n in range(10)], "validation": []}
    source.pixels = lambda key: key
    source._spoilt = Spoilt(20)
    epochs = [[source.picture("train", 10 * epoch + n) for n in range(10)] for epoch in range(2)]
    assert {key for epoch in epochs for key in epoch} == {f"{n}{side}" for n in range(10) for side in "ab"}
    orders = [[key[0] for key in epoch] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == [str(n) for n in range(10)]
    assert orders[0] != orders[1] and sorted(orders[0]) not in orders


@pytest.mark.parametrize("words", [tiny.tokenizer(), tiny.chat_tokenizer()], ids=["ours", "foreign"])
@pytest.mark.parametrize("shape", [(40, 160), (160, 40)])
def test_a_picture_of_any_shape_is_seen_whole_and_its_box_stays_right(tmp_path, words, shape):
    height, width = shape
    box = Box(0.5, 0.25, 0.75, 0.5)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 4 : height // 2, width // 2 : 3 * width // 4] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    messages = (Message("user", (Picture(0), "where is it?")), Message("assistant", (box,)))
    write_samples(tmp_path / "samples.jsonl", [Sample("b", "grounding", "all", ("a.png",), messages)])
    source = FolderSource(tmp_path, 32)
    seen = source.pixels("a.png").mean(axis=2)
    inside = np.zeros((32, 32), bool)
    inside[8:16, 16:24] = True  # the box, of 32 pixels
    assert seen[9:15, 17:23].min() > 250 and seen[~inside].mean() < 5
    builder = RowBuilder(Template(words, 4), 128)
    builder.add_document(source.document("train", 0, random.Random(0), {"grounding": 1.0}))
    learnt = builder.arrays()["tokens"][0][builder.arrays()["supervised"][0] == 1]
    bins = [int(token) - words.boxes.start for token in learnt if token in words.boxes]
    # 8 bins: the middle of one is up to a fourteenth away
    assert bins_to_box(bins, 8) == pytest.approx(box, abs=1 / 14 + 1e-9)
