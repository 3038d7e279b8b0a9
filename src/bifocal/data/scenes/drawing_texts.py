"""What a picture is drawn from in training: captions and prompts of every kind, true of its scene."""

from __future__ import annotations

import random as random_module

from bifocal.data.scenes import captions
from bifocal.data.scenes.compose import World
from bifocal.data.scenes.facts import View
from bifocal.data.scenes.scene import Concept, Scene
from bifocal.data.scenes.words import Lexicon, Random, join, pick

DENIALS = ("%s, but no %s", "%s and no %s", "%s with no %s")
_DENIED = 0.12  # of the texts that only name things also say what is not there
_ASKED = 0.5  # of them begin with "draw"


class DrawingTexts:
    """Texts about the scenes of one world, for a model that draws.

    A text names at least every object. Many tell looks and places of all of them: each such word is a bit that the
    picture answers to. What is said not to be there is never a novel concept, nor half of a novel pair.
    """

    def __init__(self, world: World) -> None:
        self.novel_pairs = world.novel_pairs
        self.lexicon = Lexicon(world.concepts, {concept.name for concept in world.novel_concepts})

    def text(self, scene: Scene, rng: random_module.Random) -> str:
        """One text about a scene; a pure function of the scene and the state of ``rng``."""
        view, random = View(scene), rng.random
        way = random()
        if way < 0.25:
            return captions.caption(view, random)
        if way < 0.35:
            return captions.places(view)
        if way < 0.5:
            return captions.drawing_prompt(view, random)
        phrase = described(view, random) if way < 0.7 else captions.clip_text(view, random, random())
        if random() < _DENIED:
            absent = self.absent(view, random)
            if absent is not None:
                words = absent.plural if random() < 0.5 else absent.name
                phrase = pick(DENIALS, random) % (phrase, words)
        return f"draw {phrase}." if random() < _ASKED else phrase

    def absent(self, view: View, random: Random) -> Concept | None:
        """Something that the picture lacks and that may be denied of it."""
        like = self.lexicon.by_name[view.pick_name(random)]
        if not self.lexicon.novel.isdisjoint(view.members):
            return None
        for _ in range(4):
            concept = self.lexicon.absent(view.members, like, random)
            if concept is not None and not any(
                (min(name, concept.name), max(name, concept.name)) in self.novel_pairs
                for name in view.members
            ):
                return concept
        return None


def described(view: View, random: Random) -> str:
    """ "a small owl at the top left, a tilted heart on a red tile", each object by itself, from left to right."""
    order = sorted(range(len(view.objects)), key=view.xs.__getitem__)
    return join([captions.region_text(view, index, random) for index in order])
