"""Boxes as numbers and as text: how much two agree, and the location tokens of a language model.

The dialect is PaliGemma's (Beyer et al. 2024, section 3.2): four tokens ``<locYYYY>`` in the order top, left,
bottom, right. PaliGemma counts 1024 bins; small pictures need fewer, and fewer are learnt faster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bifocal.data.sample import Box

DEFAULT_BINS = 64
NO_BINS = "this VLM has no tokens for boxes: write a box in words"
_TOKEN = re.compile(r"<loc(\d{4})>")
_FOUR_TOKENS = re.compile(r"<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>")


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; 0 where both are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = area(a) + area(b) - shared
    return shared / union if union > 0 else 0.0


def area(box: Sequence[float]) -> float:
    """Width times height; 0 for a box turned inside out."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def box_to_bins(box: Sequence[float], bins: int = DEFAULT_BINS) -> tuple[int, int, int, int]:
    """A box x1, y1, x2, y2 in [0, 1] as bins in the order of the tokens, y1, x1, y2, x2.

    Each is ``round(value * (bins - 1))``.

    Raises ``ValueError`` for coordinates outside [0, 1], which no token stands for.
    """
    if not all(0.0 <= value <= 1.0 for value in box):
        raise ValueError(
            f"The box {tuple(box)} leaves [0, 1]; boxes are normalised by the picture's width and height."
        )
    x1, y1, x2, y2 = (round(value * (bins - 1)) for value in box)
    return y1, x1, y2, x2


def bins_to_box(indices: Sequence[int], bins: int = DEFAULT_BINS) -> Box:
    """The inverse of ``box_to_bins``, exact on the bins: y1, x1, y2, x2 in [0, bins) to a box in [0, 1].

    Raises ``ValueError`` for an index that is no bin.
    """
    y1, x1, y2, x2 = indices
    if not all(0 <= index < bins for index in indices):
        raise ValueError(f"The bins {tuple(indices)} are not all between 0 and {bins - 1}.")
    return Box(x1 / (bins - 1), y1 / (bins - 1), x2 / (bins - 1), y2 / (bins - 1))


def location_token(index: int) -> str:
    """The name of a location token: ``<loc0007>``."""
    return f"<loc{index:04d}>"


def box_to_text(box: Sequence[float], bins: int = DEFAULT_BINS) -> str:
    """The four tokens of a box, as one string."""
    return "".join(location_token(index) for index in box_to_bins(box, bins))


def boxes_from_text(text: str, bins: int = DEFAULT_BINS) -> tuple[Box, ...]:
    """The boxes that a text spells in location tokens, in order.

    Four tokens in a row make a box. Tokens that are not four in a row, indices beyond ``bins`` and boxes
    turned inside out (bottom above top) are no boxes: a scorer counts an answer without a box as unparsed.
    """
    boxes = []
    for match in _FOUR_TOKENS.finditer(text):
        indices = [int(group) for group in match.groups()]
        if max(indices) < bins and indices[0] <= indices[2] and indices[1] <= indices[3]:
            boxes.append(bins_to_box(indices, bins))
    return tuple(boxes)


def without_boxes(text: str) -> str:
    """The text with its location tokens taken out and the gaps closed."""
    return " ".join(_TOKEN.sub(" ", text).split())
