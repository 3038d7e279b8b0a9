"""Several sets as one source of training, each with its share; a file says which.

    [[sets]]
    data = "pets"        # a folder, relative to the file, or "scenes"
    weight = 3

    [[sets]]
    data = "scenes"
    weight = 1

The same as JSON is ``{"sets": [{"data": "pets", "weight": 3}, ...]}``. What is shared out are documents: a picture, or
several that belong together, with everything that is said about them.
"""

from __future__ import annotations

import bisect
import itertools
import json
import random
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np

from bifocal import config, distributed
from bifocal.config import UserError
from bifocal.data.fitting import WHOLE, Fitting
from bifocal.data.sample import Sample
from bifocal.data.scenes import WorldSettings
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.sources import Length, Pair, SceneSource, Source, Supply, shuffled

SCENES = "scenes"  # what a file calls the default data
SUFFIXES = (".toml", ".json")
BLOCK = 4096  # turns within which the sets' order is shuffled


@dataclass(frozen=True)
class MixedSet:
    """One set of a mixture: a folder or "scenes", and how often it comes compared with the others.

    ``name`` tells it from the others; without one it is called as its folder.
    """

    data: str
    weight: float = 1.0
    name: str = ""


@dataclass(frozen=True)
class Mixture:
    """What a file of a mixture says."""

    sets: tuple[MixedSet, ...]


def is_mixture(data: str) -> bool:
    """Whether ``--data`` names a file of a mixture, there or not, and no folder."""
    return data.lower().endswith(SUFFIXES) and not Path(data).is_dir()


def read_mixture(path: Path) -> Mixture:
    """The sets that a file mixes, each with a name, their folders relative to where the program runs.

    Raises ``UserError`` for a file that is none, no sets, a weight that is not above 0, and two sets of one name.
    """
    mixture = config.from_dict(Mixture, _content(path), str(path), older=True)
    if not mixture.sets:
        raise UserError(f"{path} mixes no sets: give it [[sets]], each with data and weight")
    named: list[MixedSet] = []
    for number, item in enumerate(mixture.sets, start=1):
        name = item.name or (item.data if item.data == SCENES else (path.parent / item.data).resolve().name)
        if not item.weight > 0:
            raise UserError(
                f'{path}, set {number} ("{name}"): its weight is {item.weight:g} and must be above 0; '
                "leave the set out if nothing of it is to come"
            )
        if "/" in name:  # it stands before the keys of pictures, which have slashes of their own
            raise UserError(
                f'{path}, set {number}: a set cannot be called "{name}"; give it a name without a slash'
            )
        if any(name == other.name for other in named):
            raise UserError(
                f'{path}, set {number}: another set is called "{name}" too; give one of them a name'
            )
        data = item.data if item.data == SCENES else str(path.parent / item.data)
        named.append(replace(item, data=data, name=name))
    return Mixture(tuple(named))


def _content(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}, which should say what sets to mix") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # of UTF-8, JSON and TOML alike
        raise UserError(f"{path} is no valid {path.suffix[1:].upper()}: {error}") from None


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of the weights, exactly as those are written in decimals."""
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    return [int(fraction * scale) for fraction in fractions]


def turn_of(number: int, weights: Sequence[int]) -> tuple[int, int]:
    """Whose the ``number``-th turn is, and how many turns that set had before, as a pure function.

    The turns of a set of share s come at the times (k + 1/2) / s, and all sets' turns by their times (the rule of
    Sainte-Laguë for the seats of a parliament): after n turns each set had s * n of them, to about one. Counting
    begins a little before the number that is asked for, so that no turn costs more than a few steps.
    """
    total = sum(weights)
    early = max(0, number - len(weights))
    had = [(2 * early * weight + total) // (2 * total) for weight in weights]
    while True:
        first = min(range(len(weights)), key=lambda i: Fraction(2 * had[i] + 1, weights[i]))
        if sum(had) == number:
            return first, had[first]
        had[first] += 1


class MixtureSource:
    """Sources mixed by weight. Keys of pictures and ids of samples begin with the name of their set."""

    def __init__(self, sets: Mapping[str, tuple[Source, float]]) -> None:
        self.names = list(sets)
        self.sources = [source for source, _ in sets.values()]
        self.picture_size, self.fitting = (
            self.sources[0].picture_size,
            self.sources[0].fitting,
        )  # those of all
        self.weights = whole_weights([weight for _, weight in sets.values()])
        self.tasks: Collection[str] = {task for source in self.sources for task in source.tasks}
        self.fingerprint = config.fingerprint(
            [
                [name, weight, source.fingerprint]
                for name, weight, source in zip(self.names, self.weights, self.sources, strict=True)
            ]
        )
        # where each set's documents begin among all
        self.starts = {
            split: list(itertools.accumulate((s.documents(split) for s in self.sources), initial=0))
            for split in ("train", "validation")
        }

    def shares(self) -> dict[str, float]:
        """The share of documents that each set has in training."""
        return {
            name: weight / sum(self.weights) for name, weight in zip(self.names, self.weights, strict=True)
        }

    def require(self, tasks: Collection[str]) -> None:
        """Raise ``UserError`` for a set that has nothing of what is trained: its share could not be kept."""
        for name, source in zip(self.names, self.sources, strict=True):
            if not set(tasks) & set(source.tasks):
                raise UserError(
                    f'the set "{name}" has samples of {", ".join(sorted(source.tasks))} alone, and what is trained is '
                    f"{', '.join(sorted(tasks))}: leave it out, or give its task a weight (--tasks.NAME)"
                )

    def texts(self) -> list[str]:
        return [text for source in self.sources for text in source.texts()]

    def picture(self, split: str, number: int) -> np.ndarray:
        place, rank = self._turn(number, seed=0)
        return self.sources[place].picture(split, rank)

    def picture_key(self, split: str, number: int) -> str:
        place, rank = self._turn(number, seed=0)
        return f"{self.names[place]}/{self.sources[place].picture_key(split, rank)}"

    def pair(self, split: str, number: int, attempt: int, *, vary: bool = True) -> Pair:
        place, rank = self._turn(number, seed=0)
        pair = self.sources[place].pair(split, rank, attempt, vary=vary)
        return replace(pair, key=f"{self.names[place]}/{pair.key}")

    def uncaptioned(self) -> int:
        return sum(source.uncaptioned() for source in self.sources)

    def note_spoilt(self, file: Path, prefix: str = "", *, begun: bool = False) -> set[str]:
        found = zip(self.names, self.sources, strict=True)
        return {
            key for name, source in found for key in source.note_spoilt(file, f"{prefix}{name}/", begun=begun)
        }

    def spoil(self, key: str, reason: str) -> None:
        name, _, own = key.partition("/")
        self.sources[self.names.index(name)].spoil(own, reason)

    def spoilt(self) -> set[str]:
        found = zip(self.names, self.sources, strict=True)
        return {f"{name}/{key}" for name, source in found for key in source.spoilt()}

    def documents(self, split: str) -> int:
        return self.starts[split][-1]

    def supply(self, tasks: Collection[str], length: Length) -> Supply:
        had: list[tuple[int, Supply]] = []
        for weight, source in zip(self.weights, self.sources, strict=True):
            if known := [task for task in tasks if task in source.tasks]:
                had.append((weight, source.supply(known, length)))
        share = sum(weight * each.share for weight, each in had) / sum(self.weights)
        return Supply(min((each.shortest for _, each in had), default=1), share)

    def turn(self, split: str, number: int, seed: int) -> int:
        place, rank = self._turn(number, seed)
        own_seed = int(config.fingerprint([seed, self.names[place]])[:8], 16)
        return self.starts[split][place] + self.sources[place].turn(split, rank, own_seed)

    def document_keys(self, split: str, number: int) -> tuple[str, ...]:
        place, inside = self._find(split, number)
        keys = self.sources[place].document_keys(split, inside)
        return tuple(f"{self.names[place]}/{key}" for key in keys)

    def document(
        self,
        split: str,
        number: int,
        rng: random.Random,
        tasks: Mapping[str, float],
        kinds: Mapping[str, float] | None = None,
    ) -> list[Sample]:
        place, inside = self._find(split, number)
        name, source = self.names[place], self.sources[place]
        known = {task: weight for task, weight in tasks.items() if task in source.tasks}
        return [
            replace(
                sample,
                id=f"{name}/{sample.id}",
                pictures=tuple(f"{name}/{key}" for key in sample.pictures),
            )
            for sample in (source.document(split, inside, rng, known, kinds) if known else ())
        ]

    def pixels(self, key: str) -> np.ndarray:
        name, _, own = key.partition("/")
        return self.sources[self.names.index(name)].pixels(own)

    def pixels_or_none(self, key: str) -> np.ndarray | None:
        name, _, own = key.partition("/")
        return self.sources[self.names.index(name)].pixels_or_none(own)

    def _turn(self, number: int, seed: int) -> tuple[int, int]:
        # A step uses the first of the numbers that are kept for it. Unshuffled, a rare set whose turns come at an
        # even distance could lie among the others every time.
        start = number - number % BLOCK
        return turn_of(start + shuffled(number, BLOCK, seed), self.weights)

    def _find(self, split: str, number: int) -> tuple[int, int]:
        place = bisect.bisect_right(self.starts[split], number) - 1
        return place, number - self.starts[split][place]


def source_of(
    data: str | None,
    world: WorldSettings,
    episodes: int,
    fitting: Fitting = WHOLE,
    inside: Sequence[Path] = (),
) -> Source:
    """The scenes, the samples of a folder, or what a file mixes; pictures are made square as ``fitting`` says.

    A file may mix what other files mix: ``inside`` are those that this one is mixed by, none of which it may name.
    """
    if data is None:
        return SceneSource(world, episodes)
    if not is_mixture(data):
        return FolderSource(data, world.picture_size, fitting)
    place = Path(data).resolve()
    if place in inside:
        raise UserError("it mixes itself: name folders, or files that do not lead back to it")
    sets: dict[str, tuple[Source, float]] = {}
    for item in read_mixture(Path(data)).sets:
        try:
            own = None if item.data == SCENES else item.data
            source = source_of(own, world, episodes, fitting, (*inside, place))
        except UserError as error:
            raise UserError(f'the set "{item.name}" of {data}: {error}') from error
        sets[item.name] = source, item.weight
    mixture = MixtureSource(sets)
    if distributed.is_main():
        shares = (f"{name} {100 * share:.3g}%" for name, share in mixture.shares().items())
        print(f"{data}: {', '.join(shares)}", flush=True)
    return mixture
