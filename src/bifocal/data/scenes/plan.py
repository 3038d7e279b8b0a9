"""What stands in a scene and where: concepts with their counts, their looks, and places that hardly overlap.

Everything draws from a ``random.Random`` through ``random()`` alone, whose stream Python keeps the same
between versions; numpy's generators cost more to make than a whole scene.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from bifocal.data.scenes import sprites as sprite_module
from bifocal.data.scenes.scene import SIZES, TILTS, Concept


class Item(NamedTuple):
    """One object in whole numbers: its concept and looks (``tile`` -1: none) and its box in pixels."""

    concept: int
    size: int
    tilt: int
    tile: int
    drawing: int
    width: int
    height: int
    x: int = 0
    y: int = 0


Layout = list[Item]

# How often a scene has 1, 2, ... objects.
_COUNT_WEIGHTS = (0.12, 0.24, 0.26, 0.22, 0.16, 0.12, 0.10, 0.08)
# How often a scene repeats a concept, where it has two objects or more; more often where pictures will be
# compared.
_REPEATS = 0.42
_REPEATS_COUNTING = 0.54
# How often an object is large, by the number of objects: five large ones would not fit.
_LARGE = (0.55, 0.50, 0.45, 0.34, 0.26, 0.2, 0.15, 0.1)
_TILTED = 0.4
_ON_TILE = 0.4
# How often another object is of a category that is there already; how often one of two alike differs in just
# one look.
_SAME_CATEGORY = 0.35
_NEARLY_ALIKE = 0.4
# Two boxes may share this much of the smaller one. Their intersection over union is then below 0.05.
_OVERLAP = 0.08
_TRIES_OBJECT = 24
_TRIES_SCENE = 4


class Planner:
    """Plans scenes as lists of whole numbers; ``World`` turns them into scenes with names.

    ``pair_rows[a][b]`` is 1 where concepts a and b are a novel pair; ``novel`` holds the novel concepts;
    ``heights`` and ``widths`` are those of all sprites in pixels; ``tile_pad`` is how far a tile stands out;
    ``tiles`` are for each concept the colours of tiles on which it can be seen.
    """

    def __init__(
        self,
        *,
        concepts: Sequence[Concept],
        novel: frozenset[int],
        pair_rows: list[bytes],
        max_objects: int,
        picture_size: int,
        heights: list[int],
        widths: list[int],
        tile_pad: int,
        tiles: list[tuple[int, ...]],
    ) -> None:
        self._novel = novel
        self._novel_list = sorted(novel)
        self._pair_rows = pair_rows
        self._max_objects = max_objects
        self._side = picture_size
        self._heights, self._widths, self._tile_pad = heights, widths, tile_pad
        self._tiles = tiles
        self._can_tilt = [concept.can_tilt for concept in concepts]
        self._common = [i for i in range(len(concepts)) if i not in novel]
        of_category: dict[str, list[int]] = {}
        for index in self._common:
            of_category.setdefault(concepts[index].category, []).append(index)
        self._alike = [of_category.get(concept.category, self._common) for concept in concepts]
        self._drawings = tuple(
            tuple(sprite_module.DRAWINGS[size, tilt] for tilt in TILTS) for size in SIZES
        )  # [size][tilt] -> numbers of the variants
        weights = _COUNT_WEIGHTS[:max_objects]
        self._count_limits = [sum(weights[: i + 1]) / sum(weights) for i in range(max_objects - 1)]

    # -- which concepts --

    def first(self, rng: random.Random, split: str, counting: bool) -> list[int]:
        """Concepts of an episode's first scene, repeated by count; what the split asks for is first."""
        count = self._count(rng)
        if split == "test-novel-pairs":
            chosen = list(self._novel_pair(rng))
        elif split == "test-novel-concepts":
            chosen = [_one_of(rng, self._novel_list), _one_of(rng, self._common)]
        elif count == 1:  # alone, every concept has its natural share, the novel ones too
            return [int(rng.random() * len(self._can_tilt))]
        else:
            chosen = [_one_of(rng, self._common)]
        count = max(count, len(chosen))
        counts = [1] * len(chosen)
        free = count - len(chosen)
        if free and rng.random() < (_REPEATS_COUNTING if counting else _REPEATS):
            more = 1
            while more < free and rng.random() < 0.38:
                more += 1
            counts[0 if len(chosen) == 1 else int(rng.random() * len(chosen))] += more
            free -= more
        return self._fill(rng, split, chosen, counts, free, set(chosen))

    def related(self, rng: random.Random, split: str, first: list[int], seen: set[int]) -> list[int]:
        """Concepts of a further scene of an episode, chosen so that a comparison says something.

        A concept of the first scene comes back as often, twice or half as often, otherwise often, or not at
        all.
        """
        focal = max(first, key=first.count)
        before = first.count(focal)
        if split not in ("test-novel-pairs", "test-novel-concepts") and focal in self._novel:
            if rng.random() < 0.5:
                return [focal]
            return self._fill(rng, split, [], [], self._count(rng), seen)
        chosen, counts = [focal], [1]
        most = self._max_objects
        if split == "test-novel-pairs":  # every scene of the split shows a novel pair
            partner = next((c for c in first if self._pair_rows[focal][c]), None)
            chosen, counts = (
                ([focal, partner], [1, 1]) if partner is not None else (list(self._novel_pair(rng)), [1, 1])
            )
            most -= 1
        elif split == "test-novel-concepts":
            novel = next(c for c in first if c in self._novel)
            if novel != focal:
                chosen, counts, most = [focal, novel], [1, 1], most - 1
        again = self._count_again(rng, before, most)
        if again == 0 and len(chosen) == 1 and focal not in self._novel:
            chosen, counts = [], []
        elif chosen[0] == focal:
            counts[0] = max(1, again)
        total = max(self._count(rng), sum(counts), 1)
        if split == "test-novel-concepts" and len(chosen) == 1:
            total = min(max(total, sum(counts) + 1), self._max_objects)
            counts[0] = min(counts[0], total - 1)
        others = [c for c in dict.fromkeys(first) if c not in chosen and c != focal]
        free = total - sum(counts)
        if free and others and rng.random() < 0.6:
            other = _one_of(rng, others)
            often = min(free, first.count(other) if rng.random() < 0.5 else 1 + int(rng.random() * free))
            chosen.append(other)
            counts.append(often)
            free -= often
        return self._fill(rng, split, chosen, counts, free, seen | {focal})

    def keeps_rules(self, split: str, concepts: list[int]) -> bool:
        """Whether a scene, of which placing may have dropped objects, still shows what its split is for."""
        if split == "test-novel-pairs":
            return any(self._pair_rows[a][b] for a in concepts for b in concepts)
        if split == "test-novel-concepts":
            return len(set(concepts)) > 1 and any(c in self._novel for c in concepts)
        return bool(concepts)

    def _count(self, rng: random.Random) -> int:
        share = rng.random()
        for count, limit in enumerate(self._count_limits):
            if share < limit:
                return count + 1
        return self._max_objects

    def _count_again(self, rng: random.Random, before: int, most: int) -> int:
        """How often a concept that the first scene shows ``before`` times comes in the next one."""
        share = rng.random()
        if share < 0.35:
            twice_or_half = [n for n in (2 * before, before // 2 if before % 2 == 0 else 0) if 0 < n <= most]
            if twice_or_half:
                return _one_of(rng, twice_or_half)
        if share < 0.60:
            return min(before, most)
        if share < 0.85:
            return 1 + int(rng.random() * most)
        return 0

    def _novel_pair(self, rng: random.Random) -> tuple[int, int]:
        while True:
            first = _one_of(rng, self._common)
            row = self._pair_rows[first]
            partners = [i for i, novel in enumerate(row) if novel]
            if partners:
                return first, _one_of(rng, partners)

    def _fill(
        self, rng: random.Random, split: str, chosen: list[int], counts: list[int], free: int, seen: set[int]
    ) -> list[int]:
        """``free`` more objects of concepts that are not there yet, now and then the same one twice."""
        pairs_allowed = split == "test-novel-pairs"
        seen = seen | set(chosen)
        while free > 0:
            pool = self._common
            if chosen and rng.random() < _SAME_CATEGORY:
                pool = self._alike[_one_of(rng, chosen)]
            concept = _one_of(rng, pool)
            for _ in range(256):
                row = self._pair_rows[concept]
                if concept not in seen and (pairs_allowed or not any(map(row.__getitem__, seen))):
                    break
                concept = _one_of(rng, self._common)
            else:
                break  # so many are there already that nothing goes with all of them
            often = 2 if free > 1 and rng.random() < 0.12 else 1
            chosen.append(concept)
            counts.append(often)
            seen.add(concept)
            free -= often
        return [concept for concept, often in zip(chosen, counts) for _ in range(often)]

    # -- looks --

    def single(self, rng: random.Random, among: Sequence[int]) -> Layout:
        """One object of one of the given concepts, placed."""
        return self.place(rng, self.dress(rng, [_one_of(rng, among)]))

    def dress(self, rng: random.Random, concepts: list[int]) -> Layout:
        """Sizes, tilts and tiles, not placed yet. Of several alike, some differ in a single look."""
        large = _LARGE[len(concepts) - 1]
        items: Layout = []
        for concept in concepts:
            twin = next((item for item in items if item.concept == concept), None)
            can_tilt = self._can_tilt[concept]
            if twin is not None and rng.random() < _NEARLY_ALIKE:
                size, tilt, tile = twin.size, twin.tilt, twin.tile
                look = rng.random()
                if look < 0.35:
                    size = 1 - size
                elif look < 0.6 and can_tilt:
                    tilt = 1 - tilt
                elif tile >= 0 and rng.random() < 0.3:
                    tile = -1
                else:  # another colour, or one where there was none
                    tile = _one_of(rng, [colour for colour in self._tiles[concept] if colour != tile])
            else:
                size = int(rng.random() < large)
                tilt = int(rng.random() < _TILTED) if can_tilt else 0
                tile = _one_of(rng, self._tiles[concept]) if rng.random() < _ON_TILE else -1
            items.append(self._item(rng, concept, size, tilt, tile))
        return items

    def wear(
        self, rng: random.Random, concept: int, size: int | None, tilt: int | None, tile: int | None
    ) -> Item:
        """One object whose looks are as given, or as they come where they are None; not placed yet."""
        (free,) = self.dress(rng, [concept])
        chosen = (free.size if size is None else size, free.tilt if tilt is None else tilt)
        return self._item(rng, concept, *chosen, free.tile if tile is None else tile)

    def _item(self, rng: random.Random, concept: int, size: int, tilt: int, tile: int) -> Item:
        variants = self._drawings[size][tilt]
        drawing = int(rng.random() * len(variants))
        sprite = concept * sprite_module.PER_CONCEPT + variants[drawing]
        height, width = self._heights[sprite], self._widths[sprite]
        if tile >= 0:
            height = width = max(height, width) + 2 * self._tile_pad
        return Item(concept, size, tilt, tile, drawing, width, height)

    # -- places --

    def place(self, rng: random.Random, items: Layout) -> Layout:
        """The objects with places anywhere in the picture that hardly overlap, largest painted first.

        Where they do not fit after a few tries, the last ones are left out.
        """
        uniform, side = rng.random, self._side
        while True:
            ordered = sorted(items, key=_area, reverse=True)
            for _ in range(_TRIES_SCENE):
                placed: Layout = []
                for item in ordered:
                    width, height = item[5], item[6]
                    across, down = side - width + 1, side - height + 1
                    for _ in range(_TRIES_OBJECT):
                        x, y = int(uniform() * across), int(uniform() * down)
                        for other in placed:
                            shared_x = min(x + width, other[7] + other[5]) - max(x, other[7])
                            if shared_x > 0:
                                shared_y = min(y + height, other[8] + other[6]) - max(y, other[8])
                                # `other` was placed before, so it is at least as large.
                                if shared_y > 0 and shared_x * shared_y > _OVERLAP * width * height:
                                    break
                        else:
                            placed.append(Item(*item[:7], x, y))
                            break
                    else:
                        break
                else:
                    return placed
            items = items[:-1]


def _area(item: Item) -> int:
    return item.width * item.height


def _one_of(rng: random.Random, values: Sequence[int]) -> int:
    return values[int(rng.random() * len(values))]
