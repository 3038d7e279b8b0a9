"""The tokenizer: names and ids, text there and back, and typed names of special tokens that stay text."""

from __future__ import annotations

import pytest

import tiny
from bifocal.config import UserError
from bifocal.data.boxes import location_token
from bifocal.data.text import CONTROL, TextTokenizer, code_name


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return tiny.tokenizer()


def test_names_are_those_of_the_published_layouts() -> None:
    assert [code_name(code) for code in (0, 17, 8191)] == ["IMGIMGAZ", "IMGIMGBHZ", "IMGIMGIBJBZ"]
    assert [location_token(index) for index in (0, 17, 1023)] == ["<loc0000>", "<loc0017>", "<loc1023>"]


def test_ids_stand_where_the_layouts_want_them(tokenizer: TextTokenizer) -> None:
    find = tokenizer.tokenizer.token_to_id
    assert [find(name) for name in CONTROL] == list(range(len(CONTROL)))
    assert list(tokenizer.boxes) == [find(location_token(index)) for index in range(8)]
    assert list(tokenizer.codes) == [find(code_name(code)) for code in range(tiny.CODES)]
    assert (tokenizer.image_begin, tokenizer.image_end) == (find("<racm3:break>"), find("<eoss>"))
    assert tokenizer.turn_end == find("<reserved08706>")


def test_no_end_token_has_id_2(tokenizer: TextTokenizer) -> None:
    # old CLIP code takes id 2 to mean that the text should be pooled elsewhere
    assert tokenizer.eos == 3
    assert 2 not in (tokenizer.eos, tokenizer.image_end, tokenizer.turn_end, tokenizer.bos)


@pytest.mark.parametrize(
    "typed",
    ["<image>", "</s>", "<s>", "<pad>", "<unk>", "IMGIMGAZ", "<loc0001>", "<racm3:break>", "<eoss>",
     "<reserved08706>", "an owl</s><image> IMGIMGBHZ<loc0001>"],
)  # fmt: skip
def test_what_a_user_types_never_becomes_a_special_token(tokenizer: TextTokenizer, typed: str) -> None:
    first_plain = tokenizer.codes.stop
    for ids in (tokenizer.encode(typed), *tokenizer.encode_batch([typed, "x" + typed])):
        assert min(ids) >= first_plain
    assert tokenizer.decode(tokenizer.encode(typed)) == typed


@pytest.mark.parametrize(
    "text",
    ["an owl and two hearts", "Größe, naïve façade", "日本語のテキスト", "🦉 and 👩‍🚀", "a  double   space",
     "line\nbreak\ttab", "\u202eright to left", "e\u0301 is not \u00e9", ""],
)  # fmt: skip
def test_text_comes_back_as_it_was(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_batch_is_encoded_as_each_alone(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode_batch(tiny.TEXTS) == [tokenizer.encode(text) for text in tiny.TEXTS]


def test_decoding_shows_boxes_and_no_other_special_token(tokenizer: TextTokenizer) -> None:
    box = [tokenizer.boxes.start + index for index in (1, 0, 7, 3)]
    ids = [tokenizer.bos, *tokenizer.encode("the owl"), *box, tokenizer.codes.start, tokenizer.eos]
    assert tokenizer.decode(ids) == "the owl<loc0001><loc0000><loc0007><loc0003>"


def test_a_written_tokenizer_reads_back(tokenizer: TextTokenizer, tmp_path) -> None:
    tokenizer.write(tmp_path / "tokenizer.json")
    again = TextTokenizer.read(tmp_path / "tokenizer.json")
    text = "an owl typed <image> and IMGIMGAZ"
    assert again.encode(text) == tokenizer.encode(text)
    assert (again.codes, again.boxes, len(again)) == (tokenizer.codes, tokenizer.boxes, len(tokenizer))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), ("{", "damaged"), ('{"a": 1}', "damaged")]
)
def test_a_tokenizer_that_is_none_is_refused(tmp_path, content: str | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        TextTokenizer.read(path)


def test_a_tokenizer_made_for_something_else_is_refused(tmp_path, tokenizer: TextTokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.write(path)
    path.write_text(path.read_text().replace("<racm3:break>", "<other>"))
    with pytest.raises(UserError, match="no token <racm3:break>"):
        TextTokenizer.read(path)
