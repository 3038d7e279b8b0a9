"""Every published format, from files on disk to samples."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

import published
from bifocal.config import UserError
from bifocal.data.formats import FORMATS, open_document, open_documents, recognise
from bifocal.data.formats.base import pixel_box
from bifocal.data.sample import Box, Picture, Sample, read_samples, write_samples

EVERY = pytest.mark.parametrize("name", published.WRITERS)


def read_samples_of(name: str, paths: list[Path]) -> list[Sample]:
    return FORMATS[name].samples(open_documents(name, paths))


def annotations(name: str, place: Path) -> list[Path]:
    writer, keys = published.WRITERS[name]
    files = writer(place)
    return [files[key] for key in keys]


def samples(name: str, place: Path) -> dict[str, Sample]:
    return {sample.id: sample for sample in read_samples_of(name, annotations(name, place))}


def test_every_format_is_tested_here():
    assert set(published.WRITERS) | {"samples"} == set(FORMATS)


@EVERY
def test_samples_survive_our_own_layout_and_the_order_of_files_does_not_matter(name, tmp_path):
    paths = annotations(name, tmp_path)
    read = read_samples_of(name, paths)
    assert read == read_samples_of(name, paths[::-1])
    write_samples(tmp_path / "samples.jsonl", read)
    assert read_samples(tmp_path / "samples.jsonl") == read
    assert read_samples_of("samples", [tmp_path / "samples.jsonl"]) == read


@EVERY
def test_every_sample_ends_with_an_answer_and_shows_its_pictures_first(name, tmp_path):
    for sample in samples(name, tmp_path).values():
        assert sample.answer
        count = len(sample.pictures)
        assert list(sample.messages[0].parts[:count]) == [Picture(index) for index in range(count)]


@pytest.mark.parametrize("name", [name for name, item in FORMATS.items() if item.answers and item.task])
def test_a_format_with_results_is_recognised_by_its_content(name, tmp_path):
    paths = annotations(name, tmp_path)
    assert recognise([open_document(path) for path in paths], FORMATS[name].task).name == name


def test_files_of_another_format_are_refused_by_name(tmp_path):
    (path,) = annotations("clevr", tmp_path)
    with pytest.raises(UserError, match=r"CLEVR_val_questions\.json is not of the format nlvr2"):
        read_samples_of("nlvr2", [path])
    with pytest.raises(
        UserError, match="these are no annotations for reasoning, which are NLVR2's JSON lines"
    ):
        recognise([open_document(path)], "reasoning")


# ------------------------------------------------------------ one by one


def test_vqav2_keeps_ten_answers_and_names_the_picture_as_coco_does(tmp_path):
    sample = samples("vqav2", tmp_path)["3"]
    assert (sample.question, sample.slice, len(sample.references)) == ("what is it?", "other", 10)
    assert sample.answer_text == "owl"
    assert sample.pictures == ("COCO_val2014_000000000011.jpg",)
    assert sample.facts["split"] == "val2014"


def test_vqav2_without_questions_has_no_words_and_without_annotations_no_answers(tmp_path):
    questions, answers = annotations("vqav2", tmp_path)
    assert read_samples_of("vqav2", [answers])[0].question == ""
    sample = read_samples_of("vqav2", [questions])[2]
    assert (sample.id, sample.question, sample.answer, sample.references) == ("3", "what is it?", (), ())
    assert sample.pictures == ("COCO_val2014_000000000011.jpg",)


def test_gqa_knows_what_is_balanced_entailed_and_possible(tmp_path):
    first = samples("gqa", tmp_path)["001"]
    assert first.facts["balanced"] and first.facts["entailed"] == ["001", "002"]
    assert first.facts["valid"] == ["red", "blue"] and first.facts["answer_group"] == "color"
    assert first.facts["slices"] == ["structural: query", "semantic: attr", "open"]


@pytest.mark.parametrize("structural", ["verify", "choose", "logical", "compare"])
def test_gqa_s_questions_are_open_where_they_are_queries_and_else_binary(tmp_path, structural):
    questions, choices = annotations("gqa", tmp_path)
    whole = open_document(questions).value
    whole["002"]["types"]["structural"] = structural
    first, second, _ = read_samples_of("gqa", [published.write(questions, whole), choices])
    assert (first.facts["slices"][-1], second.facts["slices"][-1]) == ("open", "binary")


def test_gqa_comes_in_chunks(tmp_path):
    questions, choices = annotations("gqa", tmp_path)
    more = published.write(tmp_path / "chunk2.json", {"900": open_document(questions).value["001"]})
    assert [s.id for s in read_samples_of("gqa", [questions, choices, more])] == ["001", "002", "003", "900"]


def test_coco_has_all_captions_of_a_picture_and_karpathy_its_splits(tmp_path):
    assert samples("coco-captions", tmp_path / "a")["8"].references == tuple(published.CAPTIONS[8])
    splits = {sample.id: sample.facts["split"] for sample in samples("karpathy", tmp_path / "b").values()}
    assert splits == {"7": "train", "8": "val", "9": "test"}


def test_nlvr2_is_about_a_pair_and_resampled_by_its_set(tmp_path):
    sample = samples("nlvr2", tmp_path)["dev-3-1-0"]
    assert sample.pictures == ("dev-3-1-img0.png", "dev-3-1-img1.png")
    assert (sample.question, sample.answer_text) == ("There are two owls. true or false?", "false")
    assert (sample.facts["group"], sample.facts["sentence"]) == ("dev-3", "dev-3--0")


def test_refcoco_in_its_three_ways_says_the_same(tmp_path):
    three = [
        list(samples(name, tmp_path / name).values())
        for name in ("refcoco", "refcoco-lines", "refcoco-mdetr")
    ]
    for one, two, other in zip(*three, strict=True):
        assert one.question == two.question == other.question
        assert one.boxes == two.boxes == other.boxes
        assert one.facts["size"] == two.facts["size"] == other.facts["size"] == [80.0, 60.0]
    first = three[0][0]
    assert first.boxes == (Box(10 / 80, 20 / 60, 40 / 80, 45.5 / 60),)
    assert first.pictures == ("COCO_train2014_000000000041.jpg",)  # without the number behind it
    assert [sample.facts["split"] for sample in three[0]] == ["val", "val", "testA"]


@pytest.mark.parametrize("name", ["owls/41.jpg", None])
def test_the_picture_of_a_reference_is_that_of_the_instances(tmp_path, name):
    files = published.refcoco(tmp_path)
    whole = open_document(files["instances"]).value
    for image in whole["images"]:
        del image["file_name"]
        if name and image["id"] == 41:
            image["file_name"] = name
    found = read_samples_of("refcoco", [files["refs"], published.write(files["instances"], whole)])
    assert [sample.pictures[0] for sample in found] == [
        name or "COCO_train2014_000000000041.jpg",
        name or "COCO_train2014_000000000041.jpg",
        "COCO_train2014_000000000042.jpg",
    ]


def test_the_same_words_about_the_same_picture_are_told_apart_by_their_order(tmp_path):
    line = {"image": "a.jpg", "sent": "man", "bbox": [0, 0, 5, 5], "width": 10, "height": 10}
    published.write_lines(tmp_path / "a.jsonl", [line, line])
    assert [s.id for s in read_samples_of("refcoco-lines", [tmp_path / "a.jsonl"])] == [
        "a.jpg: man",
        "a.jpg: man (2)",
    ]


def test_clevr_by_type_and_family(tmp_path):
    found = samples("clevr", tmp_path)
    kinds = [sample.facts["slices"] for sample in found.values()]
    assert kinds == [
        ["count", "family 3"],
        ["exist", "family 4"],
        ["compare integer", "family 3"],
        ["query color", "family 9"],
    ]


def test_llava_keeps_turns_moves_pictures_first_and_numbers_ids_that_come_again(tmp_path):
    found = samples("llava", tmp_path)
    assert list(found) == ["000", "000#2", "text"]
    assert [message.role for message in found["000"].messages] == ["user", "assistant"] * 2
    assert found["000#2"].messages[0].parts == (Picture(0), Picture(1), "Compare.")
    assert found["text"].pictures == ()


def test_pictures_between_words_stay_there_in_llava(tmp_path):
    said = "Image 1:<image>\nImage 2: <image>\nwhich is red?"
    turns = [{"from": "human", "value": said}, {"from": "gpt", "value": "the first"}]
    value = [{"id": "0", "image": ["0.jpg", "1.jpg"], "conversations": turns}]
    (sample,) = read_samples_of("llava", [published.write(tmp_path / "llava.json", value)])
    assert sample.messages[0].parts == ("Image 1:", Picture(0), "Image 2:", Picture(1), "which is red?")
    assert sample.asked == sample.messages[:1]


@pytest.mark.parametrize("said", ["<image>\nwhich?", "which?\n<image>"])
def test_a_picture_at_either_end_of_the_words_opens_the_conversation_in_llava(tmp_path, said):
    turns = [{"from": "human", "value": said}, {"from": "gpt", "value": "the first"}]
    value = [{"id": "0", "image": "0.jpg", "conversations": turns}]
    (sample,) = read_samples_of("llava", [published.write(tmp_path / "llava.json", value)])
    assert sample.messages[0].parts == (Picture(0), "which?")
    assert sample.asked == "which?"


def test_detection_asks_for_what_a_picture_has_one_of(tmp_path):
    found = samples("coco-detection", tmp_path / "coco")
    assert list(found) == ["1.jpg/dog", "2.jpg/dog"]  # not one of two cats, not one of a crowd
    assert found["1.jpg/dog"].boxes == (Box(10 / 80, 10 / 60, 30 / 80, 30 / 60),)
    (dog,) = samples("voc", tmp_path / "voc").values()
    assert dog.boxes == (Box(0, 10 / 60, 40 / 80, 1.0),)  # pixels counted from 1, the last one in the box


def test_rows_become_a_sample_for_each_of_their_texts(tmp_path):
    found = samples("csv", tmp_path / "csv")
    assert list(found) == ["vqa/1", "captioning/1", "grounding/2"]
    assert found["vqa/1"].references == ("owl", "bird")
    assert found["captioning/1"].answer_text == "an owl, in red"
    assert found["grounding/2"].boxes == (Box(0.1, 0.2, 0.5, 0.6),)
    folder = samples("image-folder", tmp_path / "folder")
    assert folder["reasoning/3"].pictures == ("0.png", "1.png")
    assert (folder["reasoning/3"].answer_text, folder["vqa/2"].answer_text) == ("true", "2")


# ------------------------------------------------------------ boxes


def test_a_box_may_leave_its_picture_by_a_pixel_of_rounding_and_no_more():
    assert pixel_box((-0.5, 0, 10, 10.6), 10, 10) == Box(0, 0, 1, 1)
    with pytest.raises(UserError, match="leaves its picture of 10 x 10 pixels"):
        pixel_box((0, 0, 12, 10), 10, 10)
    with pytest.raises(UserError, match="turned inside out"):
        pixel_box((5, 0, 3, 10), 10, 10)
    with pytest.raises(UserError, match="has nothing of its picture"):
        pixel_box((-0.5, 0, -0.2, 10), 10, 10)


# ------------------------------------------------------------ Parquet


def test_parquet_holds_its_pictures_and_names_them_by_their_content(tmp_path):
    found = samples("parquet", tmp_path)
    assert list(found) == ["vqa/1", "captioning/2", "vqa/3"]
    assert found["vqa/1"].pictures == found["captioning/2"].pictures != found["vqa/3"].pictures
    assert found["captioning/2"].references == ("an owl", "a bird")
    (document,) = open_documents("parquet", [tmp_path / "data" / "train-00000.parquet"])
    (name,) = found["vqa/3"].pictures
    assert document.pictures is not None and name.endswith(".png")
    assert document.pictures.read(name) == (tmp_path / "drawn" / "1.png").read_bytes()


def test_parquet_may_hold_several_pictures_in_a_cell(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    shown = [published.draw(tmp_path / f"{number}.png", number).read_bytes() for number in (0, 1)]
    structures = [{"bytes": data, "path": None} for data in shown]
    rows = [{"images": structures, "caption": "two"}, {"images": structures[1:], "caption": "one"}]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    (document,) = open_documents("parquet", [tmp_path / "x.parquet"])
    two, one = FORMATS["parquet"].samples([document])
    assert len(two.pictures) == 2 and one.pictures == two.pictures[1:]
    assert document.pictures is not None
    assert [document.pictures.read(name) for name in two.pictures] == shown


def test_a_jpeg_with_a_second_picture_inside_is_a_jpeg(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    written = io.BytesIO()
    first.save(written, format="MPO", save_all=True, append_images=[second])
    rows = [{"image": written.getvalue(), "caption": "red"}]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    (sample,) = read_samples_of("parquet", [tmp_path / "x.parquet"])
    assert sample.pictures[0].endswith(".jpg")


def test_a_parquet_s_picture_of_absurd_size_is_named_by_row_and_column(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")
    write_table(pyarrow.Table.from_pylist([{"image": data, "caption": "x"}]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r'Row 1 of .*x\.parquet: The picture "image" is too large'):
        open_document(tmp_path / "x.parquet")


def test_an_encoding_that_nobody_knows_is_one_sentence(tmp_path):
    (tmp_path / "1.xml").write_text('<?xml version="1.0" encoding="klingon"?><annotation/>')
    with pytest.raises(UserError, match=r"1\.xml: it cannot be read \(unknown encoding"):
        read_samples_of("voc", [tmp_path])


def test_parquet_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow.parquet import write_table

    files = published.parquet(tmp_path)
    data = files["annotations"].read_bytes()
    files["annotations"].write_bytes(data[:-20])
    with pytest.raises(UserError, match=r"train-00000\.parquet is no Parquet file that can be read"):
        open_document(files["annotations"])
    write_table(pyarrow.Table.from_pylist([{"image": b"<html>", "caption": "x"}]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r'Row 1 of .*x\.parquet: "image" is not a picture that can be read'):
        open_document(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"x\.parquet needs the package pyarrow: pip install"):
        open_document(tmp_path / "x.parquet")


# ------------------------------------------------------------ WebDataset


def test_members_of_one_name_are_one_sample(tmp_path):
    found = samples("webdataset", tmp_path)
    assert list(found) == [
        "captioning/train-000/000",
        "zero-shot/train-000/animals/001",
        "vqa/train-000/002",
    ]
    captioned = found["captioning/train-000/000"]
    assert captioned.references == ("an owl | shop",)  # nobody divided anything by the bar
    assert captioned.pictures == ("train-000/000.png",)
    assert found["zero-shot/train-000/animals/001"].answer_text == "7"
    pair = found["vqa/train-000/002"]
    assert (pair.question, pair.answer_text, len(pair.pictures)) == ("which is left?", "the owl", 2)
    (document,) = open_documents("webdataset", [tmp_path / "shards" / "train-000.tar"])
    assert document.pictures is not None
    assert document.pictures.read(pair.pictures[1]) == (tmp_path / "drawn" / "2.png").read_bytes()


def test_a_member_that_comes_twice_is_named(tmp_path):
    path = published.tar(tmp_path / "x.tar", {"0.png": b"x", "./0.PNG": b"y"})
    with pytest.raises(UserError, match=r"x\.tar has the member 0\.PNG twice"):
        open_document(path)
