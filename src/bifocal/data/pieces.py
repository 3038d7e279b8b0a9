"""SentencePiece models (Kudo & Richardson 2018) as a tokenizer, without that library: what SigLIP's texts are cut into.

A ``.model`` file is a protocol buffer. What is read of it is its pieces with their scores, and how a text is normalised
first; the numbers of the fields are those of ``sentencepiece_model.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from bifocal.config import UserError

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of the whole
TEXT, SCORE, KIND = 1, 2, 3  # of a piece
MODEL_TYPE, BYTES = 3, 35  # of the trainer: 1 is a unigram model
CHARACTERS = 2  # of the normaliser: a table of what becomes of characters
UNKNOWN = 2  # the kind of the piece that stands for what no other piece does
END = "</s>"
SPACE = "▁"

Value = int | bytes


def read_pieces(path: Path) -> Tokenizer:
    """The tokenizer of a ``.model`` file, which ends every text with ``</s>`` and puts a space before it.

    Raises ``UserError`` for a file that is damaged, or whose model is no unigram model.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [dict(_fields(_bytes(value))) for number, value in fields if number == PIECES]
        trainer = dict(
            field for number, value in fields if number == TRAINER for field in _fields(_bytes(value))
        )
        rules = dict(
            field for number, value in fields if number == NORMALIZER for field in _fields(_bytes(value))
        )
        vocabulary = [
            (_bytes(piece[TEXT]).decode("utf-8"), struct.unpack("<f", _bytes(piece.get(SCORE, bytes(4))))[0])
            for piece in pieces
        ]
        unknown = next((i for i, piece in enumerate(pieces) if piece.get(KIND) == UNKNOWN), None)
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise UserError(f"{path} is damaged, or no SentencePiece model: {error}") from None
    if not vocabulary or trainer.get(MODEL_TYPE, 1) != 1:
        raise UserError(f"{path} is no unigram model of SentencePiece, and no other is supported")
    tokenizer = Tokenizer(models.Unigram(vocabulary, unknown, bool(trainer.get(BYTES, 0))))
    steps: list[normalizers.Normalizer] = [normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.get(CHARACTERS):
        steps.insert(0, normalizers.Precompiled(_bytes(rules[CHARACTERS])))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    end = tokenizer.token_to_id(END)
    if end is None:
        raise UserError(f"{path} has no piece {END}, which SigLIP ends a text with")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return tokenizer


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a message by their numbers: whole numbers, or the bytes of everything else."""
    place = 0
    while place < len(data):
        key, place = _number(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _number(data, place)
            yield number, value
            continue
        if wire == 2:
            length, place = _number(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of the kind {wire}")
        if place + length > len(data):
            raise ValueError("it is cut off")
        yield number, data[place : place + length]
        place += length


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a text should be")
    return value
