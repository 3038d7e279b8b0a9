"""The tokenizer of a finished VLM of another tool, whose conversations its own chat template writes.

What a word becomes may depend on what stands before it: a SentencePiece marks spaces, and a first word differently. So
a conversation is tokenised as one text, as the other tool does it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bifocal.config import UserError
from bifocal.data.boxes import NO_BINS
from bifocal.data.chat_format import read_template, rendered
from bifocal.data.chat_text import ChatTokenizer
from bifocal.data.sample import Message, Picture
from bifocal.data.text import IMAGE, IMAGE_BEGIN, IMAGE_END, TURN_END

# Stands for a user's text while the template is rendered.
_MARK = re.compile(r"\(text-(\d+)\)")


@dataclass(frozen=True)
class Words:
    """A tokenizer as another tool left it: with its chat template, and the files that say all this.

    ``codes`` are the ids of a discrete model's image tokens.
    """

    tokenizer: Tokenizer
    template: str
    bos: str
    eos: str
    codes: range = range(0)
    files: Mapping[str, bytes] = field(default_factory=dict)


class JointTokenizer(ChatTokenizer):
    """Text to ids and back as another tool's VLM has them."""

    def __init__(self, words: Words) -> None:
        tokenizer = words.tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.add_special_tokens([IMAGE])  # lest it be found in what a user types
        chat = read_template(words.template, bos=words.bos, eos=words.eos)
        super().__init__(tokenizer, chat)
        self.words, self.codes = words, words.codes
        with_special = tokenizer.encode("a")
        before = with_special.ids[: with_special.special_tokens_mask.index(0)]
        # as transformers has it: a template that writes the begin token leaves none to be added
        self.begin = [] if words.bos and chat.opening.startswith(words.bos) else before
        named = (words.bos, IMAGE_BEGIN, IMAGE_END, TURN_END)
        # of a token that it has not there is no id; a Llava has no need for those of a Chameleon
        ids: Any = (tokenizer.token_to_id(name) for name in named)
        self.bos, self.image_begin, self.image_end, self.turn_end = ids

    @property
    def fingerprint_text(self) -> str:
        """Everything that decides how a conversation becomes ids."""
        return f"{json.dumps(self.words.template)} {self.tokenizer.to_str()}"

    def write(self, path: Path) -> None:
        """Put the files it was read from beside ``path``, which is that of its ``tokenizer.json``."""
        for name, content in self.words.files.items():
            Path(path).with_name(name).write_bytes(content)

    def conversation(
        self, messages: Sequence[Message], positions: int
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Messages -> the ids of the whole, and (first position, index) of its pictures, of ``positions`` each.

        Raises ``UserError`` for what the template cannot write.
        """
        texts: list[str] = []
        pictures: list[int] = []
        marked = []
        for message in messages:
            content: list[dict[str, Any]] = []
            for part in message.parts:
                if isinstance(part, str):
                    content.append({"type": "text", "text": f"(text-{len(texts)})"})
                    texts.append(part)
                elif isinstance(part, Picture):
                    content.append({"type": "image"})
                    pictures.append(part.index)
                else:
                    raise UserError(NO_BINS)
            marked.append({"role": message.role, "content": content})
        waits = bool(messages) and messages[-1].role != "assistant"
        said = rendered(self.words.template, marked, bos=self.words.bos, eos=self.words.eos, generate=waits)
        seams, order = _MARK.split(said)[::2], [int(number) for number in _MARK.findall(said)]
        if sorted(order) != list(range(len(texts))):
            raise UserError(
                "the chat template of this VLM leaves out the words of a turn, or says them twice"
            )
        ids = self.begin + self._joint(seams, [texts[number] for number in order])
        if ids.count(self.image) != len(pictures) or any(index in self.codes for index in ids):
            raise UserError(
                f"the conversation has {len(pictures)} pictures and {ids.count(self.image)} places for one: the chat "
                "template has none for them, or a text is read as image tokens"
            )
        tokens: list[int] = []
        places: list[tuple[int, int]] = []
        for index in ids:
            if index == self.image:
                places.append((len(tokens), pictures[len(places)]))
            tokens += [index] * (positions if index == self.image else 1)
        return tokens, places

    def _joint(self, seams: Sequence[str], texts: Sequence[str]) -> list[int]:
        """The ids of a seam, a text, a seam and so on; names of special tokens mean those in the seams alone."""
        special = {
            token.content: int(i)
            for i, token in self.tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        if not any(name in text for name in special for text in texts):
            whole = "".join(piece for pair in zip(seams, [*texts, ""], strict=True) for piece in pair)
            return self._seam(whole)
        names = re.compile(
            "|".join(f"({re.escape(name)})" for name in sorted(special, key=len, reverse=True))
        )
        ids: list[int] = []
        run = ""
        for seam, text in zip(seams, [*texts, ""], strict=True):
            for piece in names.split(seam):
                if piece in special:
                    ids += [*self._plain_ids(run), special[piece]]
                    run = ""
                else:
                    run += piece or ""
            run += text
        return ids + self._plain_ids(run)

    def _plain_ids(self, text: str) -> list[int]:
        return self.encode(text) if text else []
