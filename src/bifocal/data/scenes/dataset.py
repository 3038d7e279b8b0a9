"""What training and evaluation take from the scenes: samples as they are needed, and fixed, balanced sets."""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bifocal.config import UserError
from bifocal.data.prompts import DESCRIBE
from bifocal.data.sample import Box, Picture, Sample
from bifocal.data.scenes import captions
from bifocal.data.scenes.balance import LOOSE_SHARE, SHARES, Draft, Tally
from bifocal.data.scenes.compose import World
from bifocal.data.scenes.facts import View
from bifocal.data.scenes.questions import MANY_KINDS, SINGLE_KINDS, WHAT_SINGLE
from bifocal.data.scenes.scene import Scene
from bifocal.data.scenes.speaker import (
    EXPRESSION_DRAWS,
    QUESTION_DRAWS,
    STATEMENT_DRAWS,
    TASKS,
    Draw,
    identity_of,
    objects_of,
    speaker_of,
)

logger = logging.getLogger(__name__)

_NOVEL_SPLIT = "test-novel-concepts"
_REFERENCES = 5  # captions a picture in an evaluation set
_KEPT_PICTURES = 64
_DRAWS = 12  # questions drawn about one picture, of which an evaluation set takes the one it needs most
_NOVEL_PATIENCE = 30  # scenes looked through before a question need not turn on a novel concept
_STRICT_PATIENCE = 300  # scenes looked through before an answer may take ``LOOSE_SHARE``
_PATIENCE = 3000  # scenes looked through before a kind of question is given up


def samples_for(
    scenes: Sequence[Scene],
    rng: random_module.Random,
    *,
    world: World,
    tasks: Mapping[str, float] | Iterable[str],
    count: int,
    split: str,
    kinds: Mapping[str, float] | None = None,
) -> list[Sample]:
    """``count`` varied samples about the one to three scenes of an episode, for training.

    ``tasks`` are names of ``TASKS``, with weights where it is a mapping; ``kinds`` says of some kinds of question,
    expression or statement ("exists", "every", "pair") how many times as often as otherwise they are to come.
    Questions and statements are about all of the pictures together; the other tasks about one of them. Answers are
    kept about even (see ``Speaker``). Fewer than ``count`` come back where the pictures do not give more: a lone
    novel concept in a training split is only named and described, no statement is made about three pictures, and a
    question is never asked twice. Raises ``UserError`` for an unknown task or kind.
    """
    return speaker_of(world).samples(scenes, rng, tasks, count, split, kinds)


def clip_caption(scene: Scene, rng: random_module.Random) -> str:
    """A sentence about a scene for contrastive training: "a small owl on a red tile", "an owl left of two hearts"."""
    return captions.clip_text(View(scene), rng.random)


def clip_regions(scene: Scene, rng: random_module.Random) -> list[tuple[Box, str]]:
    """The box of every object with a phrase for it: "a small owl on a red tile", "an upright owl at the top"."""
    view = View(scene)
    return [
        (view.objects[i].box, captions.region_text(view, i, rng.random)) for i in range(len(view.objects))
    ]


def training_texts(world: World, count: int, seed: int = 0) -> list[str]:
    """The names of all concepts and ``count`` questions, answers and captions, for training a text tokenizer."""
    rng = random_module.Random(f"{seed}/texts")
    speaker = speaker_of(world)
    texts: list[str] = []
    for concept in world.concepts:
        texts += [f"{concept.article} {concept.name}", concept.plural]
    goal = len(texts) + count
    index = 0
    while len(texts) < goal:
        scenes = world.scenes("train", index)
        index += 1
        texts.append(clip_caption(scenes[0], rng))
        for sample in speaker.samples(scenes, rng, TASKS, 8, "train"):
            for message in sample.messages:
                texts += [part for part in message.parts if isinstance(part, str)]
    return texts[:goal]


class SceneDataset:
    """A fixed set of ``count`` samples of one task on one split, the same for the same arguments and world.

    Each sample is about a scene of its own. Questions are of all kinds in equal number and keep every answer under
    the share that ``balance.SHARES`` gives it (yes and no at half); statements are half about one picture and half
    about two, true and false alike; expressions are of the three flavours alike. In ``test-novel-concepts``
    questions turn on a novel concept wherever the answers stay even that way. ``seed`` picks other scenes of the
    split.

    A world of very few objects may lack a kind of question; then a warning says so and the other kinds fill the set.

    Attributes: ``name`` ("scenes/<task>"), ``split``, ``task``, ``world``, ``samples``. Raises ``UserError`` for an
    unknown task or where the world has no such samples.
    """

    def __init__(self, world: World, split: str, task: str, count: int, seed: int = 0) -> None:
        if task not in TASKS:
            raise UserError(f'There is no task "{task}" for scenes; choose from {", ".join(TASKS)}.')
        self.world = world
        self.split = split
        self.name = f"scenes/{task}"
        self.task = task
        self._rng = random_module.Random(f"{seed}/{split}/{task}")
        # Tasks share their pictures; other seeds have others.
        self._start = seed * 1_000_003
        self._pictures: dict[str, np.ndarray] = {}
        self.samples: list[Sample]
        if task == "vqa":
            self.samples = self._balanced(QUESTION_DRAWS, count)
        elif task == "reasoning":
            self.samples = self._balanced(STATEMENT_DRAWS, count)
        elif task == "grounding":
            self.samples = self._balanced(EXPRESSION_DRAWS, count)
        else:
            self.samples = self._plain(count)

    def __len__(self) -> int:
        return len(self.samples)

    def picture(self, key: str) -> np.ndarray:
        """(S, S, 3) uint8 RGB, rendered when first asked for; the latest few are kept, so do not write into it."""
        picture = self._pictures.get(key)
        if picture is None:
            if len(self._pictures) >= _KEPT_PICTURES:
                del self._pictures[next(iter(self._pictures))]
            picture = self._pictures[key] = self.world.picture(key)
        return picture

    def stamp(self, key: str) -> tuple[str, str]:
        """What changes when the picture does: the key says all of it in one world."""
        return self.world.fingerprint, key

    def mark(self, key: str) -> tuple[str, str]:
        """The same: a world is drawn alike on every machine."""
        return self.stamp(key)

    def _balanced(self, draws: Mapping[str, Draw], count: int) -> list[Sample]:
        """Samples of every kind in turn, each the draw whose answer is needed most, or none if all are too frequent."""
        kinds = list(draws)
        tally = Tally()
        found: list[Sample] = []
        index = self._start
        wants_novel = self.split == _NOVEL_SPLIT
        turn = 0
        while len(found) < count:
            kind = kinds[turn % len(kinds)]
            pictures = 1 if kind in SINGLE_KINDS or kind in EXPRESSION_DRAWS or kind == "single" else 2
            if kind in MANY_KINDS and turn // len(kinds) % 3 == 2:
                pictures = 3
            turn += 1
            for tries in range(_PATIENCE):
                views = [View(scene) for scene in self.world.scenes(self.split, index, pictures=pictures)]
                index += 1
                share = self._share(kind, strict=tries < _STRICT_PATIENCE)
                novel = wants_novel and tries < _NOVEL_PATIENCE
                draft = self._best(draws[kind], views, tally, share, novel)
                if draft is not None:
                    tally.add(draft)
                    identity = f"{identity_of(views[0].scene)}/0"
                    found.append(speaker_of(self.world).sample(self.task, draft, views, identity))
                    break
            else:
                logger.warning("The split %s gives no further question of the kind %s.", self.split, kind)
                kinds.remove(kind)
                if not kinds:
                    raise UserError(
                        f"The split {self.split} has only {len(found)} balanced samples of {self.task}."
                    )
        return found

    def _best(
        self, draw: Draw, views: Sequence[View], tally: Tally, share: float, novel: bool
    ) -> Draft | None:
        """Of some random questions about the pictures the one whose answer is needed most; None if none is allowed."""
        lexicon = speaker_of(self.world).lexicon
        random = self._rng.random
        best: Draft | None = None
        for _ in range(_DRAWS):
            draft = draw(views, random, lexicon)
            if draft is None or (novel and lexicon.novel.isdisjoint(draft.about)):
                continue
            if not tally.allows(draft, share):
                continue
            if best is None or tally.load(draft) < tally.load(best):
                best = draft
        return best

    def _share(self, kind: str, strict: bool) -> float:
        """The largest share of an answer; looser where a world of few objects or concepts cannot keep to it."""
        share = SHARES.get(kind, 1.0)
        if self.split == _NOVEL_SPLIT and share < 0.1:  # the answers are the few novel names
            share = max(share, 1.5 / len(self.world.novel_concepts))
        return share if strict else max(share, LOOSE_SHARE)

    def _plain(self, count: int) -> list[Sample]:
        """Captions, labels, retrieval pairs and drawing prompts: one a scene, with all texts of a set distinct."""
        found: list[Sample] = []
        texts: set[str] = set()
        for index in range(self._start, self._start + _PATIENCE + 100 * count):
            if len(found) == count:
                return found
            if self.task == "zero-shot":
                view = View(self.world.single(self.split, index))
            else:
                view = View(self.world.scenes(self.split, index, pictures=1)[0])
            draft, references = self._plain_draft(view, len(found))
            if self.task in ("retrieval", "text-to-image"):
                if references[0] in texts or (self.task == "text-to-image" and len(view.objects) > 3):
                    continue
                texts.add(references[0])
            identity = f"{identity_of(view.scene)}/0"
            sample = speaker_of(self.world).sample(self.task, draft, (view,), identity)
            found.append(replace(sample, references=references, facts={"objects": objects_of(view)}))
        if len(found) < count:
            raise UserError(f"The split {self.split} has only {len(found)} distinct samples of {self.task}.")
        return found

    def _plain_draft(self, view: View, place: int) -> tuple[Draft, tuple[str, ...]]:
        """A question without choices, and all its right answers (for a drawing: its prompt)."""
        random = self._rng.random
        if self.task == "captioning":
            texts = captions.captions(view, random, _REFERENCES)
            question = DESCRIBE[place % len(DESCRIBE)]
            return Draft("caption", question, texts[:1], "", "", ()), texts
        if self.task == "zero-shot":
            return Draft("all", WHAT_SINGLE[0], (view.names[0],), "", "", ()), (view.names[0],)
        if self.task == "retrieval":
            text = captions.clip_text(view, random, 0.7)
            return Draft("all", "", (text,), "", "", ()), (text,)
        prompt = captions.drawing_prompt(view, random)
        return Draft("all", prompt, (Picture(0),), "", "", ()), (prompt,)
