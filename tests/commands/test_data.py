"""`bifocal data import`, `check` and `show`: from published files to a folder that training and evaluation read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

import published
import tiny
from bifocal.cli import ImportFormat, main
from bifocal.data.folder import FolderDataset
from bifocal.data.formats import FORMATS


class Ended:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command line in this process."""

    def go(*words: str | Path) -> Ended:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return go


def one_sentence(ended: Ended) -> str:
    """The refusal: one line on standard error."""
    assert ended.status == 2 and ended.out == ""
    assert ended.err.count("\n") == 1 and ended.err.startswith("bifocal: ")
    return ended.err


def bring(
    run: Callable[..., Ended], name: str, place: Path, *options: str | Path
) -> tuple[Ended, dict[str, Path]]:
    """Imports the toy files of a format into ``place / "out"``."""
    writer, keys = published.WRITERS[name]
    files = writer(place / "source")
    return run(
        "data", "import", name, *(files[key] for key in keys), "--images", files["pictures"], "--out", place / "out",
        *options,
    ), files  # fmt: skip


# ------------------------------------------------------------ import


def test_the_choices_are_the_formats():
    assert set(get_args(ImportFormat)) == set(FORMATS)


@pytest.mark.parametrize("name", published.WRITERS)
def test_every_format_becomes_a_folder_that_training_and_evaluation_read(run, tmp_path, name):
    ended, _ = bring(run, name, tmp_path)
    assert ended.status == 0, ended.err
    dataset = FolderDataset(tmp_path / "out")
    for sample in dataset.samples:
        for key in sample.pictures:
            assert dataset.picture(key).shape == (published.HEIGHT, published.WIDTH, 3)
    assert f"wrote {len(dataset.samples)} samples" in ended.out
    assert run("data", "check", tmp_path / "out").status == 0


def test_an_imported_benchmark_is_evaluated_by_its_own_rules(run, tmp_path):
    from bifocal.evaluation import vqa
    from evaluation.fakes import FakeAnswer

    class Parrot:
        name = "parrot"

        def answer_batch(self, requests, *, max_new_tokens, batch_size):
            return [FakeAnswer("YES") for _ in requests]

    bring(run, "vqav2", tmp_path)
    predictions = vqa.predict(Parrot(), FolderDataset(tmp_path / "out", "vqa"))
    rows = {(row.slice, row.variant): row.value for row in vqa.score(predictions, model="m", split="val")}
    # where all ten say "yes" the script wants it as they wrote it; of the other question one of ten says so
    assert rows["yes/no", "official"] == pytest.approx((0 + 0.3) / 2)
    assert rows["yes/no", "sane"] == pytest.approx((1 + 0.3) / 2)


def test_one_split_and_the_first_samples_can_be_taken(run, tmp_path):
    ended, _ = bring(run, "refcoco", tmp_path, "--split", "val", "--count", "1")
    assert "wrote 1 samples about 1 pictures" in ended.out
    (sample,) = FolderDataset(tmp_path / "out").samples
    assert sample.facts["split"] == "val"


def test_pictures_take_no_space_of_their_own_and_the_source_stays_as_it_was(run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    _, files = bring(run, "coco-captions", tmp_path)
    source = next(files["pictures"].glob("*.jpg"))
    assert os.path.samefile(source, tmp_path / "out" / "pictures" / source.name)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_pictures_are_found_at_any_depth_and_under_their_names_of_2017(run, tmp_path):
    files = published.coco(tmp_path / "source")
    for picture in files["pictures"].glob("*.jpg"):
        new = tmp_path / "other" / "deep" / picture.name.removeprefix("COCO_val2014_")
        new.parent.mkdir(parents=True, exist_ok=True)
        picture.rename(new)
    words = ["data", "import", "coco-captions", files["annotations"], "--images", tmp_path / "other"]
    assert run(*words, "--out", tmp_path / "out").status == 0
    assert FolderDataset(tmp_path / "out").samples[0].pictures == ("pictures/deep/000000000007.jpg",)


def test_columns_of_which_nothing_is_made_are_named(run, tmp_path):
    published.draw(tmp_path / "0.png", 0)
    (tmp_path / "own.csv").write_text("image,caption,remark\n0.png,an owl,fine\n")
    ended = run("data", "import", "csv", tmp_path / "own.csv", "--out", tmp_path / "out")
    assert "nothing was made of the columns remark" in ended.out


def test_a_tab_separated_file_from_a_spreadsheet(run, tmp_path):
    published.draw(tmp_path / "0.png", 0)
    text = 'image\tquestion\tanswer\r\n0.png\t"what, and\r\nwhere?"\tan owl\r\n'
    (tmp_path / "own.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert run("data", "import", "csv", tmp_path / "own.tsv", "--out", tmp_path / "out").status == 0
    (sample,) = FolderDataset(tmp_path / "out").samples
    assert sample.question == "what, and\r\nwhere?" and sample.answer_text == "an owl"


def test_nothing_is_overwritten_and_nothing_is_left_half_done(run, tmp_path):
    bring(run, "csv", tmp_path)
    ended, _ = bring(run, "csv", tmp_path)
    assert "out is not empty: choose another --out" in one_sentence(ended)
    files = published.coco(tmp_path / "more")
    next(files["pictures"].glob("*.jpg")).unlink()
    ended = run("data", "import", "coco-captions", files["annotations"], "--out", tmp_path / "new")
    assert "is not under" in one_sentence(ended)
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.tmp").exists()


def table(*rows: str) -> Callable[[Path], list[str | Path]]:
    """A CSV file beside two pictures."""

    def go(place: Path) -> list[str | Path]:
        for number in (0, 1):
            published.draw(place / f"{number}.png", number)
        (place / "own.csv").write_text("".join(row + "\n" for row in rows))
        return ["csv", place / "own.csv"]

    return go


def written(name: str, value: Any, form: str) -> Callable[[Path], list[str | Path]]:
    return lambda place: [form, published.write(place / name, value)]


def content(name: str, data: bytes, form: str) -> Callable[[Path], list[str | Path]]:
    def go(place: Path) -> list[str | Path]:
        (place / name).write_bytes(data)
        return [form, place / name]

    return go


def refcoco_without(key: str) -> Callable[[Path], list[str | Path]]:
    def go(place: Path) -> list[str | Path]:
        files = published.refcoco(place)
        return ["refcoco", *(files[name] for name in ("refs", "instances") if name != key)]

    return go


def turns(*values: tuple[str, str]) -> list[dict]:
    return [{"image": "0.png", "conversations": [{"from": who, "value": text} for who, text in values]}]


HEAD = "image,question,answer"
BROKEN = [
    (table(), "{place}/own.csv is empty"),
    (table(HEAD), "{place}/own.csv has names of columns and no rows"),
    (table(HEAD, "0.png,what?"), "Line 2 of {place}/own.csv has 2 cells, and there are 3 columns"),
    (table(HEAD, '0.png,"what?,owl'), "Line 2 of {place}/own.csv is no row of a table"),
    (table("image;question;answer"), "Line 1 of {place}/own.csv: the columns are divided by semicolons"),
    (table("image,answer,answer"), "Line 1 of {place}/own.csv: a name of a column is empty or comes twice"),
    (table(HEAD, ",what?,owl"), "Line 2 of {place}/own.csv: it names no picture"),
    (
        table("picture_of,question,answer", "0.png,what?,owl"),
        "Line 2 of {place}/own.csv: it names no picture",
    ),
    (table(HEAD, "0.png,what?,"), 'Line 2 of {place}/own.csv: "question" has no answer'),
    (table(HEAD, "0.png,,"), "Line 2 of {place}/own.csv: nothing is said about its picture"),
    (table(HEAD, "9.png,what?,owl"), 'The picture "9.png" of sample "vqa/1" is not under {place}'),
    (table(HEAD, "../x.png,what?,owl"), 'The picture "../x.png" of sample "vqa/1" lies outside {place}'),
    (
        table("id," + HEAD, "a,0.png,what?,owl", "a,1.png,what?,cat"),
        'The id "vqa/a" comes twice in {place}/own.csv',
    ),
    (
        table("image,statement,answer", "0.png,an owl.,maybe"),
        "Line 2 of {place}/own.csv: the answer to a statement is",
    ),
    (
        table("image,expression,x1,y1,x2,y2", "0.png,owl,1,2,30,40"),
        "Line 2 of {place}/own.csv: the box [1.0, 2.0, 30.0",
    ),
    (
        table("image,expression,x1,y1,x2,y2", "0.png,owl,.5,.1,.2,.3"),
        "[0.5, 0.1, 0.2, 0.3] is empty or turned inside",
    ),
    (
        table("image,expression,x1,y1,x2,y2", "0.png,owl,a,0,1,1"),
        'Line 2 of {place}/own.csv: "x1" is not a number but',
    ),
    (
        content("own.csv", b"image,caption\n0.png,caf\xe9\n", "csv"),
        "Line 2 of {place}/own.csv is not UTF-8 text",
    ),
    (content("x.json", b'{"images": [1, 2', "coco-captions"), "Line 1 of {place}/x.json is not JSON"),
    (written("x.json", {"images": []}, "vqav2"), "{place}/x.json is not of the format vqav2, which is VQA's"),
    (written("x.json", turns(("bot", "hi")), "llava"), 'Entry 1 of {place}/x.json: a turn is from "bot"'),
    (
        written("x.json", turns(("human", "hi"), ("gpt", "hi")), "llava"),
        "<image> stands there 0 times, and there are 1",
    ),
    (
        written("x.json", turns(("human", "<image>hi")), "llava"),
        "Entry 1 of {place}/x.json: the last turn is not the",
    ),
    (refcoco_without("refs"), "RefCOCO is refs(...).p and instances.json together: refs(...).p is missing"),
    (refcoco_without("instances"), "instances.json is missing"),
    (
        content("refs.p", b"cos\nsystem\n(S'true'\ntR.", "refcoco"),
        "{place}/refs.p is not opened: it holds os.system",
    ),
    (content("a.xml", b"<annotation><object>", "voc"), "{place}/a.xml: line 1 is not XML"),
    (content("a.xml", b"<annotation></annotation>", "voc"), "{place}/a.xml: <size><width> is missing"),
]


@pytest.mark.parametrize(("make", "says"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_source_is_one_sentence_with_file_and_line(run, tmp_path, make, says):
    place = tmp_path / "in"
    place.mkdir()
    ended = run("data", "import", *make(place), "--out", tmp_path / "out")
    assert says.format(place=place) in one_sentence(ended)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------ check and show


def test_check_says_what_survives_and_ends_with_status_2_where_something_does_not(run, tmp_path):
    folder = tiny.folder(tmp_path / "own", pictures=3)
    sound = run("data", "check", folder)
    assert sound.status == 0 and "12 of 12 samples survive; they are about 3 pictures" in sound.out
    (folder / "1.png").unlink()
    ended = run("data", "check", folder)
    assert ended.status == 2 and "bifocal: 4 of 12 samples would not survive" in ended.err
    assert "pictures missing or broken: 1 (ids captioning-1.png, vqa-1.png" in ended.out
    told = json.loads(run("data", "check", folder, "--json").out)
    assert (told["samples"], told["survivors"]) == (12, 8)
    assert told["findings"][0]["kind"] == "picture"


def test_check_needs_folders(run, tmp_path):
    assert "There is no directory" in one_sentence(run("data", "check", tmp_path / "nowhere"))
    assert "at least one folder" in one_sentence(run("data", "check"))


def test_show_writes_one_page_with_pictures_boxes_and_answers(run, tmp_path):
    folder = tiny.folder(tmp_path / "own", pictures=3)
    ended = run("data", "show", folder, "-o", tmp_path / "own.html")
    assert ended.status == 0, ended.err
    html = (tmp_path / "own.html").read_text()
    assert html.count("data:image/png;base64,") == 12
    assert html.count('<rect class="true"') == 3
    assert "which number?" in html and "picture number 2" in html and "12 of 12 samples" in html
    assert "http" not in html.replace("http://www.w3.org", "")  # nothing is fetched
    run("data", "show", folder, "-o", tmp_path / "few.html", "-n", "3", "--task", "vqa")
    few = (tmp_path / "few.html").read_text()
    assert few.count("data:image/png;base64,") == 3 and "grounding" not in few


def test_show_keeps_text_from_becoming_markup(run, tmp_path):
    published.draw(tmp_path / "0.png", 0)
    (tmp_path / "own.csv").write_text("image,question,answer\n0.png,<script>alert(1)</script>,<b>\n")
    run("data", "import", "csv", tmp_path / "own.csv", "--out", tmp_path / "own")
    run("data", "show", tmp_path / "own", "-o", tmp_path / "own.html")
    assert "<script>alert" not in (tmp_path / "own.html").read_text()


def test_a_large_picture_is_shown_small(run, tmp_path):
    folder = tiny.folder(tmp_path / "own", pictures=1)
    Image.new("RGB", (3000, 2000), "red").save(folder / "0.png")
    run("data", "show", folder, "-o", tmp_path / "own.html", "--task", "vqa")
    assert (tmp_path / "own.html").stat().st_size < 60_000
