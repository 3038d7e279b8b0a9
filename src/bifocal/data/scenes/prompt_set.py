"""Prompts to judge drawings by, in the manner of PartiPrompts (Yu et al. 2022): categories, challenges, exact truth.

The sentences are made by templates about the concepts of a world. Each comes with a true scene of it, so that whoever
is asked about a drawing can be asked about the truth too, and with the questions that tell whether a drawing has what
the prompt says.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from bifocal.data.sample import Message, Picture, Sample
from bifocal.data.scenes import questions
from bifocal.data.scenes.compose import World
from bifocal.data.scenes.facts import View
from bifocal.data.scenes.scene import SIZES, TILTS, Concept, Scene, Wanted
from bifocal.data.scenes.words import (
    CELL_PHRASES,
    CELLS,
    DIRECTION_PHRASES,
    DIRECTIONS,
    NUMBERS,
    ON_A_TILE,
    a,
    counted,
    join,
    look,
    the_look,
)

SPLIT = "prompts"
FRAMES = ("%s", "draw %s.", "a picture of %s", "make a picture of %s.")
_HOME, _KEY = "test", "prompt-"  # their scenes keep to the rules of the test split: none is in training
DENIALS = ("%s, but no %s", "%s and no %s")
Accepts = Callable[[View], bool]


@dataclass(frozen=True)
class Question:
    """What is asked about a drawing, and the words that must be in the answer."""

    kind: str  # count, colour, position, look, relation or negation
    words: str
    answer: str


@dataclass(frozen=True)
class Draft:
    """A noun phrase, the objects that it wants, what else must hold of a scene, and what is asked."""

    phrase: str
    wanted: tuple[Wanted, ...]
    asked: tuple[Question, ...] = ()
    accepts: Accepts = lambda view: True


def the(concept: Concept) -> str:
    return the_look(concept.name, None, None, None)


def is_at(name: str, cell: int) -> Accepts:
    """Whether the one object of a name is certainly in a cell of the 3x3 grid."""
    return lambda view: view.cell(view.members[name][0]) == cell


def all_of(conditions: Sequence[Accepts]) -> Accepts:
    return lambda view: all(condition(view) for condition in conditions)


class Prompter:
    """Draws the concepts of each prompt, every category in turn, and words it."""

    def __init__(self, world: World, rng: random_module.Random) -> None:
        self.world, self.rng = world, rng
        novel = {concept.name for concept in world.novel_concepts}
        self.by_category: dict[str, list[Concept]] = {}
        for concept in world.concepts:
            if concept.name not in novel:
                self.by_category.setdefault(concept.category, []).append(concept)
        self.turn = cycle(self.by_category)
        self.by_name = {concept.name: concept for concept in world.concepts}

    def some(
        self, count: int, fits: Callable[[Concept], bool] = lambda concept: True, known: Sequence[str] = ()
    ) -> list[Concept]:
        """Concepts of which no two, nor one with the ``known``, are a novel pair; the first is of the next category."""
        while True:
            first = [c for c in self.by_category[next(self.turn)] if fits(c)]
            if first:
                break
        chosen = [self.rng.choice(first)]
        others = [c for some in self.by_category.values() for c in some if fits(c)]
        while len(chosen) < count:
            concept = self.rng.choice(others)
            names = [*known, *(c.name for c in chosen)]
            pairs = {(min(name, concept.name), max(name, concept.name)) for name in names}
            if concept.name not in names and pairs.isdisjoint(self.world.novel_pairs):
                chosen.append(concept)
        return chosen

    # -- challenges --

    def simple(self) -> Draft:
        """ "an owl" """
        (one,) = self.some(1)
        return Draft(a(one), (Wanted(one.name),))

    def several(self) -> Draft:
        """ "an owl, a heart and a dog" """
        return _listed(self.some(2 + self.rng.randrange(2)))

    def count(self) -> Draft:
        """ "three owls", "two owls and three hearts" """
        if self.rng.random() < 0.6:
            (one,) = self.some(1)
            counts = {one: 2 + self.rng.randrange(3)}
        else:
            one, other = self.some(2)
            counts = {one: 2, other: 1 + self.rng.randrange(2)}
        phrase = join([counted(concept, number) for concept, number in counts.items()])
        # many large ones do not fit
        size = "small" if sum(counts.values()) > 3 else None
        return Draft(
            phrase, tuple(Wanted(c.name, size=size) for c, number in counts.items() for _ in range(number))
        )

    def colour(self) -> Draft:
        """ "an owl on a red tile", "an owl on a red tile and a heart on a blue tile" """
        chosen = self.some(1 + (self.rng.random() < 0.4))
        tiles = [self.rng.choice(self.world.tiles_of(concept)) for concept in chosen]
        phrases = [f"{a(c)} {ON_A_TILE[tile]}" for c, tile in zip(chosen, tiles)]
        return Draft(
            join(phrases),
            tuple(Wanted(c.name, tile=tile) for c, tile in zip(chosen, tiles)),
            tuple(self._of_tile(c, tile) for c, tile in zip(chosen, tiles)),
        )

    def position(self) -> Draft:
        """ "an owl at the top left", "an owl at the top left and a heart in the middle" """
        chosen = self.some(1 + (self.rng.random() < 0.4))
        cells = self.rng.sample(range(len(CELLS)), len(chosen))
        both = list(zip(chosen, cells))
        return Draft(
            join([f"{a(c)} {CELL_PHRASES[cell]}" for c, cell in both]),
            tuple(Wanted(c.name, size="small") for c in chosen),
            tuple(self._of_place(c, cell) for c, cell in both),
            all_of([is_at(c.name, cell) for c, cell in both]),
        )

    def size_and_tilt(self) -> Draft:
        """ "a small owl", "a large tilted owl" """
        (one,) = self.some(1, lambda concept: concept.can_tilt)
        size, tilt = self.rng.choice(SIZES), self.rng.choice((None, *TILTS))
        told = size if tilt is None else f"{size} {tilt}"
        question = Question("look", questions.SIZE[0] % the(one), told)
        wanted = Wanted(one.name, size=size, tilt=tilt)
        return Draft(look(one.name, one.article, size, tilt, None), (wanted,), (question,))

    def relation(self) -> Draft:
        """ "an owl left of a heart" """
        one, other = self.some(2)
        direction = self.rng.choice(DIRECTIONS)
        words = self.rng.choice(DIRECTION_PHRASES[direction])

        def holds(view: View) -> bool:
            first, second = view.members[one.name][0], view.members[other.name][0]
            return view.holds(first, second, direction)

        question = Question(
            "relation", questions.RELATION[0] % (DIRECTION_PHRASES[direction][0], the(other)), one.name
        )
        return Draft(
            f"{a(one)} {words} {a(other)}", (Wanted(one.name), Wanted(other.name)), (question,), holds
        )

    def unusual(self) -> Draft:
        """Two that are together in no training picture."""
        pair = self.rng.choice(sorted(self.world.novel_pairs))
        chosen = [self.by_name[name] for name in pair]
        self.rng.shuffle(chosen)
        return _listed(chosen)

    def negation(self) -> Draft:
        """ "an owl and a heart, but no dogs" """
        chosen = self.some(1 + self.rng.randrange(2))
        absent = self.some(2, known=[concept.name for concept in chosen])[1]
        while absent in chosen:
            absent = self.some(2, known=[concept.name for concept in chosen])[1]
        named = _listed(chosen)
        question = Question("negation", questions.EXISTS[0] % a(absent), "no")
        return Draft(self.rng.choice(DENIALS) % (named.phrase, absent.plural), named.wanted, (question,))

    def detailed(self) -> Draft:
        """ "a small owl on a red tile at the top left and a large tilted heart on a blue tile" """
        chosen = self.some(2, lambda concept: concept.can_tilt)
        cell = self.rng.randrange(len(CELLS))
        wanted, phrases, asked = [], [], []
        for concept in chosen:
            size, tilt = self.rng.choice(SIZES), self.rng.choice(TILTS)
            tile = self.rng.choice(self.world.tiles_of(concept))
            wanted.append(Wanted(concept.name, size, tilt, tile))
            phrases.append(look(concept.name, concept.article, size, tilt, tile))
            asked += [
                self._of_tile(concept, tile),
                Question("look", questions.SIZE[0] % the(concept), f"{size} {tilt}"),
            ]
        phrases[0] = f"{phrases[0]} {CELL_PHRASES[cell]}"
        asked.append(self._of_place(chosen[0], cell))
        return Draft(join(phrases), tuple(wanted), tuple(asked), is_at(chosen[0].name, cell))

    def _of_tile(self, concept: Concept, tile: str) -> Question:
        return Question("colour", questions.TILE[0] % the(concept), tile)

    def _of_place(self, concept: Concept, cell: int) -> Question:
        return Question("position", questions.WHERE[0] % the(concept), CELLS[cell])


def _listed(chosen: Sequence[Concept]) -> Draft:
    return Draft(join([a(c) for c in chosen]), tuple(Wanted(c.name) for c in chosen))


# What each challenge is called, how its prompts are made, and how many there are.
CHALLENGES: dict[str, tuple[Callable[[Prompter], Draft], int]] = {
    "simple": (Prompter.simple, 60),
    "several": (Prompter.several, 40),
    "count": (Prompter.count, 60),
    "colour": (Prompter.colour, 40),
    "position": (Prompter.position, 40),
    "size and tilt": (Prompter.size_and_tilt, 30),
    "relation": (Prompter.relation, 50),
    "unusual combination": (Prompter.unusual, 40),
    "negation": (Prompter.negation, 30),
    "detailed": (Prompter.detailed, 30),
}


def is_prompt(key: str) -> bool:
    """Whether a key names the true picture of a prompt."""
    return key.startswith(f"{_HOME}/{_KEY}")


class PromptSet:
    """420 prompts by challenge and category, the same for the same world, each with a true scene of it.

    A data set of the task text-to-image. Each sample is of two slices: its challenge, and the category of what it names
    first. Its facts are the ``objects`` with their counts and the ``questions``: {"kind", "question", "answer"}.
    ``count`` takes about as many of them, of every challenge in its share.
    """

    def __init__(self, world: World, count: int | None = None) -> None:
        self.world = world
        self.name, self.split, self.task = "scenes/prompts", SPLIT, "text-to-image"
        self.scenes: dict[str, Scene] = {}
        self.samples: list[Sample] = []
        total = sum(number for _, number in CHALLENGES.values())
        for challenge, (make, number) in CHALLENGES.items():
            prompter = Prompter(world, random_module.Random(f"prompts/{challenge}"))
            wanted = number if count is None else max(1, round(number * count / total))
            said: set[str] = set()
            for _ in range(50 * number):
                if len(said) == min(wanted, number):
                    break
                draft = make(prompter)
                if draft.phrase not in said:
                    said.add(draft.phrase)
                    frame = FRAMES[len(said) % len(FRAMES)]
                    self._add(challenge, len(said), frame % draft.phrase, draft)

    def __len__(self) -> int:
        return len(self.samples)

    def picture(self, key: str) -> np.ndarray:
        """(S, S, 3) uint8 RGB: the true picture of a prompt."""
        return self.world.render(self.scenes[key])

    def stamp(self, key: str) -> tuple[str, str]:
        """What changes when the picture does."""
        return self.world.fingerprint, key

    def mark(self, key: str) -> tuple[str, str]:
        """The same: a world is drawn alike on every machine."""
        return self.stamp(key)

    def _add(self, challenge: str, number: int, prompt: str, draft: Draft) -> None:
        identity = f"{challenge.replace(' ', '-')}-{number}"
        scene = self.world.arranged(
            _HOME, f"{_KEY}{identity}", draft.wanted, lambda made: draft.accepts(View(made))
        )
        self.scenes[scene.key] = scene
        objects: dict[str, int] = {}
        for each in draft.wanted:
            objects[each.name] = objects.get(each.name, 0) + 1
        concepts = {concept.name: concept for concept in self.world.concepts}
        asked = [
            Question("count", questions.COUNT[0] % concepts[name].plural, NUMBERS[often])
            for name, often in objects.items()
        ]
        facts = {
            "objects": objects,
            "slices": [challenge, concepts[draft.wanted[0].name].category],
            "questions": [
                {"kind": q.kind, "question": q.words, "answer": q.answer} for q in (*asked, *draft.asked)
            ],
        }
        messages = (Message("user", (prompt,)), Message("assistant", (Picture(0),)))
        self.samples.append(Sample(identity, self.task, challenge, (scene.key,), messages, (prompt,), facts))
