"""How a picture of any shape becomes the square that a picture tower takes.

Models trained here see pictures whole. Models of other tools see what their own preparation left of them, and are
wrong on anything else, so theirs is kept with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

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
    height, width = picture.shape[:2]
    if fitting.mode == "whole":
        return _resized(picture, size, size, fitting)
    if fitting.mode == "longest":
        ratio = max(height, width) / size
        high, wide = (max(1, round(side / ratio)) for side in (height, width))
        return _padded(_resized(picture, high, wide, fitting), size, fitting.fill)
    # a model that was given larger pictures needs at least those
    shorter, least = max(fitting.shorter or size, size), min(height, width)
    high, wide = (shorter if side == least else int(shorter * side / least) for side in (height, width))
    scaled = _resized(picture, high, wide, fitting)
    top, left = (_middle(side - size, fitting.rounded) for side in (high, wide))
    return np.ascontiguousarray(scaled[top : top + size, left : left + size])


def _resized(picture: np.ndarray, height: int, width: int, fitting: Fitting) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    pillow = Image.Resampling(FILTERS.index(fitting.filter))
    return np.array(Image.fromarray(picture).resize((width, height), pillow))


def _middle(rest: int, rounded: bool) -> int:
    """Pixels before the middle part of a side that is ``rest`` pixels too long."""
    return round(rest / 2) if rounded else rest // 2


def _padded(picture: np.ndarray, size: int, fill: int) -> np.ndarray:
    square = np.full((size, size, 3), fill, np.uint8)
    top, left = ((size - side) // 2 for side in picture.shape[:2])
    square[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return square
