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
from bifocal.cli import main
from bifocal.cli.folders import ImportFormat
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
    ended, _ = bring(run, name, tmp_path, "--split", "all")
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


def test_several_splits_are_not_mixed_unasked(run, tmp_path):
    ended, _ = bring(run, "karpathy", tmp_path / "unasked")
    assert "several splits (test, train, val): take one with --split, or --split all" in one_sentence(ended)
    assert not (tmp_path / "unasked" / "out").exists()
    ended, _ = bring(run, "karpathy", tmp_path / "asked", "--split", "all")
    assert "wrote 3 samples" in ended.out


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_of_nothing_is_refused(run, tmp_path, count):
    ended, _ = bring(run, "csv", tmp_path, "--count", str(count))
    assert f"--count must be at least 1, got {count}" in one_sentence(ended)


def test_questions_of_test_dev_are_about_pictures_of_test(run, tmp_path):
    published.draw(tmp_path / "test2015" / "COCO_test2015_000000000010.jpg", 0)
    asked = [{"question_id": 1, "image_id": 10, "question": "is it red?"}]
    whole = {"data_type": "mscoco", "data_subtype": "test-dev2015", "questions": asked}
    path = published.write(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", whole)
    assert run("data", "import", "vqav2", path, "--out", tmp_path / "out").status == 0
    (sample,) = FolderDataset(tmp_path / "out").samples
    assert sample.pictures == ("pictures/test2015/COCO_test2015_000000000010.jpg",)
    assert sample.facts["split"] == "test-dev2015"
    checked = run("data", "check", tmp_path / "out")
    assert checked.status == 0 and "a model can be asked, and nothing learnt or scored" in checked.out


def test_several_tables_without_ids_are_told_apart(run, tmp_path):
    for number in (0, 1):
        published.draw(tmp_path / "pictures" / f"{number}.png", number)
        (tmp_path / f"{number}.csv").write_text(f"image,caption\n{number}.png,an owl\n")
    words = [
        "data",
        "import",
        "csv",
        tmp_path / "0.csv",
        tmp_path / "1.csv",
        "--images",
        tmp_path / "pictures",
    ]
    assert run(*words, "--out", tmp_path / "out").status == 0
    assert [s.id for s in FolderDataset(tmp_path / "out").samples] == ["captioning/0/1", "captioning/1/1"]


def test_a_second_import_beside_the_first_finds_the_same_pictures(run, tmp_path):
    files = published.coco(tmp_path / "source")
    words = ["data", "import", "coco-captions", files["annotations"], "--images", tmp_path]
    for out in ("first", "second"):
        ended = run(*words, "--out", tmp_path / out)
        assert ended.status == 0, ended.err
    copy = tmp_path / "first" / "COCO_val2014_000000000008.jpg"  # of the same name, and another
    published.draw(copy, 99)
    assert 'COCO_val2014_000000000008.jpg" of sample "8" is 4 times under' in one_sentence(
        run(*words, "--out", tmp_path / "third")
    )


def test_links_to_folders_are_followed_and_may_go_round(run, tmp_path):
    files = published.coco(tmp_path / "source")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "val").symlink_to(files["pictures"], target_is_directory=True)
    (tmp_path / "links" / "round").symlink_to(tmp_path / "links", target_is_directory=True)
    words = ["data", "import", "coco-captions", files["annotations"], "--images", tmp_path / "links"]
    assert run(*words, "--out", tmp_path / "out").status == 0
    assert len(FolderDataset(tmp_path / "out").samples) == 3


def test_boxes_without_an_area_are_left_out_and_told(run, tmp_path):
    files = published.coco_detection(tmp_path / "source")
    whole = json.loads(files["annotations"].read_text())
    whole["annotations"][0]["bbox"] = [10, 10, 0, 20]
    path = published.write(tmp_path / "a" / "instances.json", whole)
    words = ["data", "import", "coco-detection", path, "--images", files["pictures"]]
    ended = run(*words, "--out", tmp_path / "out")
    assert ended.status == 0, ended.err
    assert (
        f"left out 1: 1.jpg/dog (Annotation 1 of {path}: the box [10.0, 10.0, 10.0, 30.0] is empty"
        in ended.out
    )
    assert [sample.id for sample in FolderDataset(tmp_path / "out").samples] == ["2.jpg/dog"]
    whole["annotations"][3]["bbox"] = [70, 10, 20, 20]
    published.write(path, whole)
    refused = one_sentence(run(*words, "--out", tmp_path / "none"))
    assert f"There are no samples in {path}: left out is 1.jpg/dog" in refused
    voc = published.voc(tmp_path / "voc")
    published.draw(tmp_path / "voc" / "JPEGImages" / "1.jpg", 1)
    empty = published.VOC.format(name="1").replace("<xmax>40</xmax>", "<xmax>0</xmax>")
    (voc["annotations"] / "1.xml").write_text(empty)
    words = ["data", "import", "voc", voc["annotations"], "--images", voc["pictures"]]
    ended = run(*words, "--out", tmp_path / "out-voc")
    assert f"left out 1: 1.jpg/dog (object 1 of {voc['annotations'] / '1.xml'}: the box" in ended.out


def test_tars_are_named_by_a_pattern(run, tmp_path):
    for number in range(3):
        shown = published.draw(tmp_path / "drawn.png", number).read_bytes()
        members = {"0.png": shown, "0.txt": f"owl {number}", "1.txt": "alone", "README": "x", "0.npy": b"\0"}
        published.tar(tmp_path / "shards" / f"part-{number:03d}.tar", members)
    for pattern, count in (("part-{000..001}.tar", 2), ("part-{000,002}.tar", 2), ("*.tar", 3)):
        out = tmp_path / pattern
        ended = run("data", "import", "webdataset", tmp_path / "shards" / pattern, "--out", out)
        assert ended.status == 0, ended.err
        samples = FolderDataset(out).samples
        assert samples[0].answer_text == "owl 0" and len(samples) == count
        assert f"left out {count}: part-000/1 (it has no picture)" in ended.out
        assert "nothing was made of the columns npy" in ended.out
    ended = run("data", "import", "webdataset", tmp_path / "none-*.tar", "--out", tmp_path / "none")
    assert f"There is no file that fits {tmp_path}/none-*.tar" in one_sentence(ended)


def test_shards_of_our_own_give_back_the_samples_they_were_made_of(run, tmp_path):
    folder = tiny.folder(tmp_path / "own", pictures=3)
    assert run("data", "pack", folder, "--out", tmp_path / "packed").status == 0
    ended = run("data", "import", "webdataset", tmp_path / "packed" / "*.tar", "--out", tmp_path / "out")
    assert ended.status == 0, ended.err
    before, after = FolderDataset(folder), FolderDataset(tmp_path / "out")
    assert [s.messages for s in after.samples] == [s.messages for s in before.samples]
    assert [s.id for s in after.samples] == [s.id for s in before.samples]
    assert (tmp_path / "out" / "pictures" / "0.png").read_bytes() == (folder / "0.png").read_bytes()


def test_two_pictures_of_one_name_in_two_tars_are_refused(run, tmp_path):
    for number in (0, 1):
        shown = published.draw(tmp_path / "drawn.png", number).read_bytes()
        about = json.dumps({"id": number})
        members = {"0.png": shown, "0.txt": "an owl", "0.json": about}
        published.tar(tmp_path / str(number) / "x.tar", members)
    ended = run("data", "import", "webdataset", tmp_path / "{0,1}" / "x.tar", "--out", tmp_path / "out")
    assert f"The picture x/0.png of {tmp_path}/0/x.tar is another in {tmp_path}/1/x.tar" in one_sentence(
        ended
    )


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


def tarred(**members: bytes | str) -> Callable[[Path], list[str | Path]]:
    """A tar with one sample whose members have these endings."""
    return lambda place: [
        "webdataset",
        published.tar(place / "x.tar", {f"0.{ending}": data for ending, data in members.items()}),
    ]


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], list[str | Path]]:
    def go(place: Path) -> list[str | Path]:
        path = published.webdataset(place)["annotations"].rename(place / "x.tar")
        path.write_bytes(change(path.read_bytes()))
        return ["webdataset", path]

    return go


def in_vqav2(change: Callable[[dict, dict], object]) -> Callable[[Path], list[str | Path]]:
    """VQAv2's two files, something about them changed."""

    def go(place: Path) -> list[str | Path]:
        files = published.vqav2(place)
        questions, annotations = (
            json.loads(files[name].read_text()) for name in ("questions", "annotations")
        )
        change(questions, annotations)
        return [
            "vqav2",
            published.write(files["questions"], questions),
            published.write(files["annotations"], annotations),
        ]

    return go


def in_detection(**changed: object) -> Callable[[Path], list[str | Path]]:
    """COCO's instances, their second annotation changed."""

    def go(place: Path) -> list[str | Path]:
        path = published.coco_detection(place)["annotations"]
        whole = json.loads(path.read_text())
        whole["annotations"][1] |= changed
        return ["coco-detection", published.write(path, whole)]

    return go


def refcoco_without(key: str) -> Callable[[Path], list[str | Path]]:
    def go(place: Path) -> list[str | Path]:
        files = published.refcoco(place)
        return ["refcoco", *(files[name] for name in ("refs", "instances") if name != key)]

    return go


def vqav2_without_questions(place: Path) -> list[str | Path]:
    return ["vqav2", published.vqav2(place)["annotations"]]


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
    (vqav2_without_questions, '6 questions have no words, such as "1": give the file of questions too'),
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
    (damaged(lambda data: b"<html>" * 200), "{place}/x.tar is no tar that can be read, or is cut off"),
    (damaged(lambda data: data[:3000]), "{place}/x.tar is no tar that can be read, or is cut off"),
    (damaged(lambda data: data.rstrip(b"\0")), "{place}/x.tar is no tar that can be read, or is cut off"),
    (
        damaged(lambda data: data.replace(b"./animals/001.cls", b"./animals/002.cls")),
        "{place}/x.tar is damaged or cut off behind its byte",
    ),
    (tarred(png=b"x", txt=b"caf\xe9"), "Sample 0 of {place}/x.tar: 0.txt of {place}/x.tar is not UTF-8 text"),
    (tarred(png=b"x", json="{"), "0.json of {place}/x.tar is not JSON"),
    (tarred(png=b"x", json="[]"), "0.json of {place}/x.tar is not an object but a list"),
    (tarred(txt="an owl"), "There are no samples in {place}/x.tar: left out is x/0 (it has no picture)"),
    (content("x.tar.gz", b"\x1f\x8b", "webdataset"), "{place}/x.tar.gz is compressed: unpack it first"),
    (content("own.csv", "image,caption\n".encode("utf-16"), "csv"), "Line 1 of {place}/own.csv is not UTF-8"),
    (
        content("x.jsonl", b'{"image": "0.png", "caption": "\\ud83e"}', "image-folder"),
        'Line 1 of {place}/x.jsonl: "caption" holds U+D83E, which is half a character without the other',
    ),
    (
        in_vqav2(lambda questions, _: questions["questions"].insert(1, 5)),
        "Question 2 of {place}/questions.json: a question is not an object but a whole number (5)",
    ),
    (
        in_vqav2(lambda questions, _: questions.pop("data_subtype")),
        '{place}/questions.json: "data_subtype" is missing, by which the pictures are named',
    ),
    (
        in_vqav2(lambda _, annotations: annotations["annotations"].pop()),
        "1 questions of {place}/questions.json, {place}/annotations.json have no annotation, such as the question_id 6",
    ),
    (in_detection(bbox=[float("nan"), 0, 1, 1]), 'an entry of "bbox" is not a finite number but nan'),
    (
        in_detection(bbox=["1", 0, 1, 1]),
        'Annotation 2 of {place}/instances_val.json: an entry of "bbox" is not a',
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
    assert (
        ended.status == 2 and "bifocal: 4 of 12 samples are not fit to be trained on or scored" in ended.err
    )
    assert "pictures missing or broken: 1 (ids captioning-1.png, vqa-1.png" in ended.out
    told = json.loads(run("data", "check", folder, "--json").out)
    assert (told["samples"], told["survivors"]) == (12, 8)
    assert told["findings"][0]["kind"] == "picture"


def test_check_tells_samples_that_leak_from_those_that_are_lost(run, tmp_path):
    train, test = (
        tiny.folder(tmp_path / name, pictures=count) for name, count in (("train", 3), ("test", 1))
    )
    ended = run("data", "check", train, test)
    assert ended.status == 2
    assert ended.err.splitlines()[-1] == (
        "bifocal: 4 of 16 samples are about pictures of another split: keep each picture in one"
    )
    assert "16 of 16 samples survive" in ended.out and "captioning-0.png" in ended.out
    assert "but what is learnt from one cannot be scored on the other" in ended.out
    (train / "2.png").unlink()
    both = run("data", "check", train, test, "--json")
    told = json.loads(both.out)
    assert (told["samples"], told["survivors"], told["leaked"]) == (16, 12, 4)
    assert "4 of 16 samples are not fit to be trained on or scored, and 4 of 16" in both.err


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


def test_show_takes_samples_from_the_end_too(run, tmp_path):
    folder = tiny.folder(tmp_path / "own", pictures=3)
    run("data", "show", folder, "-o", tmp_path / "own.html", "-n", "8")
    html = (tmp_path / "own.html").read_text()
    assert html.count("data:image/png;base64,") == 8 and "-2.png</span>" in html


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
