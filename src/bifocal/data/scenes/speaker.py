"""From scenes to samples: chooses what to ask about pictures, keeps answers even, and writes it as conversations."""

from __future__ import annotations

import random as random_module
import weakref
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from bifocal.config import UserError
from bifocal.data.prompts import DESCRIBE, RATIONALE
from bifocal.data.sample import Message, Part, Picture, Sample
from bifocal.data.scenes import captions, pair_statements, statements
from bifocal.data.scenes.balance import SHARES, Draft, Tally, acceptance
from bifocal.data.scenes.compose import World
from bifocal.data.scenes.expressions import FLAVOURS, every
from bifocal.data.scenes.facts import View
from bifocal.data.scenes.questions import MANY_KINDS, SINGLE_KINDS, WHAT_SINGLE
from bifocal.data.scenes.scene import Scene
from bifocal.data.scenes.words import Lexicon, Random, pick

TASKS = ("captioning", "vqa", "grounding", "reasoning", "zero-shot", "retrieval", "text-to-image")
# What may be said of a novel concept alone in a training picture: its name and looks, never a comparison or denial.
_NAMING_TASKS = ("captioning", "zero-shot", "retrieval", "text-to-image")
_NOVEL_SPLIT = "test-novel-concepts"
_PICTURE_PARTS: tuple[tuple[Part, ...], ...] = tuple(tuple(Picture(i) for i in range(n)) for n in range(4))
_TRIES = 12  # draws of one task before another task is chosen

Draw = Callable[[Sequence[View], Random, Lexicon], Draft | None]


def _of_one(draw: Callable[[View, Random, Lexicon], Draft | None]) -> Draw:
    """A kind of question about one picture as one about the first of several."""
    return lambda views, random, lexicon: draw(views[0], random, lexicon)


QUESTION_DRAWS: dict[str, Draw] = {
    **{name: _of_one(draw) for name, draw in SINGLE_KINDS.items()},
    **MANY_KINDS,
}
STATEMENT_DRAWS: dict[str, Draw] = {
    "single": _of_one(statements.about_one),
    "pair": pair_statements.about_pair,
}
EXPRESSION_DRAWS: dict[str, Draw] = {name: _of_one(draw) for name, draw in FLAVOURS.items()}
# Training alone also asks for all of a kind: a denial then costs as much as a box, and not one bit.
FINDING_DRAWS: dict[str, Draw] = {**EXPRESSION_DRAWS, "every": _of_one(every)}


def objects_of(view: View) -> dict[str, int]:
    """How many of each concept a picture holds."""
    return {name: len(indices) for name, indices in view.members.items()}


def _caption(view: View, random: Random, lexicon: Lexicon) -> Draft:
    text = captions.caption(view, random)
    return Draft("caption", pick(DESCRIBE, random), (text,), "", "", ())


def _list(view: View, random: Random, lexicon: Lexicon) -> Draft:
    return Draft("list", pick(captions.LIST, random), captions.listing(view, random), "", "", ())


def _place(view: View, random: Random, lexicon: Lexicon) -> Draft:
    return Draft("place", pick(captions.PLACES, random), (captions.places(view),), "", "", ())


CAPTION_DRAWS: dict[str, Draw] = {
    "caption": _of_one(_caption),
    "list": _of_one(_list),
    "place": _of_one(_place),
}
CAPTION_WEIGHTS = {"caption": 0.4, "list": 0.45, "place": 0.15}


class _Mix:
    """Some draws, each with how often to choose it."""

    def __init__(self, draws: Mapping[str, Draw], weights: Mapping[str, float]) -> None:
        self.named, self.weights = draws, weights
        self.draws = tuple(draws.values())
        self.cumulative = tuple(accumulate(weights[name] for name in draws))

    def favouring(self, kinds: Mapping[str, float]) -> _Mix:
        """The same draws, those of ``kinds`` so many times as often for each of the others."""
        return _Mix(
            self.named, {name: weight * kinds.get(name, 1.0) for name, weight in self.weights.items()}
        )

    def choose(self, random: Random) -> Draw:
        return self.draws[bisect(self.cumulative, random() * self.cumulative[-1])]


Mixes = dict[tuple[str, int], _Mix]


class Speaker:
    """All that can be said about the scenes of one world.

    At construction it draws some ten thousand questions about training scenes to measure how often each answer
    comes up; training samples are then thinned by those rates, so that within each group of questions no answer is
    much more frequent than ``balance.SHARES`` says. The rates depend on nothing but the world.
    """

    def __init__(self, world: World) -> None:
        self.lexicon = Lexicon(world.concepts, {concept.name for concept in world.novel_concepts})
        self._draws: Mixes = {}
        self._favoured: dict[tuple[tuple[str, float], ...], Mixes] = {}
        self._rates: dict[tuple[str, str, str], float] = {}
        self._calibrate(world)
        self._draws["captioning", 1] = _Mix(CAPTION_DRAWS, CAPTION_WEIGHTS)

    def _calibrate(self, world: World) -> None:
        random = random_module.Random("calibration").random
        singles = {name: draw for name, draw in QUESTION_DRAWS.items() if name in SINGLE_KINDS}
        plans: list[tuple[str, int, Mapping[str, Draw], int, int]] = [
            ("vqa", 1, singles, 600, 6),
            ("grounding", 1, FINDING_DRAWS, 600, 6),
            ("reasoning", 1, {"single": STATEMENT_DRAWS["single"]}, 600, 40),
            ("vqa", 2, MANY_KINDS, 400, 8),
            ("reasoning", 2, {"pair": STATEMENT_DRAWS["pair"]}, 400, 50),
            ("vqa", 3, MANY_KINDS, 200, 8),
        ]
        drawn: dict[tuple[str, int, str], list[Draft]] = {}
        views_of: dict[int, list[list[View]]] = {}
        asked: dict[tuple[str, int, str], int] = {}
        tally = Tally()
        for task, pictures, draws, scenes, repeats in plans:
            if pictures not in views_of:
                episodes = (world.scenes("train", index, pictures=pictures) for index in range(scenes))
                views_of[pictures] = [[View(scene) for scene in episode] for episode in episodes]
            for name, draw in draws.items():
                drafts = drawn.setdefault((task, pictures, name), [])
                for views in views_of[pictures]:
                    for _ in range(repeats):
                        draft = draw(views, random, self.lexicon)
                        if draft is not None:
                            tally.add(draft)
                            drafts.append(draft)
                asked[task, pictures, name] = len(views_of[pictures]) * repeats
        self._rates = acceptance(tally, SHARES)
        # Kinds that seldom fit or are often turned down are tried more often, so that all kinds are asked alike.
        for task, pictures, draws, _, _ in plans:
            weights = {}
            for name in draws:
                key = task, pictures, name
                kept = sum(self._rate(draft) for draft in drawn[key])
                weights[name] = 1 / max(kept / max(asked[key], 1), 0.06)
            self._draws[task, pictures] = _Mix(draws, weights)

    def _rate(self, draft: Draft) -> float:
        return self._rates.get((draft.slice, draft.group, draft.label), 1.0)

    def _mixes(self, kinds: Mapping[str, float]) -> Mixes:
        """What is asked how often, with the kinds favoured that the caller wants more often."""
        if not kinds:
            return self._draws
        unknown = kinds.keys() - {name for mix in self._draws.values() for name in mix.named}
        if unknown:
            known = ", ".join(dict.fromkeys(name for mix in self._draws.values() for name in mix.named))
            raise UserError(
                f'There is no kind "{min(unknown)}" of question about scenes; choose from {known}.'
            )
        key = tuple(sorted(kinds.items()))
        if key not in self._favoured:
            self._favoured[key] = {place: mix.favouring(kinds) for place, mix in self._draws.items()}
        return self._favoured[key]

    def draft(self, task: str, views: Sequence[View], random: Random, mixes: Mixes) -> Draft | None:
        """One random question of a task, thinned to even answers; None where this draw found nothing."""
        mix = mixes.get((task, len(views)))
        if mix is not None:
            draft = mix.choose(random)(views, random, self.lexicon)
            if draft is None:
                return None
            rate = self._rates.get((draft.slice, draft.group, draft.label))
            return draft if rate is None or random() < rate else None
        if task == "text-to-image":
            if len(views[0].objects) > 3 and random() < 0.8:
                return None
            prompt = captions.drawing_prompt(views[0], random)
            return Draft("all", prompt, _PICTURE_PARTS[1], "", "", ())
        if task == "zero-shot":
            if len(views[0].objects) != 1:
                return None
            name = views[0].names[0]
            return Draft("all", pick(WHAT_SINGLE, random), (name,), "", "", (name,))
        if task == "retrieval":
            text = captions.clip_text(views[0], random)
            return Draft("all", "", (text,), "", "", ())
        return None

    def sample(self, task: str, draft: Draft, views: Sequence[View], identity: str) -> Sample:
        """A draft as a conversation; pictures come first in the user's message, or are the answer of a drawing."""
        asked: tuple[Part, ...] = _PICTURE_PARTS[0 if task == "text-to-image" else len(views)]
        if draft.question:
            asked = (*asked, draft.question)
        facts: dict[str, Any] | None = None
        if task in ("captioning", "text-to-image"):
            facts = {"objects": objects_of(views[0])}
        elif draft.rationale:
            facts = {RATIONALE: draft.rationale}
        answer = draft.answer[0]
        if task == "text-to-image":
            references: tuple[str, ...] = (draft.question,)
        else:
            references = (answer,) if isinstance(answer, str) and len(draft.answer) == 1 else ()
        return Sample(
            id=identity,
            task=task,
            slice=draft.slice,
            pictures=tuple([view.scene.key for view in views]),
            messages=(Message("user", asked), Message("assistant", draft.answer)),
            references=references,
            facts=facts,
        )

    def samples(
        self,
        scenes: Sequence[Scene],
        rng: random_module.Random,
        tasks: Mapping[str, float] | Iterable[str],
        count: int,
        split: str,
        kinds: Mapping[str, float] | None = None,
    ) -> list[Sample]:
        """See ``samples_for``."""
        mixes = self._mixes(kinds or {})
        weights = dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1.0)
        unknown = [task for task in weights if task not in TASKS]
        if unknown:
            raise UserError(f'There is no task "{unknown[0]}" for scenes; choose from {", ".join(TASKS)}.')
        views = [View(scene) for scene in scenes]
        novel = self.lexicon.novel
        if split != _NOVEL_SPLIT and any(not novel.isdisjoint(view.members) for view in views):
            weights = {task: weight for task, weight in weights.items() if task in _NAMING_TASKS}
        if len(views) == 3:
            weights.pop("reasoning", None)
        names = tuple(weights)
        if not names:
            return []
        cumulative = tuple(accumulate(weights.values()))
        together = len(views) > 1
        identity = identity_of(scenes[0])
        random = rng.random
        found: list[Sample] = []
        asked: set[tuple[str, Part, int]] = set()
        task, tries = "", 0
        for _ in range(count * 2 * _TRIES):
            if not tries:  # a task is tried several times, so that those that seldom fit are not crowded out
                task = names[bisect(cumulative, random() * cumulative[-1])] if len(names) > 1 else names[0]
                tries = _TRIES
            tries -= 1
            which = -1
            these: Sequence[View] = views
            if together and task not in ("vqa", "reasoning"):
                which = int(random() * len(views))
                these = (views[which],)
            draft = self.draft(task, these, random, mixes)
            if draft is None:
                continue
            key = (draft.question, draft.answer[0], which)
            if key in asked:
                continue
            asked.add(key)
            tries = 0
            found.append(self.sample(task, draft, these, f"{identity}/{len(found)}"))
            if len(found) == count:
                break
        return found


def identity_of(scene: Scene) -> str:
    """What the ids of samples about a scene's episode begin with: "train/17", "test/4/single"."""
    place, _, slot = scene.key.rpartition("/")
    return place if slot.isdecimal() else scene.key


_SPEAKERS: weakref.WeakKeyDictionary[World, Speaker] = weakref.WeakKeyDictionary()


def speaker_of(world: World) -> Speaker:
    """The speaker of a world, made at first use (about a second) and kept as long as the world."""
    speaker = _SPEAKERS.get(world)
    if speaker is None:
        speaker = _SPEAKERS[world] = Speaker(world)
    return speaker
