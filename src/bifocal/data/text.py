"""Text tokens: a byte-level BPE with special tokens for turns, pictures, codes and boxes.

Names follow the published layouts: ``<racm3:break>`` and ``<eoss>`` wrap a picture, ``<reserved08706>`` ends a user's
turn, code k is ``IMGIMG`` + its digits as letters A..J + ``Z`` (Chameleon), ``<locYYYY>`` is a coordinate bin
(PaliGemma). Id 2 is no end token (old CLIP code gives it another meaning).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bifocal.config import UserError
from bifocal.data.boxes import location_token

PAD, BOS, UNKNOWN, EOS = "<pad>", "<s>", "<unk>", "</s>"
IMAGE, IMAGE_BEGIN, IMAGE_END, TURN_END = "<image>", "<racm3:break>", "<eoss>", "<reserved08706>"
CONTROL = (PAD, BOS, UNKNOWN, EOS, IMAGE, IMAGE_BEGIN, IMAGE_END, TURN_END)
LETTERS = "ABCDEFGHIJ"


def code_name(code: int) -> str:
    """Code 17 of the codebook -> "IMGIMGBHZ"."""
    return "IMGIMG" + "".join(LETTERS[int(digit)] for digit in str(code)) + "Z"


def uncased(text: str) -> str:
    """Lower case, and white space as single spaces."""
    return " ".join(text.lower().split())


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; digits are none."""
    return re.findall(r"[^\W\d_]+", text.lower())


class TextTokenizer:
    """Text to ids and back. What a user types never becomes a special token; only the template adds those."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # for good: other threads may be encoding
        self.special = {name: self._required(name) for name in CONTROL}
        self.pad, self.bos, self.eos = self.special[PAD], self.special[BOS], self.special[EOS]
        self.image, self.turn_end = self.special[IMAGE], self.special[TURN_END]
        self.image_begin, self.image_end = self.special[IMAGE_BEGIN], self.special[IMAGE_END]
        self.codes = self._run(code_name)
        self.boxes = self._run(location_token)
        self.begin = [self.bos]
        self.before_picture, self.after_picture = [self.image_begin], [self.image_end]

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int, codes: int = 0, box_bins: int = 64) -> TextTokenizer:
        """Learn ``size`` tokens of text; ``codes`` and ``box_bins`` special ones come on top."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        special = [
            *CONTROL,
            *(location_token(index) for index in range(box_bins)),
            *(code_name(code) for code in range(codes)),
        ]
        trainer = trainers.BpeTrainer(
            vocab_size=size + len(special),
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def read(cls, path: Path) -> TextTokenizer:
        """Open a ``tokenizer.json``."""
        return cls(parse_tokenizer(path))

    def write(self, path: Path) -> None:
        """Save as ``tokenizer.json``."""
        Path(path).write_text(self.tokenizer.to_str(), encoding="utf-8")

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    @property
    def fingerprint_text(self) -> str:
        """Everything that decides how text becomes ids."""
        return str(self.tokenizer.to_str())

    @property
    def never_said(self) -> list[int]:
        """The ids that no answer in words may hold: special tokens but its end and the bins of boxes, and codes."""
        return sorted({*self.special.values(), *self.codes} - {self.eos})

    def opening(self, role: str) -> list[int]:
        """What stands before a conversation whose first turn is of ``role``, behind ``begin``."""
        return []

    def before(self, role: str) -> list[int]:
        """What opens a turn."""
        return []

    def after(self, role: str) -> list[int]:
        """What closes a turn; of an answer's the first is ``eos``."""
        return [self.eos if role == "assistant" else self.turn_end]

    def encode(self, text: str) -> list[int]:
        """Plain text -> ids; names of special tokens in it stay text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As ``encode``, many at once."""
        return [item.ids for item in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def sequences(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text between the begin and the end token, as CLIP reads them: white space is one space."""
        return [[self.bos, *ids, self.eos] for ids in self.encode_batch([" ".join(t.split()) for t in texts])]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text; coordinate bins keep their names, other special tokens leave no trace."""
        pieces: list[str] = []
        run: list[int] = []
        for index in ids:
            if index in self.boxes:
                pieces.append(self._plain(run) + location_token(index - self.boxes.start))
                run = []
            else:
                run.append(index)
        return ("".join(pieces) + self._plain(run)).strip()

    def _plain(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""

    def _required(self, name: str) -> int:
        index = self.tokenizer.token_to_id(name)
        if index is None:
            raise UserError(f"the tokenizer has no token {name}: it was not made for bifocal")
        return int(index)

    def _run(self, name_of: Callable[[int], str]) -> range:
        """The ids of a numbered family of tokens, which must stand one after the other."""
        first = self.tokenizer.token_to_id(name_of(0))
        if first is None:
            return range(0)
        count = 0
        while self.tokenizer.token_to_id(name_of(count)) == first + count:
            count += 1
        return range(first, first + count)


def parse_tokenizer(path: Path) -> Tokenizer:
    """What a ``tokenizer.json`` holds; ``UserError`` for one that is missing, damaged or none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: this directory has no tokenizer, so it cannot handle text"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} is damaged, or no tokenizer: {error}") from None
