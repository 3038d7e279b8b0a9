"""A sample as a VLM learns from it: its tokens, which of them are supervised, and its pictures as they are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from rich.text import Text

from bifocal.data.batch import (
    Segment,
    Template,
    encode_messages,
    encode_prefix,
    encode_prompt,
    leading_pictures,
)
from bifocal.data.files import located
from bifocal.data.fitting import fit_picture, seen_box, seen_part
from bifocal.data.folder import FolderDataset
from bifocal.data.joint_text import JointTokenizer
from bifocal.data.sample import Sample
from bifocal.generation.explain import pieces
from bifocal.inference import VLM
from bifocal.pages import Marked, escape, picture_html


@dataclass(frozen=True)
class Piece:
    """A token, or the positions of a picture; ``kind`` is "text", "control", "box" or "picture"."""

    text: str
    kind: str
    supervised: bool


def pieces_of(sample: Sample, template: Template) -> list[Piece]:
    """The sample in a row by itself, as training packs it; another tool's VLM, which is not trained, is given it whole.

    Raises ``UserError`` with the sample's id for what the model has no tokens for.
    """
    with located(f"sample {sample.id}"):
        if isinstance(template.tokenizer, JointTokenizer):
            return _pieces(encode_prompt(sample.messages, template), template)
        shared = leading_pictures(sample.messages)
        parts = (
            encode_prefix(shared, template),
            encode_messages(sample.messages, template, shared=shared),
        )
        return [piece for part in parts for piece in _pieces(part, template)]


def _pieces(segment: Segment, template: Template) -> list[Piece]:
    tokenizer, count = template.tokenizer, template.picture_positions
    names = {index: name for name, index in tokenizer.special.items()}
    of_picture = dict(segment.pictures)
    found: list[Piece] = []
    place = 0
    while place < len(segment.tokens):
        token, supervised = segment.tokens[place], segment.supervised[place]
        if place in of_picture:
            found.append(Piece(f"picture {of_picture[place] + 1}: {count} positions", "picture", supervised))
            place += count
        elif token in names:
            found.append(Piece(names[token], "control", supervised))
            place += 1
        else:
            end = place
            while end < len(segment.tokens) and segment.tokens[end] not in names and end not in of_picture:
                end += 1
            tokens = segment.tokens[place:end]
            for index, text in enumerate(pieces(tokens, tokenizer)):
                kind = "box" if tokens[index] in tokenizer.boxes else "text"
                found.append(Piece(text, kind, segment.supervised[place + index]))
            place = end
    return found


def coloured(found: Sequence[Piece]) -> Text:
    """For a terminal: what is supervised is green; every other token is bold, so that they can be told apart."""
    line = Text()
    for number, piece in enumerate(found):
        text = f"[{piece.text}]" if piece.kind == "picture" else piece.text
        colour = (
            "green" if piece.supervised else {"picture": "magenta", "control": "cyan"}.get(piece.kind, "")
        )
        line.append(text, style=f"{colour} {'bold' if number % 2 else ''}".strip())
    return line


def supervised_count(found: Sequence[Piece]) -> str:
    """ "7 of 81 tokens are supervised", the positions of a picture not counted."""
    tokens = [piece for piece in found if piece.kind != "picture"]
    return f"{sum(piece.supervised for piece in tokens)} of {len(tokens)} tokens are supervised"


def tokens_html(found: Sequence[Piece]) -> str:
    """For a page: runs of given and of supervised tokens, each token a box of its own."""
    runs = "".join(
        f'<span class="{"learnt" if supervised else "given"}">'
        + "".join(
            f'<span class="token {piece.kind}">{escape(piece.text) or "&nbsp;"}</span>' for piece in run
        )
        + "</span>"
        for supervised, run in groupby(found, key=lambda piece: piece.supervised)
    )
    return f'<p class="tokens">{runs}</p><p class="muted">{supervised_count(found)}</p>'


def seen_html(dataset: FolderDataset, sample: Sample, model: VLM) -> list[str]:
    """The sample's pictures in the very pixels that the model sees, with what they show of its boxes."""
    boxes = sample.boxes if len(sample.pictures) == 1 else ()
    shots = []
    for key in sample.pictures:
        picture = dataset.picture(key)
        pixels: np.ndarray = fit_picture(picture, model.picture_size, model.fitting)
        part = seen_part(picture, model.picture_size, model.fitting)
        seen = [lies for box in boxes if (lies := seen_box(box, part)) is not None]
        caption = escape(f"{key}, as seen: {pixels.shape[1]} x {pixels.shape[0]}")
        shots.append(
            picture_html(pixels, alt=key, boxes=[Marked(box, "", "true") for box in seen], caption=caption)
        )
    return shots


STYLE = """
.tokens { line-height: 1.9; overflow-wrap: anywhere; }
.token { display: inline-block; white-space: pre; line-height: 1.4; padding: 0 .12rem;
  border: 1px solid var(--line); border-radius: .25rem; }
.learnt .token { border-color: var(--good); color: var(--good); font-weight: 600; }
.token.control { font-size: .76rem; color: var(--muted); } .learnt .token.control { color: var(--good); }
.token.picture { background: var(--accent); }
"""
