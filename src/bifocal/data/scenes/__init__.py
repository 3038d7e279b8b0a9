"""Scenes composed of real drawings: pictures whose ground truth is exact for every task."""

from bifocal.data.scenes.compose import SPLITS, World, WorldSettings
from bifocal.data.scenes.concepts import CATEGORY_NOUNS
from bifocal.data.scenes.paint import BACKGROUND_RGB, TILE_RGB
from bifocal.data.scenes.scene import SIZES, TILE_COLOURS, TILTS, Concept, Scene, SceneObject

__all__ = [
    "World",
    "WorldSettings",
    "Scene",
    "SceneObject",
    "Concept",
    "SPLITS",
    "SIZES",
    "TILTS",
    "TILE_COLOURS",
    "TILE_RGB",
    "BACKGROUND_RGB",
    "CATEGORY_NOUNS",
]
