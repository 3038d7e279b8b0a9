"""Tokenizers that other tools wrote beside a CLIP: OpenAI's byte-pair encoding, SigLIP's pieces, or any other.

What a text becomes there, begin and end tokens included, stands in ``tokenizer.json``; how it is cleaned before, and
what fills up the context, stands in other files or in the other tool's code.
"""

from __future__ import annotations

import html
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from bifocal.config import UserError
from bifocal.data.pieces import read_pieces

# Every file that a tokenizer may consist of; they are kept as they are, to be written as they were.
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "spiece.model",
)  # fmt: skip
# How a text is cleaned first: not at all; as open_clip does it ("whitespace" undoes HTML entities and joins white
# space, "lower" also puts it in lower case, "canonicalize" leaves no punctuation either); as SigLIP's of transformers.
Cleaning = Literal["none", "whitespace", "lower", "canonicalize", "siglip"]
_OPENAI_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ForeignTokenizer:
    """Text to ids as another tool does it; ``pad`` fills up the context, ``files`` is what it was read from."""

    def __init__(
        self, tokenizer: Tokenizer, pad: int, *, cleaning: Cleaning, files: Mapping[str, bytes]
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.pad, self.cleaning, self.files = tokenizer, pad, cleaning, files

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    @property
    def end(self) -> int | None:
        """The id that every text ends with, if there is one."""
        last = {ids[-1] for ids in self.sequences(["a", "one two"]) if ids}
        return last.pop() if len(last) == 1 else None

    @property
    def fingerprint_text(self) -> str:
        """Everything that decides how text becomes ids."""
        return f"{self.cleaning} {self.tokenizer.to_str()}"

    def sequences(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with whatever stands before and behind them."""
        cleaned = [clean(text, self.cleaning) for text in texts]
        return [item.ids for item in self.tokenizer.encode_batch(cleaned)]

    def write(self, directory: Path) -> None:
        """Put its files into a directory."""
        for name, content in self.files.items():
            (directory / name).write_bytes(content)


def clean(text: str, cleaning: Cleaning) -> str:
    """A text as the tokenizer should get it. What ``ftfy`` repairs for open_clip is left as it is."""
    if cleaning == "none":
        return text
    if cleaning != "siglip":
        text = html.unescape(html.unescape(text))
    if cleaning == "canonicalize":
        text = text.replace("_", " ")
    if cleaning in ("canonicalize", "siglip"):
        text = text.translate(_PUNCTUATION)
    if cleaning != "whitespace":
        text = text.lower()
    return " ".join(text.split())


def read_foreign(
    directory: Path, *, cleaning: Cleaning | None = None, pad: int | None = None
) -> ForeignTokenizer | None:
    """The tokenizer in a directory, or None if there is none.

    ``cleaning`` and ``pad`` are what the model says of them; without, it is what the tokenizer's own files say. Raises
    ``UserError`` for files that are damaged, or of which no tokenizer can be made.
    """
    files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
    about = _json(directory / "tokenizer_config.json")
    if "tokenizer.json" in files:
        try:
            tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{directory / 'tokenizer.json'} is damaged, or no tokenizer: {error}") from None
    elif "vocab.json" in files and "merges.txt" in files:
        tokenizer = _openai_bpe(directory)
    elif "spiece.model" in files:
        tokenizer = read_pieces(directory / "spiece.model")
    else:
        return None
    if cleaning is None:
        cleaning = "siglip" if about.get("tokenizer_class") == "SiglipTokenizer" else "none"
    if pad is None:
        pad = _padding(directory, tokenizer, about)
    return ForeignTokenizer(tokenizer, pad, cleaning=cleaning, files=files)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    return data if isinstance(data, dict) else {}


def _named(value: Any) -> str | None:
    """A token that a configuration names by its text, or by an object that has it."""
    return value.get("content") if isinstance(value, dict) else value


def _padding(directory: Path, tokenizer: Tokenizer, about: Mapping[str, Any]) -> int:
    special = _json(directory / "special_tokens_map.json")
    for token in (
        about.get("pad_token"),
        special.get("pad_token"),
        about.get("eos_token"),
        special.get("eos_token"),
    ):
        name = _named(token)
        index = tokenizer.token_to_id(name) if name else None
        if index is not None:
            return int(index)
    # of OpenAI's tokenizers, whose files may say nothing at all
    index = tokenizer.token_to_id("<|endoftext|>")
    if index is None:
        raise UserError(
            f"the tokenizer in {directory} names no pad_token, so that no context can be filled up"
        )
    return int(index)


def _openai_bpe(directory: Path) -> Tokenizer:
    """OpenAI's tokenizer (Radford et al. 2021, section 2.4) from its two plain files, as ``CLIPTokenizer`` makes it."""
    lines = (directory / "merges.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = _json(directory / "vocab.json")
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    begin, end = "<|startoftext|>", "<|endoftext|>"
    if begin not in vocabulary or end not in vocabulary or any(len(pair) != 2 for pair in pairs):
        raise UserError(f"vocab.json and merges.txt in {directory} are not those of a CLIP tokenizer")
    merges = [(first, second) for first, second in pairs]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=end, end_of_word_suffix="</w>", continuing_subword_prefix="")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_OPENAI_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (begin, vocabulary[begin]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([begin, end])
    return tokenizer
