"""A world of composed pictures: scenes of one to several drawings, every one a pure function of its place.

``World.scene(split, index)`` depends on nothing but the settings, the split and the index, so scenes are made
when they are used and never stored. Two rules keep the splits apart:

- What stands where in a scene (concepts and exact positions) is hashed to one of 16 buckets and each split
  owns its own; a scene that falls into the bucket of another split is placed anew. So no scene of one split
  can be in another.
- The novel pairs and novel concepts are fixed by the drawings alone. Two concepts of a novel pair meet only
  in ``test-novel-pairs``; a novel concept has company only in ``test-novel-concepts``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bifocal.config import UserError
from bifocal.data.sample import Box
from bifocal.data.scenes import sprites as sprite_module
from bifocal.data.scenes.concepts import concepts_of, upright_turns
from bifocal.data.scenes.paint import BACKGROUND_RGB, TILE_RGB, Painter
from bifocal.data.scenes.plan import Layout, Planner
from bifocal.data.scenes.scene import SIZES, TILE_COLOURS, TILTS, Concept, Scene, SceneObject, Wanted

SPLITS = ("train", "validation", "test", "test-novel-pairs", "test-novel-concepts")

# Of the 16 buckets of scenes; train owns the other twelve.
_BUCKETS = {"validation": 0, "test": 1, "test-novel-pairs": 2, "test-novel-concepts": 3}
_NOVEL_PAIRS_SHARE = 0.08
_NOVEL_CONCEPTS_SHARE = 1 / 15
# How many pictures an episode has: one, two or three.
_PICTURES_CUMULATIVE = (0.70, 0.95)
_LARGEST_EPISODE = 3
_SINGLE = "single"  # stands for the slot in the key of a single-object scene
# Raised when composition changes, so that models and caches made with an older version can be told apart.
_RECIPE = 1
_MASK = (1 << 64) - 1
_PATIENCE = 200_000  # places tried before a wanted scene is held to be impossible


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """What decides a world: concepts ("small", "quickstart" or "all"), side of a picture in pixels, objects, seed."""

    concepts: str = "quickstart"
    picture_size: int = 64
    max_objects: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 32 <= self.picture_size <= 1024:
            raise UserError(
                f"picture_size is {self.picture_size}; scenes can be drawn from 32 to 1024 pixels."
            )
        if not 2 <= self.max_objects <= 8:
            raise UserError(f"max_objects is {self.max_objects}; a scene can hold 2 to 8 objects at most.")


class World:
    """Scenes, their pictures and their exact truth.

    Construction renders the drawings: within two seconds for the "small" and the "quickstart" concepts; for "all" once,
    then from a cache on disk (``progress`` is told (done, all) concepts meanwhile). All methods are pure, so a world
    can be used from several processes, each with its own copy.

    Attributes: ``settings``; ``concepts``, with the measured ``can_tilt``; ``novel_concepts``, the concepts
    that have company only in the split "test-novel-concepts"; ``fingerprint``, a hash of all that decides the
    scenes.
    """

    def __init__(
        self, settings: WorldSettings | None = None, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.settings = settings or WorldSettings()
        size = self.settings.picture_size
        concepts = concepts_of(self.settings.concepts, sprite_module.drawings_folder())
        self._sprites = sprite_module.make_sprites(
            concepts, upright_turns(), size, cache=self.settings.concepts == "all", progress=progress
        )
        self.concepts: tuple[Concept, ...] = tuple(
            replace(concept, can_tilt=bool(can)) for concept, can in zip(concepts, self._sprites.can_tilt)
        )
        self._index = {concept.hexcode: i for i, concept in enumerate(self.concepts)}
        self._painter = Painter(self._sprites, self._index, size)
        hashes = [_stable_hash(concept.hexcode) for concept in self.concepts]
        self._novel = _choose_novel(self.concepts, hashes)
        self.novel_concepts: tuple[Concept, ...] = tuple(self.concepts[i] for i in sorted(self._novel))
        self._pair_rows = _novel_pair_rows(hashes, self._novel)
        self._planner = Planner(
            concepts=self.concepts,
            novel=self._novel,
            pair_rows=self._pair_rows,
            max_objects=self.settings.max_objects,
            picture_size=size,
            heights=self._sprites.heights.tolist(),
            widths=self._sprites.widths.tolist(),
            tile_pad=sprite_module.scaled(2, size),
            tiles=[self._painter.visible_tiles(index) for index in range(len(concepts))],
        )
        self._recent: dict[tuple[str, int, int], Scene] = {}

    # -- what there is --

    @functools.cached_property
    def novel_pairs(self) -> frozenset[tuple[str, str]]:
        """The pairs of names, in alphabetical order each, that stand together only in "test-novel-pairs"."""
        names = [concept.name for concept in self.concepts]
        return frozenset(
            (min(names[a], names[b]), max(names[a], names[b]))
            for a, row in enumerate(self._pair_rows)
            for b in range(a)
            if row[b]
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with anything that decides a scene or its picture."""
        text = json.dumps(
            [
                _RECIPE,
                sorted((name, getattr(self.settings, name)) for name in WorldSettings.__slots__),
                sprite_module.versions(),
                [(c.name, c.plural, c.article, c.category, c.aliases, c.hexcode) for c in self.concepts],
                sprite_module.RECIPE,
                sprite_module.VARIANTS,
                sorted(upright_turns().items()),
                sorted(TILE_RGB.items()),
                sorted(BACKGROUND_RGB.items()),
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()

    # -- scenes --

    def scene(self, split: str, index: int, slot: int = 0) -> Scene:
        """The scene of one picture; ``slot`` 0 is the first of its episode, and 1 and 2 exist always."""
        return self.scenes(split, index, pictures=slot + 1)[slot]

    def scenes(self, split: str, index: int, pictures: int | None = None) -> tuple[Scene, ...]:
        """One episode: 1, 2 or 3 scenes (70, 25 and 5 of 100) that belong together.

        ``pictures`` forces the number. Fewer are always the first of more, so a scene keeps its key either
        way.
        """
        _check_place(split, index)
        if pictures is not None and not 1 <= pictures <= _LARGEST_EPISODE:
            raise UserError(f"An episode has 1 to {_LARGEST_EPISODE} pictures, not {pictures}.")
        rng = self._stream(split, index, "episode")
        share = rng.random()
        natural = 1 + sum(share >= limit for limit in _PICTURES_CUMULATIVE)
        scenes: list[Scene] = []
        for slot in range(pictures or natural):
            scene = self._recent.get((split, index, slot))
            if scene is None:
                scene = self._make(split, index, slot, natural > 1, tuple(scenes))
                if len(self._recent) >= 4096:
                    self._recent.clear()
                self._recent[split, index, slot] = scene
            scenes.append(scene)
        return tuple(scenes)

    def single(self, split: str, index: int) -> Scene:
        """A scene of one object, its concept uniform over all (in "test-novel-concepts", over the novel)."""
        _check_place(split, index)
        if split == "test-novel-pairs":
            raise UserError(
                'The split "test-novel-pairs" has no single-object scenes: it takes two to make a pair.'
            )
        rng = self._stream(split, index, _SINGLE)
        among = sorted(self._novel) if split == "test-novel-concepts" else range(len(self.concepts))
        layout = self._planner.single(rng, among)
        while not self._owns(split, layout):
            layout = self._planner.place(rng, layout)
        return self._scene(f"{split}/{index}/{_SINGLE}", rng, layout)

    def arranged(
        self, split: str, name: str, wanted: Sequence[Wanted], accepts: Callable[[Scene], bool]
    ) -> Scene:
        """A scene of exactly the ``wanted`` objects that ``accepts`` takes, placed by the split's rules.

        ``name`` decides what is left open, and stands in the key, which ``scene_of`` does not know. Raises
        ``ValueError`` where no such scene is found.
        """
        _check_place(split, 0)
        rng = self._stream(split, 0, name)
        numbers = {concept.name: number for number, concept in enumerate(self.concepts)}
        for _ in range(_PATIENCE):
            items = [
                self._planner.wear(
                    rng,
                    numbers[each.name],
                    None if each.size is None else SIZES.index(each.size),
                    None if each.tilt is None else TILTS.index(each.tilt),
                    None if each.tile is None else TILE_COLOURS.index(each.tile),
                )
                for each in wanted
            ]
            layout = self._planner.place(rng, items)
            if len(layout) == len(items) and self._owns(split, layout):
                scene = self._scene(f"{split}/{name}", rng, layout)
                if accepts(scene):
                    return scene
        raise ValueError(f"no scene of {split} holds {', '.join(each.name for each in wanted)} as wanted")

    def tiles_of(self, concept: Concept) -> tuple[str, ...]:
        """The colours of tiles on which a drawing can be seen."""
        return tuple(TILE_COLOURS[tile] for tile in self._painter.visible_tiles(self._index[concept.hexcode]))

    def picture(self, key: str) -> np.ndarray:
        """(S, S, 3) uint8 RGB of a key as scenes carry it: "train/17/0", "test/4/single"."""
        return self.render(self.scene_of(key))

    def scene_of(self, key: str) -> Scene:
        """The scene of a key. Raises ``UserError`` where the key names no scene."""
        split, _, place = key.partition("/")
        index, _, slot = place.partition("/")
        if split not in SPLITS or not index.isdecimal() or not (slot == _SINGLE or slot.isdecimal()):
            raise UserError(f'"{key}" names no scene; keys look like "train/17/0" or "test/4/{_SINGLE}".')
        return self.single(split, int(index)) if slot == _SINGLE else self.scene(split, int(index), int(slot))

    def _stream(self, split: str, index: int, part: str) -> random.Random:
        return random.Random(f"{self.settings.seed}/{split}/{index}/{part}")

    def _make(self, split: str, index: int, slot: int, counting: bool, before: tuple[Scene, ...]) -> Scene:
        rng = self._stream(split, index, str(slot))
        first = [(self._index[item.concept.hexcode]) for item in before[0].objects] if before else []
        while True:
            if before:
                seen = {self._index[item.concept.hexcode] for scene in before for item in scene.objects}
                wanted = self._planner.related(rng, split, first, seen)
            else:
                wanted = self._planner.first(rng, split, counting)
            layout = self._planner.place(rng, self._planner.dress(rng, wanted))
            for _ in range(
                64
            ):  # placing anew is cheaper than planning anew, and leaves the plan's frequencies alone
                if self._owns(split, layout):
                    break
                layout = self._planner.place(rng, layout)
            else:
                continue
            if self._planner.keeps_rules(split, [item.concept for item in layout]):
                return self._scene(f"{split}/{index}/{slot}", rng, layout)

    def _owns(self, split: str, layout: Layout) -> bool:
        """Whether the scene falls into a bucket of the split, by what stands where; nothing else counts."""
        side = self.settings.picture_size
        bucket = sum(_mix((item.concept * side + item.y) * side + item.x) for item in layout) & 15
        return bucket == _BUCKETS[split] if split in _BUCKETS else bucket >= len(_BUCKETS)

    def _scene(self, key: str, rng: random.Random, layout: Layout) -> Scene:
        side = self.settings.picture_size
        names = tuple(BACKGROUND_RGB)
        return Scene(
            key=key,
            background=names[int(rng.random() * len(names))],
            objects=tuple(
                SceneObject(
                    self.concepts[item.concept],
                    SIZES[item.size],
                    TILTS[item.tilt],
                    None if item.tile < 0 else TILE_COLOURS[item.tile],
                    Box(
                        item.x / side,
                        item.y / side,
                        (item.x + item.width) / side,
                        (item.y + item.height) / side,
                    ),
                    item.drawing,
                )
                for item in layout
            ),
        )

    def render(self, scene: Scene) -> np.ndarray:
        """(S, S, 3) uint8 RGB: the drawings painted in order on their tiles and the background."""
        return self._painter.paint(scene)


def _check_place(split: str, index: int) -> None:
    if split not in SPLITS:
        raise UserError(f'There is no split "{split}"; choose one of {", ".join(SPLITS)}.')
    if index < 0:
        raise UserError(f"Scene {index} of {split} does not exist; indices start at 0.")


def _stable_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(value: int) -> int:
    """A 64-bit hash of an integer (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _choose_novel(concepts: tuple[Concept, ...], hashes: list[int]) -> frozenset[int]:
    """About one concept in 15, spread over the categories, the same for every seed."""
    by_category: dict[str, list[int]] = {}
    for index, concept in enumerate(concepts):
        by_category.setdefault(concept.category, []).append(index)
    # Within a category by hash; then the first of every category, the second of every category, and so on,
    # largest categories first.
    ranked = sorted(
        (rank, -len(members), index)
        for members in by_category.values()
        for rank, index in enumerate(sorted(members, key=lambda i: hashes[i]))
    )
    return frozenset(index for _, _, index in ranked[: round(len(concepts) * _NOVEL_CONCEPTS_SHARE)])


def _novel_pair_rows(hashes: list[int], novel: frozenset[int]) -> list[bytes]:
    """For each concept a row of 0 and 1 over all concepts: 1 where the two make a novel pair."""
    values = np.array(hashes, np.uint64)
    mixed = values[:, None] ^ values[None, :]  # symmetric, and 0 on the diagonal
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    pairs = (mixed >> np.uint64(11)).astype(np.float64) / 2**53 < _NOVEL_PAIRS_SHARE
    np.fill_diagonal(pairs, False)
    members = sorted(novel)
    pairs[members, :] = False
    pairs[:, members] = False
    return [row.tobytes() for row in pairs.astype(np.uint8)]
