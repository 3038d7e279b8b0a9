"""Self-contained HTML pages: a skeleton (with pages.css and pages.js), pictures as data URIs, boxes, sheets, plots.

A page made here needs no network, follows the reader's light or dark setting and fits a phone. Text is
escaped where it enters (``escape``); every function that returns HTML returns it finished.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

AnyPicture = np.ndarray | Image.Image | bytes | Path

# Colours by what they mean: true against predicted, and the two families of models.
TRUE_COLOUR = "#12a150"
PREDICTED_COLOUR = "#f07f13"


class Marked(NamedTuple):
    """A box to draw: normalised x1, y1, x2, y2, its label, and whether it is "true" or "predicted"."""

    box: Sequence[float]
    label: str
    kind: str = "predicted"


class Section(NamedTuple):
    """A part of a page: ``title`` stands in the menu, ``body`` is finished HTML."""

    name: str
    title: str
    body: str


def escape(value: object) -> str:
    """Text as HTML, in content and in quoted attributes alike."""
    return html.escape(str(value), quote=True)


# ------------------------------------------------------------ pictures


def _image(picture: AnyPicture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, (bytes, Path)):
        source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
        with Image.open(source) as opened:
            return opened.convert("RGBA" if "A" in opened.getbands() else "RGB")
    if picture.dtype != np.uint8:
        raise ValueError(f"A picture to show must be uint8, not {picture.dtype}.")
    return Image.fromarray(picture)


def picture_uri(picture: AnyPicture) -> str:
    """A picture as a PNG data URI: (H,W,3) or (H,W,4) uint8, a PIL image, encoded bytes, or a file."""
    buffer = io.BytesIO()
    _image(picture).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def picture_html(
    picture: AnyPicture,
    *,
    alt: str = "",
    boxes: Sequence[Marked] = (),
    caption: str = "",
    width: int | None = None,
) -> str:
    """A figure: the picture, its boxes as vector lines over it, and a caption (finished HTML) below.

    The label of a true box stands above it and that of a predicted box below, so that both can be read when
    the boxes agree. ``width`` limits the shown width in CSS pixels.
    """
    image = _image(picture)
    high = 256.0 * image.height / image.width  # the drawing is 256 units wide whatever the picture's size
    marks = "".join(_mark(mark, high) for mark in boxes)
    style = f' style="max-width:{width}px"' if width else ""
    body = (
        f'<svg class="shot" role="img" aria-label="{escape(alt)}" viewBox="0 0 256 {high:.1f}">'
        f'<image href="{picture_uri(image)}" width="256" height="{high:.1f}"/>{marks}</svg>'
    )
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{style}>{body}{below}</figure>"


def _mark(mark: Marked, high: float) -> str:
    x1, x2 = (256 * min(1.0, max(0.0, edge)) for edge in (mark.box[0], mark.box[2]))
    y1, y2 = (high * min(1.0, max(0.0, edge)) for edge in (mark.box[1], mark.box[3]))
    true = mark.kind == "true"
    # labels stay inside the picture: at its very top or bottom they move within the box
    y = max(y1 - 5, 15.0) if true else min(y2 + 17, high - 5)
    x, anchor = (min(x1, 180.0), "start") if true else (max(x2, 76.0), "end")
    return (
        f'<rect class="{"true" if true else "predicted"}" x="{x1:.1f}" y="{y1:.1f}" '
        f'width="{max(0.0, x2 - x1):.1f}" height="{max(0.0, y2 - y1):.1f}"/>'
        f'<text class="{"true" if true else "predicted"}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(mark.label)}</text>"
    )


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def draw_boxes(picture: AnyPicture, boxes: Sequence[Marked], *, shortest_side: int = 384) -> np.ndarray:
    """The picture, enlarged to at least ``shortest_side`` pixels, with boxes and labels: (H,W,3) uint8.

    True boxes are green with the label above, predicted ones orange with the label below.
    """
    image = _image(picture).convert("RGB")
    scale = max(1, -(-shortest_side // min(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    font = _font(max(12, min(image.size) // 24))
    line = max(2, min(image.size) // 128)
    for mark in boxes:
        colour = TRUE_COLOUR if mark.kind == "true" else PREDICTED_COLOUR
        x1, y1, x2, y2 = (
            min(1.0, max(0.0, edge)) * (side - 1)
            for edge, side in zip(mark.box, (image.width, image.height) * 2, strict=True)
        )
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colour, width=line)
        if not mark.label:
            continue
        left, top, right, bottom = draw.textbbox((0, 0), mark.label, font=font)
        wide, high = right - left + 8, bottom - top + 6
        x = min(max(0.0, x1 if mark.kind == "true" else x2 - wide), image.width - wide)
        y = min(max(0.0, y1 - high if mark.kind == "true" else y2), image.height - high)
        draw.rectangle((x, y, x + wide, y + high), fill=colour)
        draw.text((x + 4 - left, y + 3 - top), mark.label, fill="white", font=font)
    return np.asarray(image)


def contact_sheet(
    pictures: Sequence[AnyPicture],
    *,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    cell: int = 128,
    gap: int = 8,
    background: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
    """Pictures in a grid of square cells, each shown whole, with a line of text below each: (H,W,3) uint8.

    Raises ValueError for no pictures, or for captions that do not match them in number.
    """
    if not pictures:
        raise ValueError("A contact sheet needs at least one picture.")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"{len(captions)} captions were given for {len(pictures)} pictures.")
    columns = min(columns or max(1, round(len(pictures) ** 0.5)), len(pictures))
    rows = -(-len(pictures) // columns)
    font = _font(max(11, cell // 10))
    text_high = font.getbbox("Ag")[3] + 6 if captions is not None else 0
    step_x, step_y = cell + gap, int(cell + gap + text_high)
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), background)
    draw = ImageDraw.Draw(sheet)
    ink = "black" if sum(background) > 380 else "white"
    for position, picture in enumerate(pictures):
        image = _image(picture).convert("RGB")
        scale = cell / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        # small pictures keep their pixels visible, large ones are made smaller smoothly
        image = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC)
        x, y = gap + position % columns * step_x, gap + position // columns * step_y
        sheet.paste(image, (x + (cell - image.width) // 2, y + (cell - image.height) // 2))
        if captions is not None:
            text = captions[position]
            while len(text) > 1 and draw.textlength(text, font=font) > cell:
                text = text.rstrip("…")[:-1] + "…"
            draw.text((x, y + cell + 2), text, fill=ink, font=font)
    return np.asarray(sheet)


# ------------------------------------------------------------ plots

# A plot is drawn in these stand-in colours; in the page they become the colours of the reader's light or dark
# theme.
INK, MUTED, LINE, FIRST, SECOND, THIRD = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f", "#101112"
_THEME = {INK: "ink", MUTED: "muted", LINE: "line", FIRST: "continuous", SECOND: "discrete", THIRD: "good"}


def figure_svg(figure: Any, *, label: str) -> str:
    """A matplotlib figure as inline SVG, with the page's fonts and the theme of the stand-in colours."""
    import matplotlib

    buffer = io.StringIO()
    # no creation date, fixed ids: one figure gives one text
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in _THEME.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"font(-family)?: ?[^;\"]*(;|(?=\"))", _page_font, text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg ", f'<svg class="plot" role="img" aria-label="{escape(label)}" ', 1)


def _page_font(match: re.Match[str]) -> str:
    size = re.search(r"[\d.]+px", match.group(0))
    return f"font-size: {size.group(0)};" if size else ""


# ------------------------------------------------------------ tables


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = (), name: str = ""
) -> str:
    """A table that scrolls sideways on a small screen; the cells are finished HTML, columns are text.

    ``numeric`` columns are set right; with a ``name`` a box above the table filters its rows as one types.
    """
    right = set(numeric)

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="number">{value}</{tag}>' if i in right else f"<{tag}>{value}</{tag}>"
            for i, value in enumerate(values)
        )

    head = f"<thead><tr>{cells('th', [escape(column) for column in columns])}</tr></thead>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    box = ""
    if name:
        box = (
            f'<p><input type="search" class="filter" data-table="{escape(name)}" placeholder="Filter: all '
            'words must occur" aria-label="Filter the rows"> <span class="muted" data-count></span></p>'
        )
    identity = f' id="{escape(name)}"' if name else ""
    tall = " tall" if name else ""
    return f'{box}<div class="scroll{tall}"><table{identity}>{head}<tbody>{body}</tbody></table></div>'


def details(summary: str, body: str) -> str:
    """A part that opens when asked: ``summary`` is text, ``body`` finished HTML."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


# ------------------------------------------------------------ page


def page(
    title: str, sections: Sequence[Section], *, lead: str = "", style: str = "", script: str = ""
) -> str:
    """The whole page: ``title`` is text, ``lead`` finished HTML under it; a menu leads to the sections.

    ``style`` and ``script`` are a page's own, after those that all pages have.
    """
    menu = "".join(f'<a href="#{escape(s.name)}">{escape(s.title)}</a>' for s in sections)
    body = "".join(
        f'<section id="{escape(s.name)}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in sections
    )
    here = Path(__file__).parent
    style = (here / "pages.css").read_text(encoding="utf-8") + style
    shared_script = (here / "pages.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{style}</style></head>\n'
        f"<body><header><h1>{escape(title)}</h1>{lead}</header><nav>{menu}</nav>\n<main>{body}</main>"
        f"<script>{shared_script}</script>"
        + (f'<script type="module">{script}</script>' if script else "")
        + "</body></html>\n"
    )
