"""Tokenizers of other tools: the same ids as transformers makes, from every kind of file they come in."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from bifocal.config import UserError
from bifocal.data.foreign_text import clean, read_foreign
from bifocal.data.pieces import read_pieces
from interop.foreign import CONTEXT, openai_tokenizer, vocabulary

transformers = pytest.importorskip("transformers")

TEXTS = [
    "an owl", "An OWL, and 2 hearts!", "it's  a dog's\tball", "été <b>&amp;</b> 猫 ½", "", "x_y-z (the owl)",
    "</s> <unk>",
    "ﬁne Ⅳ ｆull－width  spaces\u00a0here",
]  # fmt: skip


def ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts).input_ids


def test_openai_s_tokenizer_as_transformers_writes_it(tmp_path: Path) -> None:
    openai_tokenizer().save_pretrained(tmp_path)
    found = read_foreign(tmp_path)
    assert found is not None
    there = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert found.sequences(TEXTS) == ids(there, TEXTS)
    assert found.pad == there.pad_token_id and found.end == there.eos_token_id
    assert len(found) == len(there)


def test_openai_s_tokenizer_from_its_two_plain_files(tmp_path: Path) -> None:
    tokens, merges = vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(tokens))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    found = read_foreign(tmp_path)
    assert found is not None
    assert found.sequences(TEXTS) == ids(openai_tokenizer(), TEXTS)
    assert found.pad == tokens["<|endoftext|>"]  # nothing says so


def test_what_fills_up_or_cuts_off_is_no_part_of_a_text(tmp_path: Path) -> None:
    tokenizer = openai_tokenizer()
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=6)  # stays in the file
    tokenizer.save_pretrained(tmp_path)
    found = read_foreign(tmp_path)
    assert found is not None
    assert [len(row) for row in found.sequences(["an owl", "a b c d e f g h"])] == [4, 10]


def pieces_model(place: Path) -> Path:
    """A small unigram model, which begins with padding, end and unknown as SigLIP's does."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    sentences = [
        "a photo of a dog",
        "two owls left of a heart",
        "what is in the picture",
        "it fine 4 full width",
    ] * 20
    written = io.BytesIO()
    trainer.train(
        sentence_iterator=iter(sentences), model_writer=written, vocab_size=70, unk_id=2, eos_id=1, bos_id=-1,
        pad_id=-1, control_symbols=["<pad>"], hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    place.mkdir()
    (place / "spiece.model").write_bytes(written.getvalue())
    return place / "spiece.model"


def test_siglip_s_tokenizer_as_transformers_writes_it(tmp_path: Path) -> None:
    there = transformers.SiglipTokenizer(str(pieces_model(tmp_path / "made")), model_max_length=CONTEXT)
    there.save_pretrained(tmp_path / "theirs")
    found = read_foreign(tmp_path / "theirs")
    assert found is not None
    assert found.cleaning == "siglip"
    # what a user types is text here; there it becomes the token that it names
    texts = [text for text in TEXTS if "<unk>" not in text]
    assert found.sequences(texts) == [there(text).input_ids for text in texts]
    assert found.pad == there.pad_token_id == found.end == there.eos_token_id == 1
    found.write(tmp_path)
    again = transformers.SiglipTokenizer.from_pretrained(tmp_path)
    assert [again(text).input_ids for text in texts] == found.sequences(texts)


@pytest.mark.parametrize(
    "content", [b"", b"\x0a\xff", b"\x0a\x03\x0a\x01", b"\x00" * 9, b"plain text, not a model"]
)
def test_a_file_that_is_no_model_of_pieces_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match=r"spiece\.model is (damaged|no unigram model)"):
        read_pieces(tmp_path / "spiece.model")


@pytest.mark.parametrize("kind", ["whitespace", "lower", "canonicalize"])
def test_texts_are_cleaned_as_open_clip_does_it(kind: Any) -> None:
    import peers

    theirs = peers.open_clip().tokenizer.get_clean_fn(kind)
    plain = [text for text in TEXTS if "ﬁ" not in text]  # ftfy takes ligatures and full width apart
    assert [clean(text, kind) for text in plain] == [theirs(text) for text in plain]


def test_a_directory_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert read_foreign(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, "damaged, or no tokenizer"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "not those of a CLIP tokenizer"),
        ({"vocab.json": "[", "merges.txt": ""}, "not valid JSON"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_foreign(tmp_path)


def test_a_tokenizer_that_cannot_fill_up_a_context_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="names no pad_token"):
        read_foreign(tmp_path)
    found = read_foreign(tmp_path, pad=0)  # where the model's configuration says it
    assert found is not None and found.pad == 0
