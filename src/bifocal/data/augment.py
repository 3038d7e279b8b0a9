"""Augmentation: other looks that a picture could have had, made on its way into training.

A drawing shows what a thing is, and also how one hand draws. A model that has seen a single hand takes both for the
name; where every drawing comes with another outline, shade, hue, size and bend, only the thing is left to go by. What a
picture's own texts speak of stays as it is: a picture keeps its hues where they name a colour, and its place where they
tell a size, a tilt or a place; in a mirror image left and right change places in the words too.

Pixels are (B, 3, H, W) in [0, 1]. What is done to them is drawn for each picture anew, and is a pure function of the
pictures and a generator. Lights change around white, over which drawings are laid: paper stays paper.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bifocal.config import UserError
from bifocal.data.pictures import PictureTransform
from bifocal.data.sample import Box

# All at strength 1; where one number is given, up to that in both directions.
TURN = math.radians(20)
ZOOM = (
    math.log(0.75),
    math.log(1.15),
)  # logarithm; smaller rather than larger, since what is cut off is lost
STRETCH = 0.25  # logarithm of width over height
SHIFT = 0.12  # of half a side
BEND = 0.07  # of half a side, the deviation of a smooth displacement
BENDS = 4  # places along a side at which it is drawn
HUE = math.radians(40)
SATURATION = 0.7  # logarithm
GREY_SHARE = 0.1  # of the pictures
CONTRAST, GAMMA = 0.3, 0.4  # logarithms
SHADE = 0.45  # of its light, what a shaded drawing loses at its darkest
EDGE = (0.15, 0.45)  # differences between neighbours, of 1, at which an outline begins and is black
# Shares of the pictures that meet one of the ways of each kind.
LINES_SHARE, SURFACES_SHARE, BACKGROUND_SHARE, FLIP_SHARE = 0.7, 0.5, 0.5, 0.5
PLAIN = 0.03  # difference, of 1, up to which a colour is still that of the corners

_COLOURS = re.compile(
    r"\b(?:black|white|gr[ae]y|red|orange|yellow|green|blue|purple|violet|pink|brown|gold(?:en)?|silver|cream|lavender"
    r"|rainbow|colou?r\w*)\b",
    re.IGNORECASE,
)
_PLACES = re.compile(
    r"\b(?:small|large|big|tiny|huge|little|tall|upright|tilted|slanted|upside|(?:top|bottom|left|right)(?:most)?"
    r"|corner|middle|cent(?:re|er)|edge)\b",
    re.IGNORECASE,
)
# Luminance and two axes of colour (NTSC's Y, I, Q): a hue is an angle between the latter.
_FROM_RGB = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TO_RGB = torch.linalg.inv(_FROM_RGB)


@dataclass(frozen=True)
class Augment:
    """How much pictures are varied in training: strengths from 0, the default, which leaves everything alone, to 1.

    ``geometry`` varies size, proportions, place, turn and a smooth bend; ``colour`` hue, saturation, contrast and
    gamma, with some pictures in grey; ``style`` the hand: thinner or thicker lines, outlines around or instead of
    areas, blur, shading, fewer colours; ``background`` the colour around what stands on a plain one; ``flip`` mirrors.
    """

    geometry: float = 0.0
    colour: float = 0.0
    style: float = 0.0
    background: float = 0.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        for name, strength in dataclasses.asdict(self).items():
            if not 0 <= strength <= 1:
                raise ValueError(f"augment.{name} is a strength from 0 to 1, got {strength}")


OFF = Augment()


def speaks_of_colours(texts: Sequence[str]) -> bool:
    """Whether one of the texts, in English, names a colour."""
    return any(_COLOURS.search(text) for text in texts)


def speaks_of_places(texts: Sequence[str]) -> bool:
    """Whether one of the texts, in English, tells a size, a tilt or a place in the picture."""
    return any(_PLACES.search(text) for text in texts)


def mirrored(
    picture: np.ndarray, texts: Sequence[str], boxes: Sequence[Box], strength: float, rng: random.Random
) -> tuple[np.ndarray, Sequence[str], Sequence[Box]]:
    """The picture (H, W, 3) uint8, its texts and its boxes; for some pictures, mirrored all together.

    Texts in which left and right cannot be swapped word by word ("right above") keep their picture as it is.
    """
    if rng.random() >= strength * FLIP_SHARE:
        return picture, texts, boxes
    try:
        flipped, swapped = PictureTransform.flip(picture, texts, boxes)
    except UserError:
        return picture, texts, boxes
    return flipped.picture, swapped, [box for box in flipped.boxes if box is not None]


def augment(
    images_BCHW: Tensor,
    settings: Augment,
    generator: torch.Generator,
    *,
    keep_colours_B: Tensor,
    keep_places_B: Tensor,
) -> Tensor:
    """Pictures of the same shape in [0, 1]. The (B,) bool say which of them keep their colours, and their places."""
    images = images_BCHW
    if settings.background:
        images = _on_others(images, settings.background, generator, keep_colours_B)
    if settings.style:
        for ways, share in ((LINES, LINES_SHARE), (SURFACES, SURFACES_SHARE)):
            images = _by_one_way(images, ways, settings.style * share, generator, keep_colours_B)
    if settings.colour:
        images = _recoloured(images, settings.colour, generator, keep_colours_B)
    if settings.geometry:
        images = _moved(images, settings.geometry, generator, keep_places_B)
    return images


def _draw(count: int, generator: torch.Generator, low: float = -1.0, high: float = 1.0) -> Tensor:
    """(count,) float32, evenly between."""
    return torch.rand(count, generator=generator) * (high - low) + low


def _per_picture(values_B: Tensor) -> Tensor:
    return values_B.view(-1, 1, 1, 1)


# ---------------------------------------------------------------- background


def surroundings(images_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) bool: pixels of the corners' colour with nothing else on a straight way to the picture's border.

    None of a picture whose corners differ, as those of photographs do. What the drawing encloses is not found.
    """
    corners_BC4 = images_BCHW[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    alike_B = (corners_BC4.amax(dim=2) - corners_BC4.amin(dim=2)).amax(dim=1) <= PLAIN
    colour_BC11 = corners_BC4.mean(dim=2)[:, :, None, None]
    plain_BHW = ((images_BCHW - colour_BC11).abs().amax(dim=1) <= PLAIN).float()
    seen_BHW = torch.zeros_like(plain_BHW)
    for axis in (1, 2):
        seen_BHW += plain_BHW.cumprod(dim=axis) + plain_BHW.flip(axis).cumprod(dim=axis).flip(axis)
    return (seen_BHW > 0)[:, None] & alike_B[:, None, None, None]


def _on_others(images_BCHW: Tensor, strength: float, generator: torch.Generator, keep_B: Tensor) -> Tensor:
    count = len(images_BCHW)
    colours_BC11 = torch.rand(count, 3, 1, 1, generator=generator)
    chosen_B = (_draw(count, generator, 0.0) < strength * BACKGROUND_SHARE) & ~keep_B
    return torch.where(_per_picture(chosen_B) & surroundings(images_BCHW), colours_BC11, images_BCHW)


# ---------------------------------------------------------------- style

Way = Callable[[Tensor, torch.Generator], Tensor]  # (B, 3, H, W) -> the same, in [0, 1]


def _light_spread(images_BCHW: Tensor) -> Tensor:
    return F.max_pool2d(images_BCHW, 3, 1, 1)


def _dark_spread(images_BCHW: Tensor) -> Tensor:
    return -F.max_pool2d(-images_BCHW, 3, 1, 1)


def _without_thin_lines(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Dark lines of up to two pixels vanish, and wider areas come back as they were (a morphological closing)."""
    return _dark_spread(_light_spread(images_BCHW))


def _with_thin_lines(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    return _light_spread(images_BCHW)


def _with_thick_lines(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    return _dark_spread(images_BCHW)


def _edges(images_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1]: 1 where a channel differs much between neighbours."""
    spread = (_light_spread(images_BCHW) - _dark_spread(images_BCHW)).amax(dim=1, keepdim=True)
    return ((spread - EDGE[0]) / (EDGE[1] - EDGE[0])).clamp(0, 1)


def _outlined(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    return images_BCHW * (1 - _edges(images_BCHW))


def _outlines_alone(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    return (1 - _edges(images_BCHW)).expand_as(images_BCHW)


def _blurred(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    return F.avg_pool2d(images_BCHW, 3, 1, 1, count_include_pad=False)


def _shaded(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Darker towards one side, as if lit from the other; what is around a drawing on plain paper is not."""
    count, _, height, width = images_BCHW.shape
    angle_B11 = _draw(count, generator, 0.0, 2 * math.pi).view(-1, 1, 1)
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)
    depth_BHW = (1 + angle_B11.cos() * columns + angle_B11.sin() * rows).clamp(0, 2) / 2
    light_B1HW = 1 - SHADE * depth_BHW[:, None]
    return torch.where(surroundings(images_BCHW), images_BCHW, images_BCHW * light_B1HW)


def _with_fewer_colours(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    steps = _per_picture(torch.randint(1, 5, (len(images_BCHW),), generator=generator))
    return (images_BCHW * steps).round() / steps


# The last of each changes colours, and is not for pictures that are to keep them.
LINES: tuple[Way, ...] = (
    _without_thin_lines,
    _with_thin_lines,
    _with_thick_lines,
    _outlined,
    _outlines_alone,
)
SURFACES: tuple[Way, ...] = (_blurred, _shaded, _with_fewer_colours)


def _by_one_way(
    images_BCHW: Tensor, ways: Sequence[Way], share: float, generator: torch.Generator, keep_B: Tensor
) -> Tensor:
    """A share of the pictures each by one of the ways, evenly."""
    lot_B = _draw(len(images_BCHW), generator, 0.0) / share * len(ways)
    way_B = torch.where(keep_B & (lot_B < len(ways)), lot_B.clamp(max=len(ways) - 1.5), lot_B).long()
    images = images_BCHW.clone()
    for number, way in enumerate(ways):
        rows = (way_B == number).nonzero()[:, 0]
        if len(rows):
            images[rows] = way(images[rows], generator)
    return images


# ---------------------------------------------------------------- colour


def _recoloured(images_BCHW: Tensor, strength: float, generator: torch.Generator, keep_B: Tensor) -> Tensor:
    """Hue and saturation turned about the greys; contrast around white; a gamma, which leaves black and white alone."""
    count = len(images_BCHW)
    free_B = strength * (~keep_B).float()
    hue_B = HUE * free_B * _draw(count, generator)
    saturation_B = (SATURATION * free_B * _draw(count, generator)).exp()
    saturation_B = saturation_B * (_draw(count, generator, 0.0) >= GREY_SHARE * free_B)
    turned_B33 = torch.zeros(count, 3, 3)
    turned_B33[:, 0, 0] = 1
    turned_B33[:, 1, 1] = turned_B33[:, 2, 2] = saturation_B * hue_B.cos()
    turned_B33[:, 2, 1] = saturation_B * hue_B.sin()
    turned_B33[:, 1, 2] = -turned_B33[:, 2, 1]
    mixed_B33 = _TO_RGB @ turned_B33 @ _FROM_RGB
    images = torch.bmm(mixed_B33, images_BCHW.flatten(2)).view_as(images_BCHW)
    contrast = _per_picture((CONTRAST * strength * _draw(count, generator)).exp())
    gamma = _per_picture((GAMMA * strength * _draw(count, generator)).exp())
    return (1 - (1 - images) * contrast).clamp(0, 1) ** gamma


# ---------------------------------------------------------------- geometry


def _moved(images_BCHW: Tensor, strength: float, generator: torch.Generator, keep_B: Tensor) -> Tensor:
    """Larger or smaller, stretched, turned, shifted and bent; what comes in from outside has the corners' colour."""
    grid_BHW2 = _places(images_BCHW.shape, strength, generator)
    moving = (~keep_B).nonzero()[:, 0]
    images = images_BCHW.clone()
    if len(moving):
        chosen = images_BCHW[moving]
        around = chosen[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(dim=2)[:, :, None, None]
        # zero stands for that colour meanwhile, since zero is what is sampled outside
        sampled = F.grid_sample(chosen - around, grid_BHW2[moving], align_corners=False) + around
        images[moving] = sampled.clamp(0, 1)  # adding and taking away rounds
    return images


def _places(shape: torch.Size, strength: float, generator: torch.Generator) -> Tensor:
    """(B, H, W, 2): where each pixel is taken from, x before y, in [-1, 1] of the picture."""
    count, _, height, width = shape
    zoom_B = strength * _draw(count, generator, *ZOOM)
    stretch_B = strength * STRETCH * _draw(count, generator) / 2
    turn_B = strength * TURN * _draw(count, generator)
    across_B, down_B = (-zoom_B - stretch_B).exp(), (-zoom_B + stretch_B).exp()
    affine_B23 = torch.zeros(count, 2, 3)
    affine_B23[:, 0, 0], affine_B23[:, 0, 1] = across_B * turn_B.cos(), across_B * turn_B.sin()
    affine_B23[:, 1, 0], affine_B23[:, 1, 1] = -down_B * turn_B.sin(), down_B * turn_B.cos()
    affine_B23[:, :, 2] = strength * SHIFT * _draw(2 * count, generator).view(count, 2)
    bends = strength * BEND * torch.randn(count, 2, BENDS, BENDS, generator=generator)
    bend_B2HW = F.interpolate(bends, size=(height, width), mode="bicubic", align_corners=True)
    straight = F.affine_grid(affine_B23, list(shape), align_corners=False)
    return straight + bend_B2HW.permute(0, 2, 3, 1)
