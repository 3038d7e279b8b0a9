"""Self-contained HTML pages: a skeleton with its style, pictures as data URIs, boxes, sheets, plots.

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
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}{style}</style></head>\n'
        f"<body><header><h1>{escape(title)}</h1>{lead}</header><nav>{menu}</nav>\n<main>{body}</main>"
        f"<script>{SCRIPT}</script>"
        + (f'<script type="module">{script}</script>' if script else "")
        + "</body></html>\n"
    )


STYLE = """
:root { color-scheme: light dark; --paper:#fbfaf8; --card:#ffffff; --ink:#1c2024; --muted:#646b74;
  --line:#dfdcd6;
  --continuous:#2a62e6; --discrete:#b8277f; --good:#0b7d3e; --bad:#c2342c; --true:#12a150;
  --predicted:#f07f13;
  --accent:#eef1f8; }
@media (prefers-color-scheme: dark) { :root { --paper:#14161a; --card:#1c1f25; --ink:#e9e7e3;
  --muted:#9aa1ab;
  --line:#343942; --continuous:#7aa5ff; --discrete:#f07fc0; --good:#4fd08a; --bad:#ff8078;
  --accent:#242a36; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.4rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
header, main { max-width: 1080px; margin: 0 auto; padding: 0 1.1rem; }
header { padding-top: 2.2rem; padding-bottom: .6rem; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.15; margin: 0 0 .5rem;
  letter-spacing: -.02em; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 0 0 .6rem; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
.lead { font-size: 1.1rem; }
.muted, figcaption { color: var(--muted); }
.good { color: var(--good); } .bad { color: var(--bad); }
.continuous { color: var(--continuous); } .discrete { color: var(--discrete); }
nav { position: sticky; top: 0; z-index: 5; background: color-mix(in srgb, var(--paper) 92%, transparent);
  backdrop-filter: blur(6px); border-bottom: 1px solid var(--line); display: flex; gap: 1.1rem;
  overflow-x: auto;
  padding: .6rem max(1.1rem, calc((100vw - 1080px) / 2 + 1.1rem)); white-space: nowrap; font-size: .92rem; }
nav a { color: var(--muted); text-decoration: none; } nav a:hover { color: var(--ink); }
section { margin: 2.6rem 0; }
a { color: var(--continuous); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .6rem; background: var(--card); }
.scroll.tall { max-height: 75vh; overflow-y: auto; }
.scroll.tall thead th { position: sticky; top: 0; background: var(--card); z-index: 1; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .42rem .7rem; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--muted); font-weight: 600; white-space: nowrap; }
table[id] td { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
input[type=search] { font: inherit; padding: .45rem .7rem; border-radius: .5rem;
  border: 1px solid var(--line);
  background: var(--card); color: var(--ink); width: min(24rem, 100%); }
figure { margin: 0; } figcaption { font-size: .84rem; margin-top: .3rem; line-height: 1.4; }
.shot { display: block; width: 100%; border-radius: .4rem; outline: 1px solid var(--line); }
.shot image { image-rendering: pixelated; }
.shot rect { fill: none; stroke-width: 4; } .shot rect.predicted { stroke-dasharray: 9 5; }
rect.true { stroke: var(--true); } rect.predicted { stroke: var(--predicted); }
.shot text { font-size: 15px; font-weight: 700; stroke: #fff; stroke-width: 4; paint-order: stroke; }
text.true { fill: #07702f; } text.predicted { fill: #b34a00; }
img { max-width: 100%; height: auto; border-radius: .4rem; } img.pixels { image-rendering: pixelated;
  width: 100%; }
.plot { display: block; width: 100%; height: auto; }
.plot text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.grid { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.grid { grid-auto-flow: dense; }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
.grid.plots { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: .8rem; }
.card.double { grid-column: span 2; }
.card.row { display: grid; grid-template-columns: 2fr 3fr; gap: .9rem; }
.card.row p:first-child { margin-top: 0; } #answers-cards p { max-height: 9rem; overflow-y: auto; }
.card p { margin: .35rem 0; } .side { display: flex; gap: .5rem; } .side > * { flex: 1; min-width: 0; }
.tag { display: inline-block; font-size: .76rem; line-height: 1.5; padding: 0 .5rem; border-radius: 1rem;
  background: var(--accent); color: var(--muted); margin-right: .25rem; white-space: nowrap; }
.tag.good { color: var(--good); } .tag.bad { color: var(--bad); }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--muted); }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem;
  font-size: .82rem; }
.notice { border-left: 3px solid var(--line); padding: .2rem .9rem; color: var(--muted); }
.buttons { display: flex; flex-wrap: wrap; gap: .4rem; margin: .8rem 0; }
button { font: inherit; font-size: .88rem; padding: .25rem .8rem; border-radius: 1rem;
  border: 1px solid var(--line);
  background: var(--card); color: var(--ink); cursor: pointer; }
button[aria-pressed=true] { background: var(--ink); color: var(--paper); border-color: var(--ink); }
[hidden] { display: none !important; }
.scores { display: grid; grid-template-columns: minmax(8rem, 13rem) 1fr; gap: 0;
  align-items: center; }
.scores > .name { font-size: .9rem; line-height: 1.3; } .scores > .name small { display: block;
  color: var(--muted); }
.scores > .lines { padding: .45rem 0; border-top: 1px solid var(--line); }
.scores > .name:first-child, .scores > .name:first-child + .lines { border-top: 0; }
.scores > .name { border-top: 1px solid var(--line); align-self: stretch; padding: .45rem 1rem .45rem 0; }
.line { display: grid; grid-template-columns: 1fr 11rem; gap: .8rem; align-items: center;
  font-size: .84rem; }
.line output { font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { position: relative; height: 1.05rem; border-radius: .2rem;
  background: linear-gradient(to right, var(--accent), var(--accent)); }
.track > * { position: absolute; top: 50%; transform: translateY(-50%); display: block; }
.track .bar { left: 0; height: .55rem; opacity: .38; border-radius: .15rem; background: currentColor; }
.track .whisker { height: 2px; background: currentColor; }
.track .dot { width: .6rem; height: .6rem; margin-left: -.3rem; border-radius: 50%;
  background: currentColor; }
.discrete .dot, .key.discrete .dot { border-radius: 1px; }
.track .baseline { width: 2px; height: 100%; margin-left: -1px; background: var(--ink); opacity: .75; }
.track .blank { width: .55rem; height: .55rem; margin-left: -.28rem; border: 2px solid var(--ink);
  background: var(--card); transform: translateY(-50%) rotate(45deg); }
.keys { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; font-size: .84rem; margin: .6rem 0; }
.keys .track { display: inline-block; width: 1.6rem; vertical-align: middle; margin-right: .35rem;
  background: none; }
@media (max-width: 640px) { .grid { gap: .6rem; grid-template-columns: repeat(2, 1fr); }
  .grid.wide, .grid.plots { grid-template-columns: 1fr; } .grid > .double { grid-column: span 2; }
  .card { padding: .6rem; } .scores { grid-template-columns: 1fr; } .scores > .lines { border-top: 0;
  padding-top: 0; }
  .scores > .name { padding-bottom: .1rem; } .line { grid-template-columns: 1fr 8.6rem; gap: .5rem; }
  .line output { white-space: normal; } }
@media print { nav, .filter, .buttons { display: none; } #answers-cards p { max-height: none; } }
"""

SCRIPT = """
for (const box of document.querySelectorAll('.filter')) {
  const rows = [...document.getElementById(box.dataset.table).tBodies[0].rows];
  const texts = rows.map(row => row.textContent.toLowerCase());
  const count = box.parentElement.querySelector('[data-count]');
  const apply = () => {
    const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => { row.hidden = !words.every(w => texts[i].includes(w)); shown += !row.hidden; });
    count.textContent = shown + ' of ' + rows.length + ' rows';
  };
  box.addEventListener('input', apply); apply();
}
for (const group of document.querySelectorAll('[data-choices]')) {
  const cards = [...document.querySelectorAll('#' + group.dataset.choices + ' > [data-tags]')];
  const none = document.querySelector('[data-none=' + group.dataset.choices + ']');
  const apply = () => {
    const pressed = [...group.querySelectorAll('button[aria-pressed=true]')];
    const wanted = pressed.map(button => button.dataset.tag).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const tags = card.dataset.tags.split(' ');
      card.hidden = !wanted.every(tag => tags.includes(tag)); shown += !card.hidden;
    }
    if (none) none.hidden = shown > 0;
  };
  group.addEventListener('click', event => {
    const button = event.target.closest('button'); if (!button) return;
    for (const other of button.parentElement.children) other.setAttribute('aria-pressed', other === button);
    apply();
  });
  apply();
}
"""
