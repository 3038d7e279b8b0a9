"""What is true of a scene: counts, places and relations, with margins that leave doubtful cases unsaid.

A relation is stated only where the two centres are clearly apart and denied only where they clearly are not; in
between it is neither true nor false and no text speaks of it. All lengths are fractions of the picture's side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bifocal.data.scenes.scene import Concept, Scene, SceneObject
from bifocal.data.scenes.words import NUMBERS, OPPOSITE, Random, pick, the_look

CLEAR = 0.12  # centres at least this far apart along an axis: "left of" is true
UNCLEAR = 0.04  # at most this far: "left of" is false; between the two nothing is said
BORDER = 0.03  # a centre this near to a line of the 3x3 grid belongs to neither cell for certain
APART = 0.08  # neighbours at least this far apart can be put in order


def _thirds(value: float) -> int:
    """Which thirds of the side a coordinate may be in, as a bit mask; one bit where it is certain."""
    if value < 1 / 3 + BORDER:
        return 1 if value < 1 / 3 - BORDER else 3
    if value < 2 / 3 + BORDER:
        return 2 if value < 2 / 3 - BORDER else 6
    return 4


_THIRD_OF_MASK = {1: 0, 2: 1, 4: 2}


class View:
    """A scene with what every question needs of it computed once.

    Attributes: ``objects``; ``names``; ``xs`` and ``ys`` (centres); ``members`` (indices by name) and ``families``
    (indices by category), both in painting order; ``tilts`` with None where a turn of the drawing cannot be seen.
    """

    __slots__ = (
        "_columns",
        "_references",
        "_rows",
        "families",
        "members",
        "names",
        "objects",
        "scene",
        "tilts",
        "xs",
        "ys",
    )

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.objects: tuple[SceneObject, ...] = scene.objects
        self.names: list[str] = []
        self.tilts: list[str | None] = []
        self.xs: list[float] = []
        self.ys: list[float] = []
        self.members: dict[str, list[int]] = {}
        self.families: dict[str, list[int]] = {}
        self._columns: list[int] = []
        self._rows: list[int] = []
        self._references: dict[tuple[int, str], str | None] = {}
        for index, thing in enumerate(scene.objects):
            x1, y1, x2, y2 = thing.box
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            name = thing.concept.name
            self.names.append(name)
            self.tilts.append(thing.tilt if thing.concept.can_tilt else None)
            self.xs.append(x)
            self.ys.append(y)
            self._columns.append(_thirds(x))
            self._rows.append(_thirds(y))
            self.members.setdefault(name, []).append(index)
            self.families.setdefault(thing.concept.category, []).append(index)

    def count(self, name: str) -> int:
        return len(self.members.get(name, ()))

    def gap(self, first: int, second: int, direction: str) -> float:
        """How far the centre of ``first`` lies in ``direction`` from that of ``second``."""
        if direction == "left":
            return self.xs[second] - self.xs[first]
        if direction == "right":
            return self.xs[first] - self.xs[second]
        if direction == "above":
            return self.ys[second] - self.ys[first]
        return self.ys[first] - self.ys[second]

    def holds(self, first: int, second: int, direction: str) -> bool:
        """Clearly true; ``fails`` is clearly false, and both can be false."""
        return self.gap(first, second, direction) >= CLEAR

    def fails(self, first: int, second: int, direction: str) -> bool:
        return self.gap(first, second, direction) <= UNCLEAR

    def cell(self, index: int) -> int | None:
        """The cell of the 3x3 grid (row by row) that the centre is certainly in, or None near a border."""
        column = _THIRD_OF_MASK.get(self._columns[index])
        row = _THIRD_OF_MASK.get(self._rows[index])
        return None if column is None or row is None else 3 * row + column

    def nearest_cell(self, index: int) -> int:
        """The cell that the centre is in, certain or not."""
        return 3 * min(int(self.ys[index] * 3), 2) + min(int(self.xs[index] * 3), 2)

    def alone_in_cell(self, index: int, others: Iterable[int]) -> bool:
        """Whether "at the top left" or "at the top" says for certain that it is none of ``others``.

        "At the top" could be meant of a whole row, so there the whole row must be free of others.
        """
        cell = self.cell(index)
        if cell is None:
            return False
        row, column = 1 << cell // 3, 1 << cell % 3
        rows, columns = self._rows, self._columns
        by_row = cell in (1, 7)
        by_column = cell in (3, 5)
        for other in others:
            if other == index:
                continue
            in_row, in_column = rows[other] & row, columns[other] & column
            if by_row and in_row or by_column and in_column or in_row and in_column:
                return False
        return True

    def line_up(self, indices: Sequence[int], horizontal: bool) -> list[int] | None:
        """The indices from left to right (or top to bottom), or None if two neighbours are too close to order."""
        places = self.xs if horizontal else self.ys
        order = sorted(indices, key=places.__getitem__)
        for before, after in zip(order, order[1:], strict=False):
            if places[after] - places[before] < APART:
                return None
        return order

    def tilt_differs(self, first: int, second: int) -> bool:
        """Whether one is seen to be tilted and the other to stand upright."""
        one, other = self.tilts[first], self.tilts[second]
        return one is not None and other is not None and one != other

    def only(self, index: int, *, size: bool = False, tilt: bool = False, tile: bool = False) -> bool:
        """Whether each other object of the picture clearly differs from this one in a named attribute."""
        this = self.objects[index]
        for other, that in enumerate(self.objects):
            if (
                other != index
                and not (size and that.size != this.size)
                and not (tilt and self.tilt_differs(index, other))
                and not (tile and that.tile != this.tile)
            ):
                return False
        return True

    def reference(self, index: int, avoid: str = "") -> str | None:
        """Words that fit this object alone by concept and looks: "the owl", "the small owl", or None.

        ``avoid`` names attributes ("size tilt", "tile") that the words may not tell. The shortest fitting words win.
        """
        key = (index, avoid)
        if key in self._references:
            return self._references[key]
        this = self.objects[index]
        name = this.concept.name
        twins = [i for i in self.members[name] if i != index]
        things = self.objects
        words: str | None = None
        if not twins:
            words = the_look(name, None, None, None)
        elif (
            this.tile is not None and "tile" not in avoid and all(things[i].tile != this.tile for i in twins)
        ):
            words = the_look(name, None, None, this.tile)
        elif "size" not in avoid and all(things[i].size != this.size for i in twins):
            words = the_look(name, this.size, None, None)
        elif "tilt" not in avoid and all(self.tilt_differs(index, i) for i in twins):
            words = the_look(name, None, this.tilt, None)
        self._references[key] = words
        return words

    def pick_referable(self, random: Random, avoid: str = "") -> int | None:
        """A random object that ``reference`` has words for, or None if two tries fail."""
        for _ in range(2):
            index = int(random() * len(self.objects))
            if self.reference(index, avoid) is not None:
                return index
        return None

    def pick_name(self, random: Random) -> str:
        """A random one of the names in the picture, each equally likely however often it occurs."""
        return pick(tuple(self.members), random)


def common_names(views: Sequence[View]) -> list[str]:
    """Names that every one of the pictures holds."""
    return [name for name in views[0].members if all(name in view.members for view in views[1:])]


def total(views: Iterable[View], name: str) -> int:
    return sum(len(view.members.get(name, ())) for view in views)


def counts(view: View, *concepts: Concept) -> str:
    """ "two, one": how many of each concept a picture shows."""
    return ", ".join(NUMBERS[view.count(each.name)] for each in concepts)


def is_there(view: View, *concepts: Concept) -> str:
    """ "yes, no": which of the concepts a picture shows."""
    return ", ".join("yes" if each.name in view.members else "no" for each in concepts)


def counts_of(views: Sequence[View], concept: Concept) -> str:
    """ "two, one": how many of a concept each picture shows, the left one first."""
    return ", ".join(counts(view, concept) for view in views)


def side(view: View, one: int, two: int, direction: str) -> str:
    """On which side of ``two`` the middle of ``one`` lies, along the axis of a direction; "level" where on neither."""
    towards = view.gap(one, two, direction)
    if abs(towards) <= UNCLEAR:
        return "level"
    return direction if towards > 0 else OPPOSITE[direction]
