"""The closed vocabulary of the scenes' language: numbers, articles, plurals, places, and how a thing is named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

from bifocal.data.scenes.concepts import CATEGORY_NOUNS
from bifocal.data.scenes.scene import TILE_COLOURS, Concept
from bifocal.data.scenes.wholeset import LEFT_OVER

Random = Callable[[], float]  # ``random.Random().random``: uniform in [0, 1)
Item = TypeVar("Item")

NUMBERS: tuple[str, ...] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
NUMBERS += ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
DIRECTIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
DIRECTION_PHRASES = {  # several ways to say the same, each read as "<a> is <phrase> <b>"
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
}
CELLS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
CELL_PHRASES = tuple("in the middle" if cell == "middle" else f"at the {cell}" for cell in CELLS)
ON_A_TILE = {colour: f"on {'an' if colour[0] in 'aeiou' else 'a'} {colour} tile" for colour in TILE_COLOURS}
ON_THE_TILE = {colour: f"on the {colour} tile" for colour in TILE_COLOURS}


def pick(items: Sequence[Item], random: Random) -> Item:
    """One of ``items``, uniformly; several times faster than ``random.choice``."""
    return items[int(random() * len(items))]


def a(concept: Concept) -> str:
    return f"{concept.article} {concept.name}"


def counted(concept: Concept, count: int) -> str:
    """ "an owl", "two owls", "zero owls"."""
    return f"{concept.article} {concept.name}" if count == 1 else f"{NUMBERS[count]} {concept.plural}"


def numbered(concept: Concept, count: int) -> str:
    """ "one owl", "two owls": where the number itself is what is said."""
    return f"one {concept.name}" if count == 1 else f"{NUMBERS[count]} {concept.plural}"


def category_noun(category: str) -> str:
    """The word for one member of a category: "animal", "food item"."""
    return CATEGORY_NOUNS[category][0]


def category_plural(category: str) -> str:
    return CATEGORY_NOUNS[category][1]


def numbered_category(category: str, count: int) -> str:
    if count == 1:
        return f"one {category_noun(category)}"
    return f"{NUMBERS[count]} {category_plural(category)}"


def join(phrases: Sequence[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def look(noun: str, own_article: str, size: str | None, tilt: str | None, tile: str | None) -> str:
    """An indefinite noun phrase with the attributes that are not None: "a small tilted owl on a red tile"."""
    if size is not None:
        words = f"a {size} {tilt} {noun}" if tilt is not None else f"a {size} {noun}"
    elif tilt is not None:
        words = f"{'an' if tilt == 'upright' else 'a'} {tilt} {noun}"
    else:
        words = f"{own_article} {noun}"
    return words if tile is None else f"{words} {ON_A_TILE[tile]}"


def the_look(noun: str, size: str | None, tilt: str | None, tile: str | None) -> str:
    """A definite noun phrase: "the small tilted owl on the red tile"; ``tile`` may be "none": "without a tile"."""
    words = "the "
    if size is not None:
        words += size + " "
    if tilt is not None:
        words += tilt + " "
    words += noun
    if tile is None:
        return words
    return f"{words} without a tile" if tile == "none" else f"{words} {ON_THE_TILE[tile]}"


def _is_called(concept: Concept, category: str) -> bool:
    """Whether a concept has the noun of a category for its name, or, being of another, at the end of one.

    "The people" must not mean both a category and a concept, nor "how many faces" leave out the cat face.
    """
    nouns = category_noun(category), category_plural(category)
    if concept.category == category:
        return concept.name in nouns or concept.plural in nouns
    return any(f" {form}".endswith(f" {noun}") for form in (concept.name, concept.plural) for noun in nouns)


class Lexicon:
    """The concepts that words may name, and which of them are novel (named in training only when alone).

    Something said to be absent is drawn from the same category and from the same side of that border as what it
    stands in for, so that a name never gives away that the answer is "no". ``countable`` are the categories whose
    members may be called by its noun, and nothing else may: everything is an object.
    """

    def __init__(self, concepts: Iterable[Concept], novel: Collection[str] = ()) -> None:
        self.concepts = tuple(concepts)
        self.by_name = {concept.name: concept for concept in self.concepts}
        self.novel = frozenset(novel)
        self.countable = frozenset(
            category
            for category in {concept.category for concept in self.concepts} - {LEFT_OVER}
            if not any(_is_called(concept, category) for concept in self.concepts)
        )
        self.pools: dict[tuple[bool, str], list[Concept]] = {}
        for concept in self.concepts:
            is_novel = concept.name in self.novel
            self.pools.setdefault((is_novel, concept.category), []).append(concept)
            self.pools.setdefault((is_novel, ""), []).append(concept)

    def absent(self, present: Collection[str], like: Concept, random: Random) -> Concept | None:
        """A concept that ``present`` lacks, mostly of the category of ``like``; None if there is hardly one."""
        is_novel = like.name in self.novel
        pool = self.pools[is_novel, like.category if random() < 0.85 else ""]
        for _ in range(4):
            concept = pick(pool, random)
            if concept.name not in present:
                return concept
        concept = pick(self.pools[is_novel, ""], random)
        return None if concept.name in present else concept
