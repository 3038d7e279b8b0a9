"""The few transforms of torchvision that open_clip prepares pictures for evaluation with, on Pillow pictures.

There is no torchvision for every torch. What is written here follows its documentation; what open_clip itself does
with these (which one it uses, in which order, with which sizes, and its own resizing to the longer side) runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

InterpolationMode = SimpleNamespace(BICUBIC=Image.Resampling.BICUBIC, BILINEAR=Image.Resampling.BILINEAR)


def resize(picture: Image.Image, size: int | Sequence[int], interpolation: Any) -> Image.Image:
    """To (height, width), or the shorter side to one number and the longer in proportion, cut to a whole number."""
    if isinstance(size, int):
        width, height = picture.size
        short = min(width, height)
        size = [size if side == short else int(size * side / short) for side in (height, width)]
    height, width = size
    return picture.resize((width, height), interpolation)


def get_dimensions(picture: Image.Image) -> list[int]:
    return [3, picture.height, picture.width]


def pad(picture: Image.Image, padding: Sequence[int], fill: int = 0) -> Image.Image:
    """Pixels of ``fill`` at the left, top, right and bottom."""
    return ImageOps.expand(picture, tuple(padding), fill=(fill,) * 3)


def crop(picture: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return picture.crop((left, top, left + width, top + height))


class Resize:
    def __init__(self, size: int | Sequence[int], interpolation: Any) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, picture: Image.Image) -> Image.Image:
        return resize(picture, self.size, self.interpolation)


class CenterCrop:
    """The middle; between two pixels the even one."""

    def __init__(self, size: Sequence[int]) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        height, width = self.size
        top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
        return crop(picture, top, left, height, width)


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


class ToTensor:
    def __call__(self, picture: Image.Image) -> Tensor:
        return to_tensor(picture)


class Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(row)[:, None, None] for row in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


class Compose:
    def __init__(self, steps: Sequence[Callable[[Any], Any]]) -> None:
        self.steps = steps

    def __call__(self, picture: Any) -> Any:
        for step in self.steps:
            picture = step(picture)
        return picture


TRANSFORMS = {
    "InterpolationMode": InterpolationMode, "Resize": Resize, "CenterCrop": CenterCrop, "ToTensor": ToTensor,
    "Normalize": Normalize, "Compose": Compose,
}  # fmt: skip
FUNCTIONAL = {
    "resize": resize,
    "get_dimensions": get_dimensions,
    "pad": pad,
    "crop": crop,
    "to_tensor": to_tensor,
}
