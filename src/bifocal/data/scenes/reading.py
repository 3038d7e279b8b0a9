"""Parses the scenes' noun phrases and referring expressions, and finds what they fit by looks and boxes alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bifocal.data.scenes.concepts import CATEGORY_NOUNS
from bifocal.data.scenes.scene import Concept, Scene, SceneObject
from bifocal.data.scenes.words import CELLS, NUMBERS, ORDINALS

RELATIONS = {
    "to the left of": "left",
    "left of": "left",
    "to the right of": "right",
    "right of": "right",
    "above": "above",
    "higher than": "above",
    "below": "below",
    "lower than": "below",
}
RELATION = "|".join(RELATIONS)
OF_ONE_TILE = r"(?:are (the .+) and (the .+) on|do (the .+) and (the .+) have) tiles of the same colour"
NUMBER_OF = {word: number for number, word in enumerate(NUMBERS)}
SURE, SURELY_NOT = (
    0.1,
    0.05,
)  # a relation between centres must be this clear either way, or the text is a fault


class Unclear(ValueError):
    """The words cannot be read, or what they say is neither clearly true nor clearly false of the pictures."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """A parsed noun phrase: which concept or category ("" is any thing), and the attributes told."""

    name: str = ""
    category: str = ""
    size: str = ""
    tilt: str = ""
    tile: str = ""  # a colour, "none", or "" where nothing is said

    def fits(self, thing: SceneObject) -> bool:
        """Whether an object may be meant; one whose tilt cannot be seen may be meant by either word."""
        return (
            self.name in ("", thing.concept.name)
            and self.category in ("", thing.concept.category)
            and self.size in ("", thing.size)
            and (self.tilt in ("", thing.tilt) or not thing.concept.can_tilt)
            and self.tile in ("", thing.tile or "none")
        )


def side_holds(one: SceneObject, other: SceneObject, relation: str) -> bool:
    """Whether ``one`` is left of, right of, above or below ``other``, by the centres of the boxes."""
    axis = 0 if relation in ("left", "right") else 1
    gap = one.centre[axis] - other.centre[axis]
    if relation in ("left", "above"):
        gap = -gap
    if SURELY_NOT < gap < SURE:
        raise Unclear(f"{one} and {other} are too level for {relation!r}.")
    return gap >= SURE


def cell_of(thing: SceneObject) -> str:
    x, y = thing.centre
    return CELLS[3 * min(int(3 * y), 2) + min(int(3 * x), 2)]


def cell_of_words(words: str) -> str:
    return "middle" if words == "in the middle" else words.removeprefix("at the ")


def only(things: Sequence[SceneObject], what: str) -> SceneObject:
    if len(things) != 1:
        raise Unclear(f"{what!r} fits {len(things)} objects.")
    return things[0]


class PhraseReader:
    """Parses noun phrases and referring expressions for one set of concepts."""

    def __init__(self, concepts: Iterable[Concept]) -> None:
        self.singular: dict[str, Phrase] = {"thing": Phrase(), "one": Phrase()}
        self.plural: dict[str, Phrase] = {"things": Phrase()}
        self.articles: dict[str, str] = {}
        concepts = tuple(concepts)
        for category in {concept.category for concept in concepts}:
            one, several = CATEGORY_NOUNS[category]
            self.singular[one] = self.plural[several] = Phrase(category=category)
        for concept in concepts:
            self.singular[concept.name] = self.plural[concept.plural] = Phrase(name=concept.name)
            self.articles[concept.name] = concept.article

    # -- noun phrases --------------------------------------------------------------------------------------------

    def phrase(self, words: str) -> Phrase:
        """ "the small tilted owl on the red tile", "a tilted animal without a tile", "owl" """
        match = re.fullmatch(
            r"(?:(the|an|a) )?(?:(small|large) )?(?:(upright|tilted) )?(.+?)"
            r"(?:(?: (?:that|which) is| that stands| standing)? on (?:a|an|the) (\w+) tile|( without a tile))?",
            words,
        )
        if match is None:
            raise Unclear(f"{words!r} is no noun phrase.")
        article, size, tilt, noun, tile, bare = match.groups()
        if noun not in self.singular:
            raise Unclear(f"{noun!r} names nothing.")
        if article in ("a", "an"):
            first = size or tilt or noun
            right = self.articles[noun] if first in self.articles else "an" if first[0] in "aeiou" else "a"
            if article != right:
                raise Unclear(f"{article!r} does not go with {first!r}.")
        base = self.singular[noun]
        return Phrase(base.name, base.category, size or "", tilt or "", tile or ("none" if bare else ""))

    def several(self, words: str) -> Phrase:
        """A plural noun: "owls", "pieces of clothing"."""
        if words not in self.plural:
            raise Unclear(f"{words!r} is no plural.")
        return self.plural[words]

    def numbered(self, words: str) -> tuple[int, Phrase]:
        """ "one owl", "two owls" """
        number, _, noun = words.partition(" ")
        if number not in NUMBER_OF:
            raise Unclear(f"{words!r} does not begin with a number.")
        nouns = self.singular if number == "one" else self.plural
        if noun not in nouns:
            raise Unclear(f"{noun!r} does not go with {number!r}.")
        return NUMBER_OF[number], nouns[noun]

    def fitting(self, words: str, scene: Scene) -> list[SceneObject]:
        phrase = self.phrase(words)
        return [thing for thing in scene.objects if phrase.fits(thing)]

    def the(self, words: str, scene: Scene) -> SceneObject:
        return only(self.fitting(words, scene), words)

    # -- referring expressions -----------------------------------------------------------------------------------

    def expression(self, text: str, scene: Scene) -> list[SceneObject]:
        """All objects that a request such as "find the left owl." may mean."""
        words = re.sub(r"^(find|point to|box:|draw a box around) ", "", text).rstrip(".")
        if match := re.fullmatch(r"the (\w+) (.+) from the (left|right|top|bottom)", words):
            return self._in_order(match[2], scene, match[3])[ORDINALS.index(match[1]) :][:1]
        if match := re.fullmatch(
            r"the (left|right|upper|lower|leftmost|rightmost|top|bottom|middle) (.+)", words
        ):
            if match[2] in self.singular:
                return self._end(match[1], match[2], scene)
        if match := re.fullmatch(rf"(the .+?)((?: and| that is| which is)?) ({RELATION}) (the .+)", words):
            anchor = self.the(match[4], scene)
            members = self.fitting(match[1], scene)
            return [
                thing
                for thing in members
                if thing is not anchor and side_holds(thing, anchor, RELATIONS[match[3]])
            ]
        if match := re.fullmatch(r"(the .+) (at the .+|in the middle)", words):
            return self.in_cell(self.fitting(match[1], scene), cell_of_words(match[2]))
        return self.fitting(words, scene)

    def in_cell(self, things: Sequence[SceneObject], cell: str) -> list[SceneObject]:
        """What is in a cell; "top" may be meant of the whole row, so it must fit the same objects there."""
        narrow = [thing for thing in things if cell_of(thing) == cell]
        wide = [thing for thing in things if cell in cell_of(thing).split()] if cell != "middle" else narrow
        if cell in ("left", "right", "top", "bottom") and wide != narrow:
            raise Unclear(f"{cell!r} may mean {len(wide)} objects or {len(narrow)}.")
        return narrow

    def _in_order(self, noun: str, scene: Scene, side: str) -> list[SceneObject]:
        axis = 0 if side in ("left", "right") else 1
        members = [thing for thing in scene.objects if self.singular[noun].fits(thing)]
        return sorted(members, key=lambda thing: thing.centre[axis], reverse=side in ("right", "bottom"))

    def _end(self, word: str, noun: str, scene: Scene) -> list[SceneObject]:
        side = {"upper": "top", "lower": "bottom"}.get(word, word.removesuffix("most"))
        if side == "middle":
            order = self._in_order(noun, scene, "left")
            return [order[len(order) // 2]] if len(order) % 2 else []
        order = self._in_order(noun, scene, side)
        if len(order) != 2 and word in ("left", "right", "upper", "lower"):
            raise Unclear(f"{word!r} of {len(order)} objects.")
        axis = 0 if side in ("left", "right") else 1
        if len(order) > 1 and abs(order[0].centre[axis] - order[1].centre[axis]) < SURELY_NOT:
            raise Unclear(f"{word!r} does not tell two objects apart.")
        return order[:1]


def statement_in(text: str) -> str:
    """A statement without the words that ask for its truth."""
    return re.sub(r"^true or false: |^is it true that |\. true or false\?$|\?$", "", text)


Table = list[tuple[str, Callable[[re.Match[str], Sequence[Scene]], Any]]]


def not_said(match: re.Match[str]) -> Any:
    raise Unclear(f"{match[0]!r} is not said of so many pictures.")


def look_up(table: Table, words: str, scenes: Sequence[Scene]) -> Any:
    """What the first pattern that can be read says; a pattern whose words name nothing gives way to the next."""
    problem: Unclear | None = None
    for pattern, meaning in table:
        match = _compiled(pattern).fullmatch(words)
        if match is not None:
            try:
                return meaning(match, scenes)
            except Unclear as error:
                problem = problem or error
    raise problem or Unclear(f"{words!r} cannot be read.")


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
