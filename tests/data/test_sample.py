"""Samples: their views, their JSON, and directories of them."""

import json

import numpy as np
import pytest
from PIL import Image

from bifocal.config import UserError
from bifocal.data.folder import FolderDataset
from bifocal.data.sample import Box, Message, Part, Picture, Sample, read_samples, write_samples

GROUNDING = Sample(
    id="a-1",
    task="grounding",
    slice="refcoco",
    pictures=("owl.png", "zwei öwls.png"),
    messages=(
        Message("system", ("be brief",)),
        Message("user", (Picture(0), "what is this?")),
        Message("assistant", ("an owl",)),
        Message("user", (Picture(1), "where is ", Box(0, 0, 0.5, 0.5), " now?")),
        Message("assistant", ("here ", Box(0.25, 0.5, 1.0, 0.75))),
    ),
    references=("here",),
    facts={"objects": {"owl": 2}},
)


def test_prompt_and_answer_split_at_the_last_turn():
    assert GROUNDING.prompt[:3] == ("be brief", Picture(0), "what is this?")
    assert GROUNDING.prompt[-1] == " now?"
    assert GROUNDING.answer == ("here ", Box(0.25, 0.5, 1.0, 0.75))
    assert GROUNDING.boxes == (Box(0.25, 0.5, 1.0, 0.75),)
    assert GROUNDING.question == "where is  now?"


def test_without_an_answer_all_is_prompt():
    waiting = Sample("1", "vqa", "all", (), (Message("user", ("hello",)),))
    assert (waiting.prompt, waiting.answer, waiting.boxes) == (("hello",), (), ())


def test_json_round_trip(tmp_path):
    assert Sample.from_json(json.loads(json.dumps(GROUNDING.to_json()))) == GROUNDING
    plain = Sample("2", "vqa", "all", ("owl.png",), (Message("user", ("hello",)),))
    write_samples(tmp_path / "samples.jsonl", [GROUNDING, plain])
    assert read_samples(tmp_path / "samples.jsonl") == [GROUNDING, plain]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_content_is_as_chat_services_write_it():
    content = GROUNDING.to_json()["messages"][3]["content"]
    assert content[0] == {"type": "image", "index": 1}
    assert content[1] == {"type": "text", "text": "where is "}
    assert content[2] == {"type": "box", "box": [0, 0, 0.5, 0.5]}


def test_hand_written_samples_may_be_short():
    sample = Sample.from_json(
        {
            "id": "1",
            "task": "vqa",
            "pictures": ["a.png", "b.png"],
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}],
                },
                {"role": "assistant", "content": "two owls"},
            ],
        }
    )
    assert sample.messages[0].parts == (Picture(0), Picture(1), "?")
    assert (sample.slice, sample.references, sample.facts) == ("all", (), None)


def _user(part):
    return json.dumps({**GOOD, "messages": [{"role": "user", "content": [part]}]})


GOOD = {"id": "1", "task": "vqa", "pictures": ["a.png"], "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "1"', "is not JSON"),
        ("[]", "a sample is not an object"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "id"}), '"id" is missing'),
        (json.dumps({**GOOD, "answers": []}), "a sample has no answers"),
        (json.dumps({**GOOD, "messages": []}), '"messages" is empty'),
        (json.dumps({**GOOD, "messages": [{"role": "bot", "content": "hi"}]}), 'role "bot"'),
        (_user({"type": "video"}), "type 'video'"),
        (_user({"type": "image", "index": 1}), "1 pictures"),
        (_user({"type": "box", "box": [0, 0, 2, 1]}), "box"),
        (_user({"type": "box", "box": [1, 0, 0, 1]}), "out"),
        (json.dumps({**GOOD, "facts": [1]}), '"facts" is not an object'),
    ],
)
def test_a_broken_line_names_file_and_line(tmp_path, line, says):
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(UserError) as caught:
        read_samples(path)
    assert f"Line 3 of {path}" in str(caught.value) and says in str(caught.value)


def test_what_cannot_be_written_names_the_sample_and_leaves_what_was_there(tmp_path):
    write_samples(tmp_path / "samples.jsonl", [GROUNDING])
    for part, facts in (("\ud83e", None), ("an owl", {"share": float("nan")})):
        broken = Sample("b-7", "vqa", "all", (), (Message("user", (part,)),), (), facts)
        with pytest.raises(UserError, match="The sample 'b-7' cannot be written"):
            write_samples(tmp_path / "samples.jsonl", [GROUNDING, broken])
    assert read_samples(tmp_path / "samples.jsonl") == [GROUNDING]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_bytes_that_are_no_text_name_file_and_line(tmp_path):
    (tmp_path / "samples.jsonl").write_bytes(b'{"id": "\xff\xfe"}\n')
    with pytest.raises(UserError, match=r"Line 1 of .*samples\.jsonl is not UTF-8"):
        read_samples(tmp_path / "samples.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.jsonl cannot be read"):
        read_samples(tmp_path / "nothing.jsonl")


def _folder(path, *samples, file="samples.jsonl"):
    (path / "pictures").mkdir()
    Image.new("RGB", (4, 3), (10, 20, 30)).save(path / "pictures" / "a.png")
    write_samples(path / file, samples)
    return path


def _vqa(name, picture="pictures/a.png", task="vqa"):
    return Sample(name, task, "all", (picture,), (Message("user", (Picture(0), "?")),))


def test_a_folder_is_a_data_set(tmp_path):
    folder = _folder(tmp_path, _vqa("1"), _vqa("2", task="captioning"))
    data = FolderDataset(folder)
    assert [sample.id for sample in data.samples] == ["1", "2"]
    assert np.array_equal(data.picture("pictures/a.png"), np.full((3, 4, 3), (10, 20, 30), np.uint8))
    assert [sample.id for sample in FolderDataset(folder, "captioning").samples] == ["2"]


def test_a_folder_may_have_one_file_a_task(tmp_path):
    folder = _folder(tmp_path, _vqa("1"), file="vqa.jsonl")
    assert len(FolderDataset(folder, "vqa").samples) == 1
    assert len(FolderDataset(folder).samples) == 1
    with pytest.raises(UserError, match='no samples of the task "grounding"'):
        FolderDataset(folder, "grounding")


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([_vqa("1", "b.png")], 'The picture "b.png" of sample "1" is not in'),
        ([_vqa("1", "../../etc/passwd")], "lies outside"),
        ([_vqa("1"), _vqa("1")], "comes twice"),
        ([], "no samples"),
    ],
)
def test_a_folder_is_checked_before_anything_starts(tmp_path, samples, says):
    with pytest.raises(UserError, match=says):
        FolderDataset(_folder(tmp_path, *samples))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="There is no directory"):
        FolderDataset(tmp_path / "none")
    with pytest.raises(UserError, match=r"no samples\.jsonl"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("an owl", Box(0, 0, 1, 1), "and a cat", Box(0, 0, 1, 1), "."), "an owl and a cat."),
        (("an owl ", Box(0, 0, 1, 1), "and a cat"), "an owl and a cat"),
        (("owl", Box(0, 0, 1, 1), "", Picture(0), "cat"), "owl cat"),
        ((Picture(0), "an ow", "l"), "an owl"),  # one text in pieces stays one
    ],
)
def test_words_around_a_picture_or_a_box_are_divided(parts: tuple[Part, ...], words: str) -> None:
    sample = Sample("1", "vqa", "all", ("a.png",), (Message("user", parts), Message("assistant", parts)))
    assert sample.question == sample.answer_text == words
