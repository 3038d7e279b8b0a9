"""How models write boxes as text: five published dialects, each a codec between boxes and words.

A box is normalised x1, y1, x2, y2 of the original picture, on both sides. Reading never guesses: numbers outside a
dialect's range and boxes turned inside out are no boxes, so an answer in another dialect counts as unparsed instead of
being scored on a scale that nobody stated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bifocal.data.boxes import box_to_text, boxes_from_text
from bifocal.data.sample import Box

Write = Callable[[Box, str], str]  # a box and what it is of -> text
Read = Callable[[str], tuple[Box, ...]]  # text -> its boxes in order


@dataclass(frozen=True)
class Dialect:
    """``read(write(box, label))`` gives the box back, no edge moved by more than ``half_bin`` of the side."""

    name: str
    half_bin: float
    write: Write
    read: Read


def _numbers(match: re.Match[str]) -> list[float]:
    return [float(group) for group in match.groups()]


def _boxes(candidates: Iterable[Sequence[float]]) -> tuple[Box, ...]:
    """Those that lie in the picture and are not turned inside out."""
    return tuple(
        Box(*edges)
        for edges in candidates
        if all(0.0 <= edge <= 1.0 for edge in edges) and edges[0] <= edges[2] and edges[1] <= edges[3]
    )


# ------------------------------------------------------------ plain

_NUMBER = r"\s*(-?\d*\.?\d+)\s*"
_PLAIN = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def _write_plain(box: Box, label: str) -> str:
    return f"{label} [{','.join(f'{edge:.3f}' for edge in box)}]".strip()


def _read_plain(text: str) -> tuple[Box, ...]:
    return _boxes(_numbers(match) for match in _PLAIN.finditer(text))


# ------------------------------------------------------------ PaliGemma: <locY1><locX1><locY2><locX2> label

_PALIGEMMA_BINS = 1024


def _write_paligemma(box: Box, label: str) -> str:
    return f"{box_to_text(box, _PALIGEMMA_BINS)} {label}".strip()


def _read_paligemma(text: str) -> tuple[Box, ...]:
    return boxes_from_text(text, _PALIGEMMA_BINS)


# ------------------------------------------------------------ Qwen-VL: <ref>label</ref><box>(x1,y1),(x2,y2)</box>

_QWEN_STEPS = 1000
_QWEN = re.compile(r"<box>\s*\((\d+),\s*(\d+)\)\s*,\s*\((\d+),\s*(\d+)\)\s*</box>")


def _write_qwen(box: Box, label: str) -> str:
    x1, y1, x2, y2 = (round(edge * _QWEN_STEPS) for edge in box)
    return f"<ref>{label}</ref><box>({x1},{y1}),({x2},{y2})</box>"


def _read_qwen(text: str) -> tuple[Box, ...]:
    return _boxes([edge / _QWEN_STEPS for edge in _numbers(match)] for match in _QWEN.finditer(text))


# ------------------------------------------------------------ Florence-2: label<loc_x1><loc_y1><loc_x2><loc_y2>

_FLORENCE_BINS = 1000
_FLORENCE = re.compile(r"<loc_(\d+)><loc_(\d+)><loc_(\d+)><loc_(\d+)>")


def _write_florence(box: Box, label: str) -> str:
    bins = (min(math.floor(edge * _FLORENCE_BINS), _FLORENCE_BINS - 1) for edge in box)
    return label + "".join(f"<loc_{index}>" for index in bins)


def _read_florence(text: str) -> tuple[Box, ...]:
    # the middle of a bin stands for it
    return _boxes([(index + 0.5) / _FLORENCE_BINS for index in _numbers(m)] for m in _FLORENCE.finditer(text))


# ------------------------------------------------------------ Kosmos-2: two cells of a grid of 32 x 32

_CELLS = 32
_KOSMOS = re.compile(r"<patch_index_(\d{4})>\s*<patch_index_(\d{4})>")


def _write_kosmos(box: Box, label: str) -> str:
    left, top = (min(math.floor(edge * _CELLS), _CELLS - 1) for edge in box[:2])
    # an edge on the border of two cells belongs to the box's own; a box without width has the cell it lies in
    right, bottom = (max(math.ceil(edge * _CELLS) - 1, low) for edge, low in zip(box[2:], (left, top)))
    cells = (top * _CELLS + left, bottom * _CELLS + right)
    spelt = "".join(f"<patch_index_{cell:04d}>" for cell in cells)
    return f"<phrase>{label}</phrase><object>{spelt}</object>"


def _kosmos_boxes(text: str) -> Iterator[Sequence[float]]:
    for match in _KOSMOS.finditer(text):
        first, last = (int(group) for group in match.groups())
        if max(first, last) >= _CELLS**2:
            continue
        (top, left), (bottom, right) = divmod(first, _CELLS), divmod(last, _CELLS)
        # The middles of the two cells; a box one cell wide or high would then be empty, so it is given whole cells.
        thin = left == right or top == bottom
        low, high = (0.0, 1.0) if thin else (0.5, 0.5)
        yield [edge / _CELLS for edge in (left + low, top + low, right + high, bottom + high)]


def _read_kosmos(text: str) -> tuple[Box, ...]:
    return _boxes(_kosmos_boxes(text))


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect("plain", 0.0005, _write_plain, _read_plain),
        Dialect("paligemma", 0.5 / (_PALIGEMMA_BINS - 1), _write_paligemma, _read_paligemma),
        Dialect("qwen-vl", 0.5 / _QWEN_STEPS, _write_qwen, _read_qwen),
        Dialect("florence-2", 0.5 / _FLORENCE_BINS, _write_florence, _read_florence),
        # twice as much for a box that lies in one row or one column of cells
        Dialect("kosmos-2", 0.5 / _CELLS, _write_kosmos, _read_kosmos),
    )
}
