"""From samples to packed rows of tokens.

A *document* is some pictures and the conversations about them. In a row its pictures stand once, as a shared prefix;
each conversation follows as a segment of its own, with positions restarted behind the prefix and blind to the other
segments (``models.language.row_mask``). A row holds as many documents as fit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bifocal.config import UserError
from bifocal.data.boxes import NO_BINS, box_to_bins
from bifocal.data.joint_text import JointTokenizer
from bifocal.data.sample import Box, Message, Picture, Sample
from bifocal.data.text import TextTokenizer

REMEMBERED = 2**15  # texts


@dataclass(frozen=True)
class Template:
    """How a conversation becomes tokens: which ids, how many positions a picture takes, how boxes are written.

    Only where ``draws`` can an answer hold a picture: one that is read as vectors has no tokens to be learnt.
    """

    tokenizer: TextTokenizer
    picture_positions: int
    number_pictures: bool = False
    draws: bool = True

    @functools.cached_property
    def words(self) -> Callable[[str], Sequence[int]]:
        """The ids of a text. Questions come again and again, so those of the last ``REMEMBERED`` texts are kept."""
        return functools.lru_cache(maxsize=REMEMBERED)(self.tokenizer.encode)

    def number(self, index: int) -> Sequence[int]:
        """What stands before a picture that is to be read: its number, so that its patches can tell whose they are."""
        return self.words(str(index + 1)) if self.number_pictures else []

    def picture(self) -> list[int]:
        """What stands before it, N placeholders, what stands behind it."""
        tokenizer = self.tokenizer
        return [
            *tokenizer.before_picture,
            *[tokenizer.image] * self.picture_positions,
            *tokenizer.after_picture,
        ]

    def box(self, box: Box) -> list[int]:
        """Four coordinate tokens. Raises ``UserError`` where the tokenizer has none."""
        bins = self.tokenizer.boxes
        if not bins:
            raise UserError(NO_BINS)
        return [bins.start + index for index in box_to_bins(box, len(bins))]


@dataclass
class Segment:
    """One conversation as tokens. ``pictures`` are (offset of the first position, index of the picture)."""

    tokens: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    pictures: list[tuple[int, int]] = field(default_factory=list)

    def add(self, tokens: Sequence[int], supervised: bool) -> None:
        """Append tokens that are all to be learnt, or all given."""
        self.tokens.extend(tokens)
        self.supervised.extend([supervised] * len(tokens))

    def add_picture(self, index: int, template: Template, supervised: bool) -> None:
        """Append the positions of a picture and what is around them."""
        self.pictures.append((len(self.tokens) + len(template.tokenizer.before_picture), index))
        self.add(template.picture(), supervised)


def leading_pictures(messages: Sequence[Message]) -> int:
    """How many pictures open the user's first turn in their own order, so that they can be shared: all or none."""
    if not messages or messages[0].role != "user":
        return 0
    count = 0
    for part in messages[0].parts:
        if not isinstance(part, Picture):
            break
        if part.index != count:
            return 0
        count += 1
    inside = sum(isinstance(part, Picture) for message in messages for part in message.parts)
    return count if inside == count else 0


def encode_messages(messages: Sequence[Message], template: Template, *, shared: int = 0) -> Segment:
    """Messages -> one segment; the first ``shared`` pictures, with what stands before them, are left to the prefix.

    Every part of an assistant's turn and the end token after it are supervised, and nothing else is. A conversation
    that waits for an answer ends with what opens one.
    """
    segment = Segment()
    tokenizer = template.tokenizer
    if messages and not shared:
        segment.add(tokenizer.opening(messages[0].role), False)
    for number, message in enumerate(messages):
        answer = message.role == "assistant"
        if number or not shared:
            segment.add(tokenizer.before(message.role), False)
        for part in message.parts:
            if isinstance(part, str):
                segment.add(template.words(part), answer)
            elif isinstance(part, Picture):
                if part.index < shared:
                    continue
                if not answer:
                    segment.add(template.number(part.index), False)
                segment.add_picture(part.index, template, answer)
            else:
                segment.add(template.box(part), answer)
        closing = tokenizer.after(message.role)
        segment.add(closing[:1], answer)
        segment.add(closing[1:], False)
    if messages and messages[-1].role != "assistant":
        segment.add(tokenizer.before("assistant"), False)
    return segment


def encode_prefix(pictures: int, template: Template) -> Segment:
    """What all conversations on some pictures begin with: the pictures, opening the user's turn."""
    prefix = Segment()
    prefix.add(template.tokenizer.begin, False)
    if pictures:
        prefix.add([*template.tokenizer.opening("user"), *template.tokenizer.before("user")], False)
    for index in range(pictures):
        prefix.add(template.number(index), False)
        prefix.add_picture(index, template, False)
    return prefix


def encode_prompt(messages: Sequence[Message], template: Template) -> Segment:
    """A whole conversation, as it is asked: of another tool's VLM in its own way, which may not share pictures."""
    whole = Segment()
    if isinstance(template.tokenizer, JointTokenizer):
        tokens, whole.pictures = template.tokenizer.conversation(messages, template.picture_positions)
        whole.add(tokens, False)
        return whole
    shared = leading_pictures(messages)
    for part in (encode_prefix(shared, template), encode_messages(messages, template, shared=shared)):
        whole.pictures += [(len(whole.tokens) + start, index) for start, index in part.pictures]
        whole.add(part.tokens, False)
    return whole


class RowBuilder:
    """Fills B rows of at most ``length`` tokens and turns them into arrays."""

    def __init__(self, template: Template, length: int) -> None:
        self.template = template
        self.length = length
        self.rows: list[dict[str, list[int]]] = []
        self.places: list[tuple[int, int]] = []  # (row, first position) of each picture
        self.picture_keys: list[str] = []
        self.answers = 0

    def add_document(self, samples: Sequence[Sample]) -> int:
        """Place as many of these samples, which share their pictures, as fit in one row; returns how many did.

        A new row is begun when the prefix and the first conversation do not fit in the last one. Samples that do not
        open with the pictures that the first one opens with cannot share its prefix, and are left for another time, as
        are those that do not fit behind the others. Raises ``UserError`` with the sample's id for one without an
        answer, one whose answer holds a picture that cannot be learnt, one whose pictures leave no room in a row, and
        one that no row has room for.
        """
        if not samples:
            return 0
        template = self.template
        shared = leading_pictures(samples[0].messages)
        prefix = encode_prefix(shared, template)
        placed = 0
        for sample in samples:
            if leading_pictures(sample.messages) != shared:
                continue
            segment = encode_messages(sample.messages, template, shared=shared)
            if not any(segment.supervised):
                raise UserError(
                    f"sample {sample.id} has no answer to learn from: its last message must be the assistant's"
                )
            if sample.messages[0].role == "assistant":
                raise UserError(
                    f"sample {sample.id} begins with the assistant's turn: put the user's, or an empty one, before it"
                )
            if not template.draws and any(segment.supervised[start] for start, _ in segment.pictures):
                raise UserError(
                    f"sample {sample.id} has a picture in the assistant's turn, and a continuous VLM says words alone: "
                    "leave it out, or train --family discrete"
                )
            need = len(segment.tokens) + (0 if placed else len(prefix.tokens))
            self._require_room(sample, len(prefix.tokens), segment)
            if placed == 0:
                row, document = self._begin(prefix, sample.pictures, need)
            elif need > self.length - len(row["tokens"]):
                continue
            self._append(row, segment, sample.pictures, document, number=placed + 1, start=len(prefix.tokens))
            placed += 1
        self.answers += placed
        return placed

    def _require_room(self, sample: Sample, prefix: int, segment: Segment) -> None:
        """Raise ``UserError`` for a sample that no row has room for: nothing of it may be cut off."""
        if prefix + len(segment.tokens) <= self.length:
            return
        each = len(self.template.picture())
        parts = [part for message in sample.messages for part in message.parts]
        pictures = len({part.index for part in parts if isinstance(part, Picture)})
        if pictures * each > self.length:
            raise UserError(
                f"sample {sample.id} has {pictures} pictures of {each} tokens each and a row holds {self.length}, so "
                "they do not fit: raise --row-length, or lower the positions of a picture (--pixel-shuffle 2)"
            )
        answer = sum(segment.supervised)
        raise UserError(
            f"sample {sample.id} takes {prefix + len(segment.tokens)} tokens and a row holds {self.length}, so its "
            f"answer of {answer} would be cut off: raise --row-length or shorten it"
        )

    def pictures_a_row(self) -> int:
        """How many pictures that nothing is said about fit in a row; ``UserError`` where none does."""
        tokens = len(encode_prefix(1, self.template).tokens)
        if tokens > self.length:
            raise UserError(
                f"a picture takes {tokens} tokens and a row holds {self.length}: raise --row-length"
            )
        return self.length // tokens

    def add_picture(self, key: str) -> None:
        """Place what a conversation about a picture begins with, and no conversation; no label is in it."""
        prefix = encode_prefix(1, self.template)
        self._begin(prefix, (key,), len(prefix.tokens))

    def add_text(self, tokens: Sequence[int]) -> None:
        """Begin a row with plain text, of which every token but the first is learnt."""
        if not 1 < len(tokens) <= self.length:
            raise ValueError(f"a text of {len(tokens)} tokens does not make a row of {self.length}")
        self._new_row()
        text = Segment(list(tokens), [False] + [True] * (len(tokens) - 1))
        self._append(self.rows[-1], text, (), document=0, number=0, start=0)

    def fits(self, sample: Sample) -> bool:
        """Whether a document that begins with this sample still fits in the last row."""
        shared = leading_pictures(sample.messages)
        prefix = encode_prefix(shared, self.template)
        segment = encode_messages(sample.messages, self.template, shared=shared)
        return len(prefix.tokens) + len(segment.tokens) <= self._free()

    def _free(self) -> int:
        return self.length - (len(self.rows[-1]["tokens"]) if self.rows else 0)

    def _new_row(self) -> None:
        self.rows.append(
            {name: [] for name in ("tokens", "positions", "segments", "documents", "supervised")}
        )

    def _begin(self, prefix: Segment, keys: Sequence[str], need: int) -> tuple[dict[str, list[int]], int]:
        """Begin a document in the last row, or in a new one if it has no room for ``need``: the row, and its number."""
        if not self.rows or need > self._free():
            self._new_row()
        row = self.rows[-1]
        document = (row["documents"][-1] + 1) if row["documents"] else 0
        self._append(row, prefix, keys, document, number=0, start=0)
        return row, document

    def _append(
        self,
        row: dict[str, list[int]],
        part: Segment,
        keys: Sequence[str],
        document: int,
        number: int,
        start: int,
    ) -> None:
        offset, count = len(row["tokens"]), len(part.tokens)
        for place, index in part.pictures:
            self.places.append((len(self.rows) - 1, offset + place))
            self.picture_keys.append(keys[index])
        row["tokens"] += part.tokens
        row["supervised"] += part.supervised
        row["positions"] += range(start, start + count)
        row["segments"] += [number] * count
        row["documents"] += [document] * count

    def arrays(self) -> dict[str, np.ndarray]:
        """Padded arrays (B, T) of the longest row, and ``image_places`` (P, N) into the flattened rows."""
        longest = max(len(row["tokens"]) for row in self.rows)
        fill = {
            "tokens": self.template.tokenizer.pad,
            "positions": 0,
            "segments": 0,
            "documents": -1,
            "supervised": 0,
        }
        out = {
            name: np.array(
                [row[name] + [value] * (longest - len(row[name])) for row in self.rows], dtype=np.int64
            )
            for name, value in fill.items()
        }
        first = np.array([row * longest + start for row, start in self.places], dtype=np.int64).reshape(-1, 1)
        out["image_places"] = first + np.arange(self.template.picture_positions, dtype=np.int64)
        return out
