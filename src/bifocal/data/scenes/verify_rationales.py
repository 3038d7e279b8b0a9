"""Recomputes what decides a statement or an answer from its words, boxes and looks alone (see ``verify``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bifocal.data.scenes.reading import (
    OF_ONE_TILE,
    RELATION,
    RELATIONS,
    SURE,
    PhraseReader,
    Table,
    Unclear,
    cell_of,
    look_up,
    statement_in,
)
from bifocal.data.scenes.scene import Concept, Scene, SceneObject
from bifocal.data.scenes.words import NUMBERS, OPPOSITE

_SIDES = {"left": 0, "right": 1}
LEVEL = 0.04  # centres at most this far apart are on no side of each other


class RationaleReader(PhraseReader):
    """Parses statements and questions, and looks for the things that they name in the order in which they are named."""

    def __init__(self, concepts: Iterable[Concept]) -> None:
        super().__init__(concepts)
        self._seen = self._seen_table()
        self._asked = self._asked_table()

    def seen(self, text: str, scenes: Sequence[Scene]) -> str:
        """ "two, one": what there is to see of what a statement names. Raises ``Unclear`` where it cannot be read."""
        return str(look_up(self._seen, statement_in(text), scenes))

    def asked_for(self, question: str, scenes: Sequence[Scene]) -> str:
        """ "two, one": what each picture has of what a question asks for, or each thing of what it compares.

        "" of a question that is answered without.
        """
        words = question.removesuffix("?")
        has_one = any(re.fullmatch(pattern, words) for pattern, _ in self._asked)
        return str(look_up(self._asked, words, scenes)) if has_one else ""

    def _asked_table(self) -> Table:
        many, the, there = self._how_many, self.the, self._there
        return [
            (r"how many (.+) (?:are there|do the pictures show) in all", lambda m, s: many(m[1], s)),
            (r"(?:in which picture is(?: there)?|which picture shows) (an? .+)",
             lambda m, s: ", ".join(there(m[1], scene) for scene in s)),
            (r"(?:are there|does the picture show) (?:more|as many) (.+) (?:than|as) (.+)",
             lambda m, s: f"{many(m[1], s)}, {many(m[2], s)}"),
            (r"is (the .+?) larger than (the .+)", lambda m, s: f"{the(m[1], s[0]).size}, {the(m[2], s[0]).size}"),
            (rf"is (the .+?) ({RELATION}) (the .+)",
             lambda m, s: self._side(the(m[1], s[0]), RELATIONS[m[2]], the(m[3], s[0]))),
            (OF_ONE_TILE, lambda m, s: f"{the(m[1] or m[3], s[0]).tile}, {the(m[2] or m[4], s[0]).tile}"),
        ]  # fmt: skip

    def _how_many(self, words: str, scenes: Sequence[Scene]) -> str:
        """Of "owls", "two owls" or "exactly one owl" in each picture."""
        bare = re.sub(r"^(exactly|at least|at most) ", "", words)
        phrase = self.several(bare) if bare in self.plural else self.numbered(bare)[1]
        return ", ".join(NUMBERS[sum(phrase.fits(t) for t in scene.objects)] for scene in scenes)

    def _there(self, words: str, scene: Scene) -> str:
        return "yes" if self.fitting(words, scene) else "no"

    @staticmethod
    def _look(thing: SceneObject, asked: str) -> str:
        """The attribute that ``asked`` is a value of."""
        if asked in ("small", "large"):
            return thing.size
        return thing.tilt if asked in ("upright", "tilted") else thing.tile or "none"

    def _side(self, one: SceneObject, relation: str, other: SceneObject) -> str:
        axis = 0 if relation in ("left", "right") else 1
        gap = one.centre[axis] - other.centre[axis]
        if abs(gap) <= LEVEL:
            return "level"
        if abs(gap) < SURE and (gap < 0) == (relation in ("left", "above")):
            raise Unclear(f"{one} and {other} are too level for {relation!r}.")
        return relation if (gap < 0) == (relation in ("left", "above")) else OPPOSITE[relation]

    def _all_of(self, noun: str, asked: str, scene: Scene) -> str:
        """The looks of all things of a kind, from left to right."""
        phrase = self.several(noun) if noun in self.plural else self.phrase(noun)
        things = sorted((t for t in scene.objects if phrase.fits(t)), key=lambda thing: thing.centre[0])
        return ", ".join(self._look(thing, asked) for thing in things)

    def _seen_table(self) -> Table:
        many, there, the, look = self._how_many, self._there, self.the, self._look
        looks = r"small|large|upright|tilted|on an? \w+ tile"
        side = "the (left|right) image"
        return [
            (r"there is no (.+)", lambda m, s: there(m[1], s[0])),
            (r"there is (an? .+) (?:and|or) (an? .+)", lambda m, s: f"{there(m[1], s[0])}, {there(m[2], s[0])}"),
            (r"there is (an? .+) but no (.+)", lambda m, s: f"{there(m[1], s[0])}, {there(m[2], s[0])}"),
            (r"there are (?:more|fewer|as many) (.+) (?:than|as) (.+)",
             lambda m, s: f"{many(m[1], s)}, {many(m[2], s)}"),
            (r"(?:there (?:is|are)|the picture shows) (.+?)(?: in all)?", lambda m, s: many(m[1], s)),
            (rf"(the .+?) is ({RELATION}) (the .+)",
             lambda m, s: self._side(the(m[1], s[0]), RELATIONS[m[2]], the(m[3], s[0]))),
            (r"(the .+) is (?:at the (?:top|bottom|left|right)(?: left| right)?|in the middle)",
             lambda m, s: cell_of(the(m[1], s[0]))),
            (rf"(?:every|no|exactly one of the) (.+) is ({looks})", lambda m, s: self._all_of(m[1], m[2], s[0])),
            (r"all the (.+) are on tiles of the same colour", lambda m, s: self._all_of(m[1], "tile", s[0])),
            (rf"(the .+) in {side} is ({looks})", lambda m, s: look(the(m[1], s[_SIDES[m[2]]]), m[3])),
            (rf"(the .+) is ({looks})", lambda m, s: look(the(m[1], s[0]), m[2])),
            (rf"(the .+) in {side} is (?:larger|smaller) than (the .+) in {side}",
             lambda m, s: f"{the(m[1], s[_SIDES[m[2]]]).size}, {the(m[3], s[_SIDES[m[4]]]).size}"),
            (r"(the .+) is (?:larger|smaller) than (the .+)",
             lambda m, s: f"{the(m[1], s[0]).size}, {the(m[2], s[0]).size}"),
            (r"(?:both images show|neither image shows|exactly one image shows|only the \w+ image shows) (an? .+)",
             lambda m, s: ", ".join(there(m[1], scene) for scene in s)),
            (rf"{side} has (exactly .+) and no (.+)",
             lambda m, s: f"{many(m[2], [s[_SIDES[m[1]]]])}, {there(m[3], s[_SIDES[m[1]]])}"),
            (rf"{side} (?:has|shows|contains) ((?:exactly|at least) .+)",
             lambda m, s: many(m[2], [s[_SIDES[m[1]]]])),
            (rf"{side} (?:contains|has|shows) (?:more|fewer|twice as many|three times as many) (.+) (?:than|as) {side}"
             r"(?: and at least .+ in all)?", lambda m, s: many(m[2], s)),
            (r"one image has more (.+) than the other", lambda m, s: many(m[1], s)),
            (r"both images have the same number of (.+)", lambda m, s: many(m[1], s)),
        ]  # fmt: skip
