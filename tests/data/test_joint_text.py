"""The tokenizer of another tool's finished VLM, asked by several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("transformers")

from bifocal.data.joint_text import JointTokenizer, Words
from bifocal.data.sample import Message
from interop.vlms import VICUNA, sentence_pieces


def test_names_of_special_tokens_stay_text_whoever_else_is_encoding() -> None:
    words = JointTokenizer(Words(sentence_pieces(), VICUNA, "<s>", "</s>"))
    long = "what is in the picture? " * 100
    conversations = [(Message("user", (long + end,)),) for end in ("</s>", "")]
    wanted = [words.conversation(messages, 4) for messages in conversations]
    assert not any(words.eos in tokens for tokens, _ in wanted)

    def right(number: int) -> bool:
        return words.conversation(conversations[number % 2], 4) == wanted[number % 2]

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(right, range(400)))
