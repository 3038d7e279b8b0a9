"""Painting: a scene's drawings pasted on their tiles and background by numpy, some twenty thousand scenes a second."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bifocal.data.scenes import sprites as sprite_module
from bifocal.data.scenes.scene import TILE_COLOURS, Scene

TILE_RGB = {
    "red": (222, 56, 49),
    "orange": (247, 148, 42),
    "yellow": (250, 222, 72),
    "green": (76, 168, 76),
    "blue": (58, 112, 214),
    "purple": (136, 78, 190),
    "pink": (247, 158, 196),
    "brown": (142, 96, 60),
}
BACKGROUND_RGB = {
    "white": (255, 255, 255),
    "cream": (255, 248, 225),
    "pale blue": (222, 237, 252),
    "pale green": (224, 244, 222),
    "pale pink": (253, 228, 234),
    "lavender": (234, 228, 250),
    "light grey": (232, 232, 232),
    "pale orange": (254, 231, 208),
}
# A drawing is not put on a tile that this share of it resembles, nearer than the distance in RGB.
_DROWNED_SHARE = 0.4
_DROWNED_DISTANCE = 60


class Painter:
    """Paints scenes of ``picture_size`` pixels from the sprites of a world.

    ``index``: hexcode of a concept -> its number among the sprites.
    """

    def __init__(self, sprites: sprite_module.Sprites, index: Mapping[str, int], picture_size: int) -> None:
        self._sprites = sprites
        self._index = index
        self._side = side = picture_size
        self._backgrounds = {
            name: np.tile(np.array(rgb, np.float32), (side, side)) for name, rgb in BACKGROUND_RGB.items()
        }  # (S, S * 3) each
        self._layers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._tiles: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}

    def paint(self, scene: Scene) -> np.ndarray:
        """(S, S, 3) uint8 RGB: the drawings painted in order on their tiles and the background."""
        side = self._side
        # Rows of S * 3 numbers: pasting then works on two dimensions, twice as fast as on three.
        canvas = self._backgrounds[scene.background].copy()
        for item in scene.objects:
            x, y = round(item.box.x1 * side), round(item.box.y1 * side)
            variant = sprite_module.DRAWINGS[item.size, item.tilt][item.drawing]
            keep, colour = self._sprite_layer(
                self._index[item.concept.hexcode] * sprite_module.PER_CONCEPT + variant
            )
            height, width = colour.shape
            if item.tile is not None:
                tile_side = round(item.box.x2 * side) - x
                tile_keep, tile_colour = self._tile_layer(tile_side, item.tile)
                region = canvas[y : y + tile_side, 3 * x : 3 * (x + tile_side)]
                region *= tile_keep
                region += tile_colour
                x += (tile_side - width // 3) // 2
                y += (tile_side - height) // 2
            region = canvas[y : y + height, 3 * x : 3 * x + width]
            region *= keep
            region += colour
        canvas += 0.5
        return canvas.astype(np.uint8).reshape(side, side, 3)

    def visible_tiles(self, concept: int) -> tuple[int, ...]:
        """Indices of the tile colours that the drawing stands out from: a red crab on a red tile does not."""
        largest = sprite_module.DRAWINGS["large", "upright"][-1]
        pixels = (
            self._sprites.picture(concept * sprite_module.PER_CONCEPT + largest)
            .reshape(-1, 4)
            .astype(np.int64)
        )
        # Solid pixels that are not outline.
        filled = pixels[(pixels[:, 3] > 200) & (pixels[:, :3].max(axis=1) > 80)][:, None, :3]
        if len(filled) == 0:  # a black drawing stands out from every tile
            return tuple(range(len(TILE_COLOURS)))
        colours = np.array([TILE_RGB[name] for name in TILE_COLOURS])
        drowned = (((filled - colours) ** 2).sum(axis=2) < _DROWNED_DISTANCE**2).mean(axis=0)  # (colours,)
        visible = tuple(index for index, share in enumerate(drowned) if share < _DROWNED_SHARE)
        return visible if len(visible) > 1 else tuple(range(len(TILE_COLOURS)))

    def _sprite_layer(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """What a sprite leaves of the picture below and what it adds: (h, w * 3) float32 each."""
        layer = self._layers.get(index)
        if layer is None:
            pixels = self._sprites.picture(index).astype(np.float32)
            height, width = pixels.shape[:2]
            keep = np.repeat(1 - pixels[..., 3:] / 255, 3, axis=2).reshape(height, width * 3)
            layer = keep, pixels[..., :3].reshape(height, width * 3)
            if len(self._layers) >= 8192:  # the whole set has forty thousand sprites
                self._layers.clear()
            self._layers[index] = layer
        return layer

    def _tile_layer(self, side: int, colour: str) -> tuple[np.ndarray, np.ndarray]:
        layer = self._tiles.get((side, colour))
        if layer is None:
            mask = np.repeat(sprite_module.tile_mask(side)[..., None], 3, axis=2)
            painted = mask * np.array(TILE_RGB[colour], np.float32)
            layer = (1 - mask).reshape(side, side * 3), painted.reshape(side, side * 3)
            self._tiles[side, colour] = layer
        return layer
