"""Where training takes its data from, and scenes that are made as they are used (`folder_source` has a user's own).

A source gives the same things whatever stands behind it, each a pure function of a number.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from bifocal.config import UserError
from bifocal.data.fitting import WHOLE, Fitting
from bifocal.data.prompts import without_words
from bifocal.data.sample import Box, Picture, Sample
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import clip_caption, clip_regions, samples_for, training_texts

SCENE_TASKS = ("captioning", "vqa", "grounding", "reasoning", "text-to-image")  # of those that a VLM learns
SINGLE_SHARE = (
    0.5  # of CLIP's training scenes, those with one object: single objects are what zero-shot names
)
ALIKE = 16  # scenes that stand for all in how much is said about them
Length = Callable[[Sequence[Sample]], int]


@dataclass(frozen=True)
class Pair:
    """A picture, (S, S, 3) uint8, and a caption of it; ``regions`` are parts of it that have a phrase of their own."""

    picture: np.ndarray
    text: str
    regions: Sequence[tuple[Box, str]] = ()
    key: str = ""


@dataclass(frozen=True)
class Supply:
    """What a source has for some tasks: the length of the shortest document, and the share of documents with any."""

    shortest: int
    share: float

    @staticmethod
    def of(documents: Sequence[Sequence[Sample]], length: Length) -> Supply:
        lengths = [length(samples) for samples in documents if samples]
        return Supply(min(lengths, default=1), len(lengths) / max(1, len(documents)))


class Source(Protocol):
    """What recipes ask of data. ``split`` is "train" or "validation"."""

    fingerprint: str
    tasks: Collection[str]  # that it has samples of
    picture_size: int
    fitting: Fitting

    def texts(self) -> list[str]:
        """Texts to learn a tokenizer from."""
        ...

    def picture(self, split: str, number: int) -> np.ndarray:
        """Some picture: (S, S, 3) uint8."""
        ...

    def picture_key(self, split: str, number: int) -> str:
        """The key of that picture."""
        ...

    def note_spoilt(self, file: Path, prefix: str = "", *, begun: bool = False) -> set[str]:
        """From now on let other pictures stand for those that cannot be read, and note them in a file.

        Returns the keys of those that it names and that can be read by now; a run that has ``begun`` passes them over
        all the same.
        """
        ...

    def spoil(self, key: str, reason: str) -> None:
        """A picture cannot be read. Raises ``UserError`` where that is no longer to be passed over."""
        ...

    def spoilt(self) -> set[str]:
        """The keys of pictures that are known to be unreadable."""
        ...

    def pair(self, split: str, number: int, attempt: int, *, vary: bool = True) -> Pair:
        """A picture and a caption of it; another ``attempt`` gives another one.

        Of several captions of a file one is drawn for each number; not to ``vary`` them gives the first one always.
        """
        ...

    def uncaptioned(self) -> int:
        """How many pictures have no caption, so that no pair is made of them."""
        ...

    def documents(self, split: str) -> int:
        """How many sets of pictures there are to talk about."""
        ...

    def supply(self, tasks: Collection[str], length: Length) -> Supply:
        """What there is of these tasks to train on, where ``length`` says how long a document of some samples is."""
        ...

    def turn(self, split: str, number: int, seed: int) -> int:
        """Which document comes ``number``-th: an order without an end, as a pure function."""
        ...

    def document_keys(self, split: str, number: int) -> tuple[str, ...]:
        """The keys of a document's pictures."""
        ...

    def document(
        self,
        split: str,
        number: int,
        rng: random.Random,
        tasks: Mapping[str, float],
        kinds: Mapping[str, float] | None = None,
    ) -> list[Sample]:
        """Samples about one document's pictures, of the tasks named, in random order; more than fit in a row.

        ``kinds`` are slices of samples, with how many times as often as otherwise they are to come.
        """
        ...

    def pixels(self, key: str) -> np.ndarray:
        """The picture of a key: (S, S, 3) uint8."""
        ...

    def pixels_or_none(self, key: str) -> np.ndarray | None:
        """The same, or None of a picture that cannot be read, which is noted. Raises as ``spoil`` does."""
        ...


@functools.lru_cache(maxsize=2)
def world_of(settings: WorldSettings) -> World:
    """The world of these settings, built once a process."""
    return World(settings)


class SceneSource:
    """Scenes of real drawings; ``episodes`` of them are told about, the pictures themselves never run out."""

    def __init__(self, settings: WorldSettings, episodes: int, samples_per_document: int = 28) -> None:
        self.world = world_of(settings)
        self.episodes = episodes
        self.samples_per_document = samples_per_document
        self.picture_size, self.fitting = settings.picture_size, WHOLE
        self.fingerprint = self.world.fingerprint
        self.tasks: Collection[str] = SCENE_TASKS

    def texts(self) -> list[str]:
        return training_texts(self.world, 20_000)

    def picture(self, split: str, number: int) -> np.ndarray:
        return self.world.render(self.world.scenes(split, number, pictures=1)[0])

    def picture_key(self, split: str, number: int) -> str:
        return self.world.scenes(split, number, pictures=1)[0].key

    def note_spoilt(self, file: Path, prefix: str = "", *, begun: bool = False) -> set[str]:
        """Scenes are made, and so can always be read."""
        return set()

    def spoil(self, key: str, reason: str) -> None:
        raise UserError(reason)

    def spoilt(self) -> set[str]:
        return set()

    def pair(self, split: str, number: int, attempt: int, *, vary: bool = True) -> Pair:
        rng = random.Random(f"pair/{split}/{number}/{attempt}")
        if rng.random() < SINGLE_SHARE:
            scene = self.world.single(split, number)
        else:
            scene = self.world.scenes(split, number, pictures=1)[0]
        return Pair(self.world.render(scene), clip_caption(scene, rng), clip_regions(scene, rng), scene.key)

    def uncaptioned(self) -> int:
        return 0

    def documents(self, split: str) -> int:
        return self.episodes if split == "train" else 512

    def supply(self, tasks: Collection[str], length: Length) -> Supply:
        # as much is said about all scenes, so that a few tell
        some, weights = range(min(self.documents("train"), ALIKE)), dict.fromkeys(sorted(tasks), 1.0)
        return Supply.of([self.document("train", n, random.Random(n), weights) for n in some], length)

    def turn(self, split: str, number: int, seed: int) -> int:
        return shuffled(number, self.documents(split), seed)

    def document_keys(self, split: str, number: int) -> tuple[str, ...]:
        return tuple(scene.key for scene in self.world.scenes(split, number))

    def document(
        self,
        split: str,
        number: int,
        rng: random.Random,
        tasks: Mapping[str, float],
        kinds: Mapping[str, float] | None = None,
    ) -> list[Sample]:
        return samples_for(
            self.world.scenes(split, number),
            rng,
            world=self.world,
            tasks=dict(tasks),
            count=self.samples_per_document,
            split=split,
            kinds=kinds,
        )

    def pixels(self, key: str) -> np.ndarray:
        return self.world.picture(key)

    def pixels_or_none(self, key: str) -> np.ndarray | None:
        return self.pixels(key)


def drawing_sample(sample: Sample, *, blank: bool) -> Sample:
    """A text-to-image sample for training; ``blank`` drops its prompt, which teaches the unconditional half.

    Raises ``UserError`` where nothing is drawn in it.
    """
    answers = [message for message in sample.messages if message.role == "assistant"]
    if not any(isinstance(part, Picture) for message in answers for part in message.parts):
        raise UserError(
            f"sample {sample.id} is of the task {sample.task} and draws nothing: put an "
            '{"type": "image"} in the assistant\'s turn'
        )
    return replace(sample, messages=without_words(sample.messages)) if blank else sample


def shuffled(number: int, count: int, seed: int) -> int:
    """The ``number``-th of ``count`` things in an order that is new in every epoch, as a pure function."""
    epoch, place = divmod(number, count)
    return int(_permutation(count, seed, epoch)[place])


@functools.lru_cache(maxsize=32)  # two for each set of a mixture
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
