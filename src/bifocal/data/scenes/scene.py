"""What is true of a composed picture: its objects, their looks and their boxes."""

from __future__ import annotations

from dataclasses import dataclass

from bifocal.data.sample import Box

SIZES = ("small", "large")
TILTS = ("upright", "tilted")
TILE_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")


@dataclass(frozen=True, slots=True)
class Concept:
    """A drawable thing: its plain name and plural ("a"/"an" follows from ``article``), category, and file.

    ``can_tilt`` is False where a turned drawing looks like an upright one (a ball), so nothing may be said of
    its tilt. It is measured on the drawing: a concept taken from ``World.concepts`` has the measured value.
    """

    name: str
    plural: str
    article: str
    category: str
    aliases: tuple[str, ...]
    hexcode: str
    can_tilt: bool = True


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawing in a picture. ``box`` encloses its tile where it has one, else its visible pixels.

    ``drawing`` says which of the pre-rendered sprites of its concept, size and tilt was painted (they differ
    by a pixel or two in size, and in the direction of the tilt); it is needed to paint the scene and for
    nothing else.
    """

    concept: Concept
    size: str  # one of SIZES
    tilt: str  # one of TILTS
    tile: str | None  # one of TILE_COLOURS, or None
    box: Box
    drawing: int = 0

    @property
    def centre(self) -> tuple[float, float]:
        """x and y of the middle of the box, in [0, 1]."""
        return (self.box.x1 + self.box.x2) / 2, (self.box.y1 + self.box.y2) / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's exact truth. ``key`` names the picture; objects stand in the order they were painted."""

    key: str
    background: str
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that a scene is to hold; what is None comes as it will."""

    name: str
    size: str | None = None  # one of SIZES
    tilt: str | None = None  # one of TILTS
    tile: str | None = None  # one of TILE_COLOURS
