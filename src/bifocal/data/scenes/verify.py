"""Reads the scenes' language back and recomputes what it says from boxes and looks alone.

Nothing here calls what writes the language: the words are parsed anew, and every answer, box and truth value follows
from the parsed words and the scene. Tests hold the two against each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bifocal.data.prompts import RATIONALE
from bifocal.data.sample import Box, Sample
from bifocal.data.scenes.reading import (
    NUMBER_OF,
    OF_ONE_TILE,
    RELATION,
    RELATIONS,
    SURELY_NOT,
    Phrase,
    Table,
    Unclear,
    cell_of,
    cell_of_words,
    look_up,
    not_said,
    only,
    side_holds,
    statement_in,
)
from bifocal.data.scenes.scene import Concept, Scene, SceneObject
from bifocal.data.scenes.verify_rationales import RationaleReader
from bifocal.data.scenes.words import NUMBERS, ORDINALS


def sized(one: SceneObject, kind: str, two: SceneObject) -> bool:
    """Whether the first is "larger" or "smaller"; two of one size may differ by what they are painted at."""
    if one.size == two.size:
        raise Unclear(f"Which of two {one.size} things is {kind} is not said.")
    return (one.size == "large") == (kind == "larger")


class Reader(RationaleReader):
    """Parses the whole language for one set of concepts: questions, statements, captions and lists."""

    def __init__(self, concepts: Iterable[Concept]) -> None:
        super().__init__(concepts)
        self._questions = self._question_table()
        self._statements = self._statement_table()

    # -- questions -----------------------------------------------------------------------------------------------

    def answer(self, question: str, scenes: Sequence[Scene]) -> str:
        """The answer to a question about the pictures. Raises ``Unclear`` where it has none, or several."""
        return look_up(self._questions, question.removesuffix("?"), scenes)

    def _question_table(self) -> Table:
        count, fitting, the = self._count, self.fitting, self.the

        def yes(value: bool) -> str:
            return "yes" if value else "no"

        def pointed(words: str, scene: Scene) -> SceneObject:
            """The thing that is "on the red tile", "small", "at the top", "highest", "left of the owl"."""
            things = scene.objects
            if match := re.fullmatch(r"on the (\w+) tile", words):
                return only([thing for thing in things if thing.tile == match[1]], words)
            if match := re.fullmatch(rf"({RELATION}) (the .+)", words):
                anchor, relation = the(match[2], scene), RELATIONS[match[1]]
                return only([t for t in things if t is not anchor and side_holds(t, anchor, relation)], words)
            if words.startswith(("at the", "in the")):
                return only(self.in_cell(things, cell_of_words(words)), words)
            ends = {"furthest to the left": 0, "furthest to the right": 0, "highest": 1, "lowest": 1}
            if words in ends:
                axis = ends[words]
                backwards = words in ("furthest to the right", "lowest")
                order = sorted(things, key=lambda thing: thing.centre[axis], reverse=backwards)
                if abs(order[0].centre[axis] - order[1].centre[axis]) < SURELY_NOT:
                    raise Unclear(f"{words!r} does not tell two objects apart.")
                return order[0]
            words = (
                words.removeprefix("the ").removesuffix(" thing").removesuffix(" one").replace(" and ", " ")
            )
            return the(f"the {words} thing", scene)

        def which(words: str, scenes: Sequence[Scene]) -> str:
            held = [bool(fitting(words, scene)) for scene in scenes]
            if sum(held) == 1:
                return ORDINALS[held.index(True)]
            if not any(held):
                return "neither" if len(held) == 2 else "none"
            if all(held) and len(held) == 2:
                return "both"
            raise Unclear(f"{words!r} is in several pictures but not in all.")

        def in_all(scenes: Sequence[Scene]) -> str:
            names = [{thing.concept.name for thing in scene.objects} for scene in scenes]
            common = set.intersection(*names)
            if len(common) != 1:
                raise Unclear(f"{len(common)} things are in all pictures.")
            return common.pop()

        def compare(one: str, relation: str, two: str, scene: Scene) -> str:
            if relation == "larger than":
                return yes(sized(the(one, scene), "larger", the(two, scene)))
            return yes(side_holds(the(one, scene), the(two, scene), RELATIONS[relation]))

        return [
            (r"(?:what is this|what is the only thing here|which thing is this)",
             lambda m, s: only(s[0].objects, "this").concept.name),
            (r"what (?:is in|do) both pictures(?: show)?|which thing do both pictures show",
             lambda m, s: in_all(s) if len(s) == 2 else not_said(m)),
            (r"what is in all three pictures|which thing do all three pictures show",
             lambda m, s: in_all(s) if len(s) == 3 else not_said(m)),
            (r"(?:how many|what is the number of) (.+?)(?: are there| does the picture show)?",
             lambda m, s: NUMBERS[count(self.several(m[1]), s[0])] if len(s) == 1 else not_said(m)),
            (r"how many (.+) (?:are there|do the pictures show) in all",
             lambda m, s: NUMBERS[sum(count(self.several(m[1]), scene) for scene in s)]),
            (r"how many (.+) (?:are in|does) the (\w+) picture(?: show)?",
             lambda m, s: NUMBERS[count(self.several(m[1]), s[ORDINALS.index(m[2])])]),
            (r"(?:is there|does the picture show) (an? .+?)(?: in the picture)?",
             lambda m, s: yes(bool(fitting(m[1], s[0])))),
            (r"(?:where|where in the picture|in which part of the picture) is (the .+)",
             lambda m, s: cell_of(the(m[1], s[0]))),
            (r"(?:which size and tilt does|what are the size and the tilt of) (the .+?)(?: have)?",
             lambda m, s: "{0.size} {0.tilt}".format(the(m[1], s[0]))),
            (r"(?:what colour of tile|which tile) is (the .+) on|what colour is the tile behind (the .+)",
             lambda m, s: the(m[1] or m[2], s[0]).tile or "none"),
            (r"(?:what|which) kind of thing is (.+)", lambda m, s: pointed(m[1], s[0]).concept.category),
            (r"(?:are there|does the picture show) more (.+) than (.+)",
             lambda m, s: yes(count(self.several(m[1]), s[0]) > count(self.several(m[2]), s[0]))),
            (r"(?:are there|does the picture show) as many (.+) as (.+)",
             lambda m, s: yes(count(self.several(m[1]), s[0]) == count(self.several(m[2]), s[0]))),
            (rf"is (the .+?) ({RELATION}|larger than) (the .+)", lambda m, s: compare(m[1], m[2], m[3], s[0])),
            (OF_ONE_TILE,
             lambda m, s: yes(the(m[1] or m[3], s[0]).tile == the(m[2] or m[4], s[0]).tile)),
            (r"(?:in which picture is(?: there)?|which picture shows) (an? .+)", lambda m, s: which(m[1], s)),
            (r"(?:what is|which thing is|what do you see) (.+)", lambda m, s: pointed(m[1], s[0]).concept.name),
        ]  # fmt: skip

    @staticmethod
    def _count(phrase: Phrase, scene: Scene) -> int:
        return sum(phrase.fits(thing) for thing in scene.objects)

    # -- statements ----------------------------------------------------------------------------------------------

    def truth(self, text: str, scenes: Sequence[Scene]) -> bool:
        """Whether a statement (with the words that ask for its truth) is true of one picture or a pair."""
        return look_up(self._statements, statement_in(text), scenes)

    def _statement_table(self) -> Table:
        count, fitting, the = self._count, self.fitting, self.the
        sides = {"left": 0, "right": 1}
        bounds: dict[str, Callable[[int, int], bool]] = {
            "at least": lambda real, said: real >= said,
            "at most": lambda real, said: real <= said,
            "exactly": lambda real, said: real == said,
        }

        def counts(words: str, scenes: Sequence[Scene]) -> list[int]:
            phrase = self.several(words)
            return [count(phrase, scene) for scene in scenes]

        def bounded(bound: str, words: str, scenes: Sequence[Scene]) -> bool:
            said, phrase = self.numbered(words)
            return bounds[bound](sum(count(phrase, scene) for scene in scenes), said)

        def has(value: str, thing: SceneObject) -> bool:
            if value in ("upright", "tilted") and not thing.concept.can_tilt:
                raise Unclear(f"The tilt of {thing.concept.name} cannot be seen.")
            if match := re.fullmatch(r"on an? (\w+) tile", value):
                return thing.tile == match[1]
            return value in (thing.size, thing.tilt)

        def placed(words: str, place: str, scene: Scene) -> bool:
            cell, real = cell_of_words(place), cell_of(the(words, scene))
            if cell != real and cell in ("left", "right", "top", "bottom") and cell in real.split():
                raise Unclear(f"{place!r} may or may not be said of {real!r}.")
            return cell == real

        def of_them(quantity: str, plural: str, value: str, scene: Scene) -> bool:
            phrase = (
                self.several(plural) if plural in self.plural and quantity == "exactly one of the" else None
            )
            things = [t for t in scene.objects if (phrase or self.phrase(plural)).fits(t)]
            if len(things) < 2:
                raise Unclear(f"{quantity!r} of {len(things)} objects.")
            having = sum(has(value, thing) for thing in things)
            return having == {"every": len(things), "no": 0, "exactly one of the": 1}[quantity]

        def same_tiles(words: str, scene: Scene) -> bool:
            tiles = [thing.tile for thing in scene.objects if self.several(words).fits(thing)]
            return len(set(tiles)) == 1 and None not in tiles

        look = r"small|large|upright|tilted|on an? \w+ tile"
        place = "at the (?:top|bottom|left|right)(?: left| right)?|in the middle"
        return [
            (r"there (?:is|are) exactly (.+?)( in all)?", lambda m, s: bounded("exactly", m[1], s)),
            (r"there (?:is|are) (at least|at most) (.+?)( in all)?", lambda m, s: bounded(m[1], m[2], s)),
            (r"there (?:is|are) (\w+ things?) in all", lambda m, s: bounded("exactly", m[1], s)),
            (r"the picture shows exactly (.+)", lambda m, s: bounded("exactly", m[1], s)),
            (r"there is no (.+)", lambda m, s: not fitting(m[1], s[0])),
            (r"there is (an? .+) and (an? .+)", lambda m, s: all(fitting(m[i], s[0]) for i in (1, 2))),
            (r"there is (an? .+) or (an? .+)", lambda m, s: any(fitting(m[i], s[0]) for i in (1, 2))),
            (r"there is (an? .+) but no (.+)", lambda m, s: bool(fitting(m[1], s[0])) and not fitting(m[2], s[0])),
            (r"there are more (.+) than (.+)", lambda m, s: counts(m[1], s) > counts(m[2], s)),
            (r"there are fewer (.+) than (.+)", lambda m, s: counts(m[1], s) < counts(m[2], s)),
            (r"there are as many (.+) as (.+)", lambda m, s: counts(m[1], s) == counts(m[2], s)),
            (rf"(the .+?) is ({RELATION}) (the .+)",
             lambda m, s: side_holds(the(m[1], s[0]), the(m[3], s[0]), RELATIONS[m[2]])),
            (rf"(the .+) is ({place})", lambda m, s: placed(m[1], m[2], s[0])),
            (rf"(every|no|exactly one of the) (.+) is ({look})", lambda m, s: of_them(m[1], m[2], m[3], s[0])),
            (r"all the (.+) are on tiles of the same colour", lambda m, s: same_tiles(m[1], s[0])),
            (rf"(the .+) in the (left|right) image is ({look})",
             lambda m, s: has(m[3], the(m[1], s[sides[m[2]]]))),
            (rf"(the .+) is ({look})", lambda m, s: has(m[2], the(m[1], s[0])) if len(s) == 1 else not_said(m)),
            (r"(the .+) in the (left|right) image is (larger|smaller) than (the .+) in the (left|right) image",
             lambda m, s: sized(the(m[1], s[sides[m[2]]]), m[3], the(m[4], s[sides[m[5]]]))),
            (r"(the .+) is (larger|smaller) than (the .+)",
             lambda m, s: sized(the(m[1], s[0]), m[2], the(m[3], s[0]))),
            (r"both images show (an? .+)", lambda m, s: all(fitting(m[1], scene) for scene in s)),
            (r"neither image shows (an? .+)", lambda m, s: not any(fitting(m[1], scene) for scene in s)),
            (r"exactly one image shows (an? .+)", lambda m, s: sum(bool(fitting(m[1], scene)) for scene in s) == 1),
            (r"only the (left|right) image shows (an? .+)",
             lambda m, s: [bool(fitting(m[2], scene)) for scene in s] == [m[1] == "left", m[1] == "right"]),
            (r"the (left|right) image has exactly (.+) and no (.+)",
             lambda m, s: bounded("exactly", m[2], [s[sides[m[1]]]]) and not fitting(m[3], s[sides[m[1]]])),
            (r"the (left|right) image (?:has|shows|contains) (exactly|at least) (.+)",
             lambda m, s: bounded(m[2], m[3], [s[sides[m[1]]]])),
            (r"the (left|right) image contains (twice|three times) as many (.+) as the (left|right) image"
             r"(?: and at least (.+) in all)?",
             lambda m, s: counts(m[3], s)[sides[m[1]]]
             == {"twice": 2, "three times": 3}[m[2]] * counts(m[3], s)[sides[m[4]]]
             and (m[5] is None or bounded("at least", m[5], s))),
            (r"the (left|right) image (?:has|shows) more (.+) than the (left|right) image",
             lambda m, s: counts(m[2], s)[sides[m[1]]] > counts(m[2], s)[sides[m[3]]]),
            (r"the (left|right) image has fewer (.+) than the (left|right) image",
             lambda m, s: counts(m[2], s)[sides[m[1]]] < counts(m[2], s)[sides[m[3]]]),
            (r"one image has more (.+) than the other", lambda m, s: len(set(counts(m[1], s))) == 2),
            (r"both images have the same number of (.+)", lambda m, s: len(set(counts(m[1], s))) == 1),
        ]  # fmt: skip

    # -- captions ------------------------------------------------------------------------------------------------

    def caption_is_true(self, text: str, scene: Scene) -> None:
        """Raises ``Unclear`` unless every sentence of a caption of ours holds and the first names every object."""
        first, *others = [sentence for sentence in re.split(r"\.\s*", text) if sentence]
        first = re.sub(rf" on an? {scene.background} background$", "", first)
        if match := re.fullmatch(r"there (is|are) (.+)", first):
            if (match[1] == "is") != match[2].startswith(("a ", "an ")):
                raise Unclear(f"{match[1]!r} before {match[2]!r}.")
            first = match[2]
        first = re.sub(r"^(the picture shows|this is a picture of) ", "", first)
        self.enumeration_is_true(first, scene)
        for sentence in others:
            match = re.fullmatch(rf"the (.+) (is|are) ({RELATION}) the (.+)", sentence)
            if match is None:
                if not self.truth(sentence, [scene]):
                    raise Unclear(f"{sentence!r} is false.")
                continue
            subject = (self.singular if match[2] == "is" else self.plural)[match[1]]
            groups = [[thing for thing in scene.objects if subject.fits(thing)]]
            for noun in (self.singular, self.plural):
                things = [thing for thing in scene.objects if match[4] in noun and noun[match[4]].fits(thing)]
                if things and (len(things) == 1) == (noun is self.singular):
                    groups.append(things)
            if len(groups) != 2 or (len(groups[0]) == 1) != (match[2] == "is"):
                raise Unclear(f"{sentence!r} has a wrong number.")
            relation = RELATIONS[match[3]]
            if not all(side_holds(one, two, relation) for one in groups[0] for two in groups[1]):
                raise Unclear(f"{sentence!r} is false.")

    def enumeration_is_true(self, words: str, scene: Scene) -> None:
        """Raises ``Unclear`` unless "an owl on a red tile, two small hearts and a key" names exactly the objects."""
        left = list(scene.objects)
        told: list[tuple[int, Phrase]] = []
        for part in re.split(r", | and (?=an? |\w+ \w+)", words):
            number, _, rest = part.partition(" ")
            if number in ("a", "an"):
                told.append((1, self.phrase(part)))
                continue
            size, _, noun = rest.partition(" ")
            size, noun = (size, noun) if size in ("small", "large") and noun in self.plural else ("", rest)
            base = self.several(noun)
            told.append((NUMBER_OF[number], Phrase(base.name, base.category, size)))
        for number, phrase in told:
            meant = [thing for thing in left if phrase.fits(thing)]
            same = [thing for thing in left if phrase.name == thing.concept.name]
            if len(meant) != number or len(same) != number:
                raise Unclear(f"{words!r}: {len(meant)} objects fit where {number} are told.")
            left = [thing for thing in left if thing not in meant]
        if left:
            raise Unclear(f"{words!r} leaves out {len(left)} objects.")

    def places_are_true(self, text: str, scene: Scene) -> None:
        """Raises ``Unclear`` unless "an owl at the top left, a heart in the middle." is right and complete."""
        told: Counter[tuple[str, str]] = Counter()
        for part in text.rstrip(".").split(", "):
            match = re.fullmatch(r"(an? .+) (at the .+|in the middle)", part)
            if match is None:
                raise Unclear(f"{part!r} tells no place.")
            told[self.phrase(match[1]).name, cell_of_words(match[2])] += 1
        if told != Counter((thing.concept.name, cell_of(thing)) for thing in scene.objects):
            raise Unclear(f"{text!r} is wrong.")

    def boxes_are_all(self, question: str, answer: Sequence[Any], scene: Scene) -> None:
        """Raises ``Unclear`` unless "find every owl." is answered with its boxes from left to right, or "none"."""
        match = re.fullmatch(r"(?:find every|box every|find each) (.+)\.", question)
        if match is None:
            raise Unclear(f"{question!r} cannot be read.")
        noun = self.singular[match[1]]
        things = sorted((t for t in scene.objects if noun.fits(t)), key=lambda thing: thing.centre[0])
        right: list[Any] = [thing.box for thing in things]
        if list(answer) != (right or ["none"]):
            raise Unclear(f"{question!r}: {answer} was given where {len(things)} objects fit.")

    def list_is_true(self, parts: Sequence[Any], scene: Scene) -> None:
        """Raises ``Unclear`` unless words and boxes go together, every object once, from left to right."""
        order = sorted(scene.objects, key=lambda thing: thing.centre[0])
        for words, box, thing in zip(parts[::2], parts[1::2], order, strict=True):
            if box != thing.box or not self.phrase(words).fits(thing):
                raise Unclear(f"{words!r} is not at {box}.")


def check(sample: Sample, scenes: Sequence[Scene], reader: Reader) -> None:
    """Raises ``Unclear`` unless the sample's answer is what the words and the boxes of its pictures give."""
    question = sample.messages[0].parts[-1]
    answer = sample.messages[-1].parts
    if sample.task == "captioning":
        if sample.slice == "list":
            reader.list_is_true(answer, scenes[0])
        elif sample.slice == "place":
            reader.places_are_true(str(answer[0]), scenes[0])
        else:
            for text in {str(answer[0]), *sample.references}:
                reader.caption_is_true(text, scenes[0])
        return
    if sample.slice == "every":
        return reader.boxes_are_all(str(question), answer, scenes[0])
    if sample.task == "grounding":
        meant = only(reader.expression(str(question), scenes[0]), str(question))
        right: Any = meant.box
        _has_distractor(meant, scenes[0])
    elif sample.task == "vqa":
        right = reader.answer(str(question), scenes)
        _says_why(sample, reader.asked_for(str(question), scenes))
    elif sample.task == "reasoning":
        right = "true" if reader.truth(str(question), scenes) else "false"
        _says_why(sample, reader.seen(str(question), scenes))
    elif sample.task == "zero-shot":
        right = only(scenes[0].objects, "this").concept.name
    elif sample.task == "text-to-image":
        words = re.sub(r"^(draw|make) (a picture of )?|\.$", "", str(question))
        return reader.enumeration_is_true(words, scenes[0])
    else:
        raise Unclear(f"Samples of {sample.task} are not checked here.")
    if answer != (right,) or (not isinstance(right, Box) and sample.references != (right,)):
        raise Unclear(f"{question!r}: {answer} was given where {right!r} is right.")


def _says_why(sample: Sample, seen: str) -> None:
    told = (sample.facts or {}).get(RATIONALE, "")
    if told != seen:
        raise Unclear(f"{sample.question!r}: {told!r} was to be seen where it is {seen!r}.")


def _has_distractor(meant: SceneObject, scene: Scene) -> None:
    category = meant.concept.category
    if sum(thing.concept.category == category for thing in scene.objects) < 2:
        raise Unclear(f"{meant.concept.name} has nothing to be mistaken for.")
