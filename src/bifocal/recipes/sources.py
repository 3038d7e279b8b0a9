"""Where training takes its data from: scenes made as they are used, or a folder of a user's own samples.

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
from bifocal.data.fitting import WHOLE, Fitting, fit_picture
from bifocal.data.folder import FolderDataset, kept_for_validation
from bifocal.data.prompts import reworded, without_words
from bifocal.data.sample import Box, Message, Picture, Sample
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import clip_caption, clip_regions, samples_for, training_texts
from bifocal.recipes.spoilt import Spoilt

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

    def pair(self, split: str, number: int, attempt: int) -> Pair:
        """A picture and a caption of it; another ``attempt`` gives another one."""
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

    def __init__(self, settings: WorldSettings, episodes: int, samples_per_document: int = 40) -> None:
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

    def pair(self, split: str, number: int, attempt: int) -> Pair:
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


@dataclass(frozen=True)
class Document:
    """All that is said about some pictures, or a conversation without any."""

    keys: tuple[str, ...]
    samples: list[Sample]


class FolderSource:
    """A user's own samples; a tenth of the pictures, by the hash of their names, is kept for validation, and with each
    of them all that is said about it, also beside others.
    """

    def __init__(self, directory: str | Path, picture_size: int, fitting: Fitting = WHOLE) -> None:
        self.dataset = FolderDataset(directory)
        self.picture_size, self.fitting = picture_size, fitting
        documents: dict[tuple[str, ...] | str, Document] = {}
        for sample in self.dataset.samples:
            document = documents.setdefault(sample.pictures or sample.id, Document(sample.pictures, []))
            document.samples.append(sample)
        self.groups: dict[str, list[Document]] = {"train": [], "validation": []}
        for document in documents.values():
            kept = kept_for_validation(document.samples[0])
            self.groups["validation" if kept else "train"].append(document)
        for split, other in (("validation", "train"), ("train", "validation")):
            if not self.groups[split]:
                self.groups[split] = self.groups[other][:1]
        # conversations without a picture are for the VLM alone
        self.samples = {document.keys: document.samples for document in documents.values() if document.keys}
        self.pictured = {
            split: [document.keys for document in some if document.keys] or list(self.samples)[:1]
            for split, some in self.groups.items()
        }
        if not self.pictured["train"]:
            raise UserError(f"the samples of {self.dataset.name} have no pictures")
        alone = {keys[0]: some for keys, some in self.samples.items() if len(keys) == 1}
        self.captions = {key: said for key, some in alone.items() if (said := captions_of(some))}
        self.captioned = {
            split: [keys[0] for keys in some if len(keys) == 1 and keys[0] in self.captions]
            or list(self.captions)[:1]
            for split, some in self.pictured.items()
        }
        self._spoilt = Spoilt(len({key for keys in self.samples for key in keys}))
        self.tasks: Collection[str] = {sample.task for sample in self.dataset.samples}
        self.fingerprint = self.dataset.fingerprint

    def texts(self) -> list[str]:
        # in other words too, as often as training uses them
        samples = [reworded(sample, random.Random(sample.id)) for sample in self.dataset.samples]
        said = [part for sample in samples for message in sample.messages for part in message.parts]
        return [part for part in said if isinstance(part, str)] + [
            text for sample in samples for text in sample.references[1:]
        ]

    def _document(self, split: str, number: int) -> Document:
        groups = self.groups[split]
        return groups[number % len(groups)]

    def _pictured(self, split: str, number: int) -> tuple[str, ...]:
        """In an order that is new in every epoch: a folder may be sorted by what its pictures show."""
        groups = self.pictured[split]
        return groups[shuffled(number, len(groups), 0)]

    def picture(self, split: str, number: int) -> np.ndarray:
        return self._readable(split, number)[1]

    def picture_key(self, split: str, number: int) -> str:
        return self._readable(split, number)[0]

    def _readable(self, split: str, number: int) -> tuple[str, np.ndarray]:
        """The next picture from this number on that can be read; another one of its group each epoch."""
        while True:
            keys = self._pictured(split, number)
            key = keys[number // len(self.pictured[split]) % len(keys)]
            pixels = self.pixels_or_none(key)
            if pixels is not None:
                return key, pixels
            number += 1

    def note_spoilt(self, file: Path, prefix: str = "", *, begun: bool = False) -> set[str]:
        mended = self._spoilt.noted_in(file, prefix, self._can_be_read, begun=begun)
        return {prefix + key for key in mended}

    def _can_be_read(self, key: str) -> bool:
        try:
            self.pixels(key)
        except UserError:
            return False
        return True

    def spoil(self, key: str, reason: str) -> None:
        self._spoilt.add(key, reason)

    def spoilt(self) -> set[str]:
        return self._spoilt.keys

    def pair(self, split: str, number: int, attempt: int) -> Pair:
        rng = random.Random(f"pair/{split}/{number}/{attempt}")
        if not self.captions:
            raise UserError(f"no picture of {self.dataset.name} has a caption, and CLIP learns from captions")
        keys = self.captioned[split]
        key = keys[shuffled(number, len(keys), 0)]
        pixels = self.pixels_or_none(key)
        if pixels is None:
            return self.pair(split, number + 1, attempt)
        return Pair(pixels, rng.choice(self.captions[key]), key=key)

    def uncaptioned(self) -> int:
        return len({key for keys in self.samples for key in keys} - self.captions.keys())

    def documents(self, split: str) -> int:
        return len(self.groups[split])

    def supply(self, tasks: Collection[str], length: Length) -> Supply:
        groups = self.groups["train"]
        return Supply.of([[each for each in one.samples if each.task in tasks] for one in groups], length)

    def turn(self, split: str, number: int, seed: int) -> int:
        return shuffled(number, self.documents(split), seed)

    def document_keys(self, split: str, number: int) -> tuple[str, ...]:
        return self._document(split, number).keys

    def document(
        self,
        split: str,
        number: int,
        rng: random.Random,
        tasks: Mapping[str, float],
        kinds: Mapping[str, float] | None = None,
    ) -> list[Sample]:
        document = self._document(split, number)
        if self._spoilt.any_of(document.keys):
            return []
        samples = [another_caption(sample, rng) for sample in document.samples if sample.task in tasks]
        if split == "train":
            samples = [reworded(sample, rng) for sample in samples]
        if not kinds:
            return rng.sample(samples, len(samples))
        # a random order in which the first is drawn by weight, then the next (Efraimidis & Spirakis 2006)
        return sorted(samples, key=lambda sample: -(rng.random() ** (1 / kinds.get(sample.slice, 1.0))))

    def pixels(self, key: str) -> np.ndarray:
        return fit_picture(self.dataset.picture(key), self.picture_size, self.fitting)

    def pixels_or_none(self, key: str) -> np.ndarray | None:
        if self._spoilt.any_of([key]):
            return None
        try:
            return self.pixels(key)
        except UserError as error:
            self.spoil(key, str(error))
            return None


def captions_of(samples: Sequence[Sample]) -> list[str]:
    """What is said of one picture as a whole."""
    return [
        text
        for sample in samples
        if sample.task in ("captioning", "retrieval", "zero-shot")
        for text in (sample.references or (sample.answer_text,))
    ]


def another_caption(sample: Sample, rng: random.Random) -> Sample:
    """The sample with one of its captions as the answer, where it is a caption and has several."""
    if sample.task != "captioning" or len(sample.references) < 2 or len(sample.messages) != 2:
        return sample
    answer = Message("assistant", (rng.choice(sample.references),))
    return replace(sample, messages=(sample.messages[0], answer))


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
