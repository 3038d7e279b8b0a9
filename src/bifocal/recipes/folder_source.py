"""A user's own samples as a source of training."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bifocal.config import UserError
from bifocal.data.fitting import WHOLE, Fitting, fit_picture
from bifocal.data.folder import FolderDataset, kept_for_validation
from bifocal.data.prompts import reworded
from bifocal.data.sample import Message, Sample
from bifocal.recipes.sources import Length, Pair, Supply, shuffled
from bifocal.recipes.spoilt import Spoilt


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

    def pair(self, split: str, number: int, attempt: int, *, vary: bool = True) -> Pair:
        rng = random.Random(f"pair/{split}/{number}/{attempt}")
        if not self.captions:
            raise UserError(f"no picture of {self.dataset.name} has a caption, and CLIP learns from captions")
        keys = self.captioned[split]
        key = keys[shuffled(number, len(keys), 0)]
        pixels = self.pixels_or_none(key)
        if pixels is None:
            return self.pair(split, number + 1, attempt, vary=vary)
        said = self.captions[key]
        return Pair(pixels, rng.choice(said) if vary else said[attempt % len(said)], key=key)

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
