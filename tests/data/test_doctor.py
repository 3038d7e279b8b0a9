"""The examination of a folder: everything that is wrong, in one sentence each, and how many samples survive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import published
import tiny
from bifocal.data.doctor import examine, looks_cut, unknown_characters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures with four samples each, and nothing wrong with them."""
    place = tiny.folder(tmp_path / "own", pictures=6)
    for number in range(6):
        published.draw(place / f"{number}.png", number)
    return place


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_a_sound_folder_survives_whole(folder):
    report = examine([folder])
    assert (report.samples, report.survivors, report.pictures, report.findings) == (24, 24, 6, [])


def test_training_data_of_our_own_have_no_findings(tmp_path):
    from bifocal.cli import main

    assert main(["data", "scenes", "--out", str(tmp_path / "scenes"), "--count", "12"]) == 0
    report = examine([tmp_path / "scenes"])
    assert report.survivors == report.samples
    assert not [finding for finding in report.findings if finding.fatal]


def rewrite(change: Callable[[list[dict]], object]) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        all_lines = lines(folder)
        change(all_lines)
        published.write_lines(folder / "samples.jsonl", all_lines)

    return go


def answer(text: object) -> Callable[[list[dict]], None]:
    """Line 2 (a question about picture 0) gets another answer."""
    return lambda all_lines: all_lines[1]["messages"][1].update(content=text)


def raw(number: int, data: bytes) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        rows = (folder / "samples.jsonl").read_bytes().split(b"\n")
        rows[number - 1] = data
        (folder / "samples.jsonl").write_bytes(b"\n".join(rows))

    return go


def picture(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def box(*edges: object) -> Callable[[list[dict]], None]:
    """Line 3 (a box in picture 0) gets other edges."""
    return lambda all_lines: all_lines[2]["messages"][1].update(content=[{"type": "box", "box": list(edges)}])


def size(width: object, height: object) -> Callable[[list[dict]], None]:
    """Line 3 (a box in picture 0, which has 80 x 60 pixels) was drawn on so many pixels."""
    return lambda all_lines: all_lines[2].update(facts={"size": [width, height]})


HALF = b'{"id": "x", "task": "vqa", "messages": [{"role": "user", "content": "\\ud83e"}]}'

# what is done to the folder -> the kind, what is said, and how many of 24 samples are lost
FINDINGS = [
    (raw(2, b'{"id": "vqa-0.png", "task":'), "line", "Line 2 of {file} is not JSON: Expecting value.", 1),
    (raw(2, b'{"id": "caf\xe9"}'), "line", "Line 2 of {file} is not UTF-8 text; save the file as UTF-8.", 1),
    (raw(2, b"[]"), "line", "Line 2 of {file} is not a sample: a sample is not an object but a list.", 1),
    (raw(2, b'{"id": "x"}'), "line", 'Line 2 of {file} is not a sample: "messages" is missing.', 1),
    (rewrite(lambda v: v[1].update(messages=[])), "line", 'Line 2 of {file} is not a sample: "messages" is empty', 1),
    (rewrite(lambda v: v[1].update(id=7)), "line", '"id" is not a text but a whole number (7).', 1),
    (rewrite(lambda v: v[1].update(anser="x")), "line", "Line 2 of {file} is not a sample: a sample has no anser", 1),
    (rewrite(box(30, 40, 200, 220)), "line", "Line 3 of {file} is not a sample: a box is [30, 40, 200, 220]", 1),
    (rewrite(box(0.5, 0.2, 0.1, 0.6)), "line", "the box [0.5, 0.2, 0.1, 0.6] is turned inside out", 1),
    (rewrite(box(0.1, "0.2", 0.5, 0.6)), "line", "a box is [0.1, '0.2', 0.5, 0.6]", 1),
    (rewrite(box(0.1, 0.2, 0.1, 0.6)), "box", "Line 3 of {file}: the box [0.1, 0.2, 0.1, 0.6] has no area.", 1),
    (rewrite(lambda v: v[1].update(id=v[0]["id"])), "id", "Line 2 of {file}: the id \"captioning-0.png\" stood on", 1),
    (rewrite(answer("")), "answer", "Line 2 of {file}: the answer is empty.", 1),
    (rewrite(answer("  ")), "answer", "Line 2 of {file}: the answer is empty.", 1),
    (rewrite(lambda v: v[1]["messages"].pop()), "answer", "Line 2 of {file}: the answer is empty.", 1),
    (rewrite(answer("a picture of an")), "cut", 'Line 2 of {file}: the answer "a picture of an" looks cut off.', 0),
    (rewrite(answer("red, green,")), "cut", 'the answer "red, green," looks cut off.', 0),
    (raw(2, HALF), "line", 'Line 2 of {file} is not a sample: "content" holds U+D83E', 1),
    (rewrite(size(60, 80)), "size", "0.png has 80 x 60 pixels, and its box was drawn on 60 x 80 (it was turned", 0),
    (rewrite(size(100, 60)), "size", "0.png has 80 x 60 pixels, and its box was drawn on 100 x 60.", 0),
    (rewrite(answer("caf\ufffd")), "characters", "Line 2 of {file}: a text has U+FFFD", 0),
    (rewrite(answer("cafÃ©")), "characters", "Line 2 of {file}: a text has \"Ã©\", which is UTF-8 read as", 0),
    (lambda folder: (folder / "0.png").unlink(), "picture", "Line 1 of {file} (and 3 more samples): There is no", 4),
    (picture("0.png", lambda data: b""), "picture", "more samples): The picture {folder}/0.png is empty", 4),
    (picture("0.png", lambda data: data[: len(data) // 2]), "picture", "{folder}/0.png is broken or cut off", 4),
    (picture("0.png", lambda data: b"<html>"), "picture", "{folder}/0.png is not a picture that can be read", 4),
    (rewrite(lambda v: v[1].update(pictures=["../x.png"])), "picture", "Line 2 of {file}: The picture", 1),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "kind", "says", "lost"), FINDINGS, ids=range(len(FINDINGS)))
def test_one_thing_that_is_wrong_is_one_sentence_with_file_and_line(folder, damage, kind, says, lost):
    damage(folder)
    report = examine([folder])
    (finding,) = report.findings
    assert finding.kind == kind and finding.fatal == (lost > 0)
    assert says.format(file=folder / "samples.jsonl", folder=folder) in finding.message
    assert finding.message.endswith(".") and "\n" not in finding.message
    assert (report.samples, report.survivors) == (24, 24 - lost)


@pytest.mark.parametrize("sides", [(80, 60), (40, 30), (107, 80), ("x", 5), (0, 0)])
def test_boxes_bear_that_their_picture_was_scaled(folder, sides):
    rewrite(size(*sides))(folder)
    assert not examine([folder]).findings


def test_a_folder_of_questions_alone_can_be_asked(folder):
    rewrite(lambda v: [sample["messages"].pop() for sample in v])(folder)
    (finding,) = (report := examine([folder])).findings
    assert (finding.kind, finding.fatal, len(finding.ids)) == ("answer", False, 24)
    assert report.survivors == 24


def test_references_do_not_count_as_answers_that_are_cut(folder):
    rewrite(lambda v: v[1].update(references=["an owl and"]))(folder)
    assert not examine([folder]).findings


def test_everything_is_found_at_once_and_a_sample_is_lost_once(folder):
    rewrite(lambda v: (answer("")(v), v[1].update(id=v[0]["id"])))(folder)
    (folder / "0.png").unlink()
    report = examine([folder])
    assert [finding.kind for finding in report.findings] == ["id", "picture", "answer"]
    assert report.survivors == 20
    assert json.loads(json.dumps(report.to_json()))["findings"][1]["ids"][0] == "captioning-0.png"


def test_duplicates_and_pictures_that_look_alike_cost_nothing(folder):
    from PIL import Image

    (folder / "1.png").write_bytes((folder / "0.png").read_bytes())
    Image.open(folder / "0.png").resize((160, 120)).save(folder / "2.png")
    report = examine([folder])
    assert [(finding.kind, finding.fatal) for finding in report.findings] == [
        ("duplicate", False),
        ("near-duplicate", False),
        ("near-duplicate", False),
    ]
    assert f"the picture {folder}/1.png is the same as {folder}/0.png" in report.findings[0].message
    assert report.survivors == 24


def test_a_picture_of_one_split_in_another_is_a_leak(folder, tmp_path):
    test = tiny.folder(tmp_path / "test", pictures=2)
    published.draw(test / "0.png", 77)
    (test / "1.png").write_bytes((folder / "3.png").read_bytes())
    report = examine([folder, test])
    (finding,) = report.findings
    assert finding.kind == "leak" and len(finding.ids) == 4
    assert f"the picture {test}/1.png is the same as {folder}/3.png of {folder}" in finding.message
    assert (report.samples, report.survivors, report.leaked) == (32, 32, 4)  # each split is sound by itself


def test_one_picture_in_two_splits_of_one_folder_is_a_leak(folder):
    rewrite(lambda v: [s.update(facts={"split": "test" if n == 1 else "train"}) for n, s in enumerate(v)])(
        folder
    )
    (finding,) = (report := examine([folder])).findings
    assert finding.kind == "leak" and finding.ids == ("vqa-0.png",)
    assert (report.survivors, report.leaked) == (24, 1)
    assert (
        f"Line 2 of {folder}/samples.jsonl: the picture {folder}/0.png is in the split train"
        in finding.message
    )


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a picture of an", True),
        ("an owl and", True),
        ("an owl (small", False),  # a bracket may be forgotten; nothing is missing for sure
        ("an owl (", True),
        ("red, green,", True),
        ("two owls -", True),
        ("", False),
        ("the", False),  # a word alone can be an answer
        ("turned on", False),
        ("an owl.", False),
        ("left-", False),
        ("t-shirt", False),
        ("vitamin A", False),
        ("vitamin a", False),
        ("type a", False),
        ("c +", False),
        ("this is a", True),
        ("a picture of a", True),
    ],
)
def test_what_looks_cut(text, cut):
    assert looks_cut(text) is cut


@pytest.mark.parametrize(
    ("text", "strange"),
    [
        ("café, naïve — “yes” 日本 🦉👍🏽 x²", ""),
        ("tab\tand\nline", ""),
        ("Ârea", ""),
        ("a\x00b", "U+0000"),
        ("\ue000", "U+E000"),
        ("\ufffd", "U+FFFD"),
        ("naÃ¯ve", "Ã¯"),
        ("itâ€™s", "â€"),
    ],
)
def test_what_is_no_character_that_anyone_meant(text, strange):
    assert strange in unknown_characters(text) and bool(strange) == bool(unknown_characters(text))
