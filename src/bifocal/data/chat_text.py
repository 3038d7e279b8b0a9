"""The tokenizer of a language model that another tool trained, with what a visual-language model needs besides.

Its text tokens, end token and turns are the model's own. Added are special tokens for a picture's positions and for
the bins of box coordinates, so that nothing that a user types can become one of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bifocal import artifacts, config
from bifocal.config import UserError
from bifocal.data.boxes import location_token
from bifocal.data.chat_format import ChatFormat, read_template
from bifocal.data.text import IMAGE, IMAGE_BEGIN, IMAGE_END, TextTokenizer, parse_tokenizer

FORMAT, TOKENIZER = "chat_format.json", "tokenizer.json"
ABOUT, SPECIAL, TEMPLATE = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"


class ChatTokenizer(TextTokenizer):
    """Text to ids and back as a foreign language model has them; the turns are written in its own chat format."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat) -> None:
        self.tokenizer, self.chat = tokenizer, chat
        roles = {"user": chat.user, "assistant": chat.assistant, "system": chat.system}
        tokenizer.encode_special_tokens = True
        # To its twin the names of special tokens are those tokens. One that is switched to and fro would let what a
        # user types become one of them while another thread encodes.
        self._naming = Tokenizer.from_str(tokenizer.to_str())
        self._naming.encode_special_tokens = False
        self._turns = {
            role: (self._seam(around[0]), self._seam(around[1]))
            for role, around in roles.items()
            if around is not None
        }
        self._opening = self._seam(chat.opening)
        self.before_picture, self.after_picture = (self._seam(text) for text in chat.picture)
        self.begin: list[int] = []
        # padding is masked wherever it stands, so any token will do for it
        self.eos = self.pad = self._turns["assistant"][1][0]
        self.image = self._required(IMAGE)
        self.codes = range(0)
        self.boxes = self._run(location_token)
        self.special = {
            token.content: int(index)
            for index, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and index not in self.boxes
        }

    @classmethod
    def of_model(cls, tokenizer: Tokenizer, chat: ChatFormat, *, box_bins: int) -> ChatTokenizer:
        """Add to a language model's tokenizer what pictures and boxes need; new ids follow the old ones."""
        if chat.picture == ("", ""):
            chat = replace(chat, picture=(IMAGE_BEGIN, IMAGE_END))
        added = [IMAGE, IMAGE_BEGIN, IMAGE_END, *(location_token(index) for index in range(box_bins))]
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.add_special_tokens(added)
        return cls(tokenizer, chat)

    @classmethod
    def read(cls, path: Path) -> ChatTokenizer:
        """Open the ``tokenizer.json`` of a run, beside which ``chat_format.json`` stands."""
        place = Path(path).with_name(FORMAT)
        chat = config.from_dict(ChatFormat, artifacts.read_json(place), where=str(place), older=True)
        return cls(parse_tokenizer(path), chat)

    def write(self, path: Path) -> None:
        """Save as ``tokenizer.json`` with its chat format beside it."""
        super().write(path)
        artifacts.atomic_write_json(Path(path).with_name(FORMAT), config.to_dict(self.chat))

    @property
    def fingerprint_text(self) -> str:
        """Everything that decides how a conversation becomes ids."""
        return f"{json.dumps(config.to_dict(self.chat))} {self.tokenizer.to_str()}"

    @property
    def added(self) -> list[int]:
        """The ids of what pictures and boxes need, which the language model was not trained with."""
        around = [self.special[name] for name in (IMAGE_BEGIN, IMAGE_END) if name in self.special]
        return sorted({self.image, *self.boxes, *around})

    @property
    def joins(self) -> bool:
        """Whether the tokens that a conversation is put together from here are those that it has as one text.

        SentencePiece's kind may begin every text with a space that does not stand there; and a seam that ends with a
        space leaves that to a token by itself, which in one text belongs to the next word.
        """
        asked, said = "what is this?", "an owl"
        (before, after), (opens, closes) = self.chat.user, self.chat.assistant
        pieces = [
            *self.opening("user"), *self.before("user"), *self.encode(asked), *self.after("user"),
            *self.before("assistant"), *self.encode(said), *self.after("assistant"),
        ]  # fmt: skip
        return pieces == self._seam(f"{self.chat.opening}{before}{asked}{after}{opens}{said}{closes}")

    def opening(self, role: str) -> list[int]:
        """The model's own system message, before a conversation that brings none."""
        return [] if role == "system" else list(self._opening)

    def before(self, role: str) -> list[int]:
        """What opens a turn. Raises ``UserError`` for a role that the chat format has no place for."""
        return list(self._turn(role)[0])

    def after(self, role: str) -> list[int]:
        """What closes a turn; of an answer's the first is ``eos``."""
        return list(self._turn(role)[1])

    def sequences(self, texts: Sequence[str]) -> list[list[int]]:
        """Not for this tokenizer: it is a decoder's, and a CLIP has its own."""
        raise ValueError("the tokenizer of a language model writes no texts for a CLIP")

    def _turn(self, role: str) -> tuple[list[int], list[int]]:
        if role not in self._turns:
            raise UserError(
                f"this language model's chat format has no {role} turn: put its words into the user's"
            )
        return self._turns[role]

    def _seam(self, text: str) -> list[int]:
        """A text of the chat format -> ids; the names of special tokens are those tokens here, and nowhere else."""
        return list(self._naming.encode(text, add_special_tokens=False).ids)


def open_tokenizer(directory: Path) -> TextTokenizer:
    """The tokenizer of a finished VLM: ours, or that of the language model it was begun with."""
    kind = ChatTokenizer if (directory / FORMAT).is_file() else TextTokenizer
    return kind.read(directory / TOKENIZER)


def read_chat_tokenizer(directory: Path, *, box_bins: int) -> ChatTokenizer:
    """What transformers left in a language model's directory: ``tokenizer.json`` and its chat template.

    Raises ``UserError`` where either is missing or damaged, or a conversation cannot be put together from its pieces.
    """
    tokenizer = parse_tokenizer(directory / TOKENIZER)
    about = _json(directory / ABOUT)
    special = _json(directory / SPECIAL)
    template = about.get("chat_template")
    if (directory / TEMPLATE).is_file():
        template = (directory / TEMPLATE).read_text(encoding="utf-8")
    if isinstance(template, list):  # several under names
        template = next((each.get("template") for each in template if each.get("name") == "default"), None)
    if not isinstance(template, str):
        raise UserError(
            f"{directory} has no chat template ({TEMPLATE}, or chat_template in {ABOUT}): without one nothing says "
            "how this language model tells turns apart; use a model that was tuned for chat"
        )
    eos = _named(about.get("eos_token")) or _named(special.get("eos_token"))
    if eos is None or tokenizer.token_to_id(eos) is None:
        raise UserError(
            f"{directory / ABOUT} names no eos_token that the tokenizer has, so no answer could end"
        )
    bos = _named(about.get("bos_token")) or _named(special.get("bos_token")) or ""
    chat = read_template(template, bos=bos, eos=eos)
    words = ChatTokenizer.of_model(tokenizer, chat, box_bins=box_bins)
    if not words.joins:
        raise UserError(
            f"the tokenizer in {directory} gives a turn's words other tokens by themselves than within a conversation, "
            "as SentencePiece's kind does (Llama-2, TinyLlama), so this language model would not be fed what it was "
            "trained on: use one with byte-level pairs whose turns open with a special token or a new line (SmolLM2, "
            "Llama-3)"
        )
    return words


def _json(path: Path) -> dict[str, Any]:
    data = artifacts.read_json(path) if path.is_file() else {}
    return data if isinstance(data, dict) else {}


def _named(token: Any) -> str | None:
    """A token that a configuration names by its text, or by an object that has it."""
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) and name else None
