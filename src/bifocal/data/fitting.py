"""How a picture of any shape becomes the square that a picture tower takes, and which part of it that shows.

Models trained here see pictures whole. Models of other tools see what their own preparation left of them, and are
wrong on anything else, so theirs is kept with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from bifocal.data.sample import Box

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers
Mode = Literal["whole", "shortest", "longest"]
Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


@dataclass(frozen=True)
class Fitting:
    """``mode`` "whole" squashes the picture to the square; "shortest" scales its shorter side to the square's, or to
    ``shorter`` pixels, and cuts out the middle; "longest" scales its longer side to the square's and fills the rest
    with the grey ``fill``.

    Where the middle lies between two pixels, ``rounded`` takes the even one (torchvision, open_clip), else the lower
    (transformers).
    """

    mode: Mode = "whole"
    filter: Filter = "bicubic"
    shorter: int | None = None
    fill: int = 0
    rounded: bool = False

    def __post_init__(self) -> None:
        if self.shorter is not None and self.mode != "shortest":
            raise ValueError(f"fitting.shorter is for the mode shortest, and the mode is {self.mode}")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fitting.fill must be a grey from 0 to 255, got {self.fill}")


WHOLE = Fitting()  # how every picture is seen by what is trained here


def fit_picture(picture: np.ndarray, size: int, fitting: Fitting) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, antialiased.

    The rules are those of transformers' ``CLIPImageProcessor`` and of open_clip's ``image_transform``, so that their
    models get the very pixels they were made for.
    """
    high, wide, top, left = _placed(picture, size, fitting)
    scaled = _resized(picture, high, wide, fitting)
    if fitting.mode != "longest":
        return np.ascontiguousarray(scaled[top : top + size, left : left + size])
    square = np.full((size, size, 3), fitting.fill, np.uint8)
    square[-top : high - top, -left : wide - left] = scaled
    return square


def seen_part(picture: np.ndarray, size: int, fitting: Fitting) -> Box:
    """The part of a picture (H, W, 3) that the square of ``fit_picture`` shows.

    It is normalised by the picture's sides, as boxes are, and goes beyond [0, 1] where the square is filled up.
    """
    high, wide, top, left = _placed(picture, size, fitting)
    return Box(left / wide, top / high, (left + size) / wide, (top + size) / high)


def seen_box(box: Box, part: Box) -> Box | None:
    """What of a picture's box lies in the ``part`` that is seen, in [0, 1] of that part; None where nothing does."""
    wide, high = part.x2 - part.x1, part.y2 - part.y1
    x1, x2 = (min(1.0, max(0.0, (x - part.x1) / wide)) for x in (box.x1, box.x2))
    y1, y2 = (min(1.0, max(0.0, (y - part.y1) / high)) for y in (box.y1, box.y2))
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _placed(picture: np.ndarray, size: int, fitting: Fitting) -> tuple[int, int, int, int]:
    """The height and width that a picture is scaled to, and the top and left in it where the square begins.

    These are negative where the square is larger, and is filled up.
    """
    height, width = picture.shape[:2]
    if fitting.mode == "whole":
        return size, size, 0, 0
    if fitting.mode == "longest":
        ratio = max(height, width) / size
        high, wide = (max(1, round(side / ratio)) for side in (height, width))
        return high, wide, -((size - high) // 2), -((size - wide) // 2)
    # a model that was given larger pictures needs at least those
    shorter, least = max(fitting.shorter or size, size), min(height, width)
    high, wide = (shorter if side == least else int(shorter * side / least) for side in (height, width))
    top, left = (_middle(side - size, fitting.rounded) for side in (high, wide))
    return high, wide, top, left


def _resized(picture: np.ndarray, height: int, width: int, fitting: Fitting) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    pillow = Image.Resampling(FILTERS.index(fitting.filter))
    return np.array(Image.fromarray(picture).resize((width, height), pillow))


def _middle(rest: int, rounded: bool) -> int:
    """Pixels before the middle part of a side that is ``rest`` pixels too long."""
    return round(rest / 2) if rounded else rest // 2
