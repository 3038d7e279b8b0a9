"""`bifocal ask --explain`: a page that shows an answer word by word over the pictures it was looked for in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from bifocal.artifacts import atomic_write_text
from bifocal.data.fitting import seen_part
from bifocal.data.pictures import read_picture
from bifocal.data.sample import Box
from bifocal.generation.explain import Word
from bifocal.inference import VLM, Explanation
from bifocal.pages import PREDICTED_COLOUR, Marked, Section, escape, page, picture_html, table

SIDE = 256  # pixels of the shorter side of a shown picture, at least
HOT = tuple(int(PREDICTED_COLOUR[place : place + 2], 16) for place in (1, 3, 5))
END = "(end)"


def write_explanation(
    out: Path, explanation: Explanation, pictures: Sequence[Path], question: str, model: VLM
) -> None:
    """Write the page of an answer of ``model`` about ``pictures``."""
    arrays = [read_picture(path) for path in pictures]
    shown = [enlarged(array) for array in arrays]
    parts = [seen_part(array, model.picture_size, model.fitting) for array in arrays]
    answer = explanation.answer
    marks = [Marked(box, "") for box in answer.boxes] if len(shown) == 1 else []
    asked = "".join(
        picture_html(array, alt=path.name, boxes=marks, caption=escape(path.name), width=SIDE)
        for array, path in zip(shown, pictures, strict=True)
    )
    said = f"<p><b>{escape(answer.text)}</b></p>" + (
        '<p class="notice">The longest answer allowed ended here.</p>'
        if answer.finish_reason == "length"
        else ""
    )
    sections = [
        Section(
            "answer", "Question and answer", f'<p>{escape(question)}</p>{said}<div class="grid">{asked}</div>'
        ),
        Section("attention", "Where it looked", attention_part(explanation, shown, parts)),
        Section("tokens", "What else it might have said", token_part(explanation.words)),
    ]
    if explanation.codes is not None:
        sections.append(Section("map", "What it saw", token_map(explanation, shown)))
    lead = f'<p class="lead">An answer of {escape(model.name)}, word by word.</p>'
    atomic_write_text(out, page(f"{model.name} explains itself", sections, lead=lead, style=STYLE))


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Small pictures enlarged by a whole factor, large ones reduced: (H, W, 3) uint8 of about ``SIDE`` pixels."""
    shorter = min(picture.shape[:2])
    if shorter < SIDE:
        return picture.repeat(-(-SIDE // shorter), axis=0).repeat(-(-SIDE // shorter), axis=1)
    image = Image.fromarray(picture)
    image.thumbnail((2 * SIDE, 2 * SIDE))
    return np.array(image)


def heated(picture: np.ndarray, heat_hw: Tensor, part: Box) -> np.ndarray:
    """The picture in grey where ``heat_hw``, from 0 to 1, is cold, and coloured where it is hot: (H, W, 3) uint8.

    ``part`` is the one that the model saw, over which ``heat_hw`` lies; the rest of the picture stays grey.
    """
    height, width = picture.shape[:2]
    left, right = round(part.x1 * width), round(part.x2 * width)
    top, bottom = round(part.y1 * height), round(part.y2 * height)
    cells = Image.fromarray(heat_hw.float().numpy())
    spread = cells.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR)
    whole = Image.new("F", (width, height))
    whole.paste(spread, (left, top))
    heat = np.array(whole)[..., None]
    grey = picture.mean(axis=2, keepdims=True) * 0.5 + 80
    cold = np.broadcast_to(grey, picture.shape)
    warm = 0.4 * picture + 0.6 * np.array(HOT)
    return np.clip(cold + (warm - cold) * heat, 0, 255).astype(np.uint8)


def attention_part(explanation: Explanation, shown: Sequence[np.ndarray], parts: Sequence[Box]) -> str:
    """One card a word, with the pictures under its attention, of which the model saw ``parts``."""
    if not shown or not explanation.words:
        return '<p class="notice">There is nothing to show: no picture, or no word.</p>'
    cards = []
    for word in explanation.words:
        hottest = float(word.attention.max())
        overlays = "".join(
            picture_html(
                heated(array, (heat_N / hottest if hottest else heat_N).view(explanation.grid), part),
                alt=f"where {word.text or END} was looked for in picture {number + 1}",
            )
            for number, (array, heat_N, part) in enumerate(zip(shown, word.attention, parts, strict=True))
        )
        name = escape(word.text) if word.text else f'<span class="muted">{END}</span>'
        cards.append(
            f'<div class="card"><p><b>{name}</b> <span class="muted">{word.probability:.0%}</span></p>'
            f'<div class="side">{overlays}</div>'
            f'<p class="muted">{word.attention.sum():.0%} of its attention on pictures</p></div>'
        )
    cut = any(max(part[:2]) > 0 or min(part[2:]) < 1 for part in parts)
    unseen = " This model sees the middle of a picture; what lies outside it stays grey." if cut else ""
    return (
        "<p>The share of attention that went to each part of the picture where the word was predicted, in the mean "
        "over all heads and layers; the hottest place of each word has the full colour. Beside a word stands how "
        "likely it was. Attention says where a model read, not why it answered so."
        f'{unseen}</p><div class="grid">{"".join(cards)}</div>'
    )


def token_part(words: Sequence[Word]) -> str:
    """A table of all tokens with the most likely ones at their places."""
    rows = []
    for word in words:
        for token in word.tokens:
            others = "".join(
                f'<span class="other"><i style="width:{100 * other.probability:.1f}%"></i>'
                f"{escape(visible(other.text))} {other.probability:.1%}</span>"
                for other in token.alternatives
            )
            rows.append([f"<b>{escape(visible(token.text))}</b>", f"{token.probability:.1%}", others])
    return table(["token", "probability", "most likely there"], rows, numeric=[1])


def visible(text: str) -> str:
    """A token's text, its space shown, its absence named."""
    return text.replace(" ", "\N{OPEN BOX}") if text else END


def token_map(explanation: Explanation, shown: Sequence[np.ndarray]) -> str:
    """Each picture, the codes that the model read in its place, and what the VQ-VAE makes of them."""
    assert explanation.codes is not None
    parts = []
    for array, codes_hw, seen in zip(shown, explanation.codes, explanation.seen, strict=True):
        rows = "".join(
            "<tr>" + "".join(f"<td>{code}</td>" for code in row) + "</tr>" for row in codes_hw.tolist()
        )
        parts.append(
            f'<div class="card"><div class="side">{picture_html(array, caption="the picture")}'
            f"{picture_html(enlarged(np.array(seen)), caption='what its image tokens keep of it')}</div>"
            f'<div class="scroll"><table class="codes">{rows}</table></div></div>'
        )
    return (
        "<p>A discrete model never sees the picture itself: it reads these entries of the codebook, row by row.</p>"
        f'<div class="grid wide">{"".join(parts)}</div>'
    )


STYLE = """
.other { position: relative; display: inline-block; min-width: 7rem; margin-right: .8rem; white-space: nowrap; }
.other i { position: absolute; left: 0; bottom: 0; height: 3px; background: var(--predicted); }
.codes { font-size: .72rem; font-variant-numeric: tabular-nums; }
.codes td { padding: .15rem .3rem; text-align: right; }
"""
