"""What of a test is in the data that were trained on: pictures by pixels and by looks, texts by letters and by words.

A picture that is there is a leak whatever is asked about it. A text alone need not be one, since "what colour is the
cat?" may be asked of many pictures; picture and text together are the sample itself.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bifocal.artifacts import atomic_write_bytes
from bifocal.config import UserError, fingerprint
from bifocal.data.folder import PictureFiles, kept_for_validation, sample_files
from bifocal.data.likeness import Gallery, Look, look_at
from bifocal.data.sample import Dataset, Sample, picture_keys_of, read_samples
from bifocal.letters import plain, words

OVERLAP = "overlap"  # the fact of a sample that says which of the two slices it is in
SEEN, NEW = "picture in training", "picture not in training"

Progress = Callable[[int, int], None]  # (pictures done, pictures in all)

_ARTICLES = {"a", "an", "the"}


def texts_of(sample: Sample) -> tuple[str, ...]:
    """The words that tell a sample from others: a picture's captions, else what is asked; none where all ask alike."""
    if sample.task in ("captioning", "retrieval"):
        return sample.references or (sample.answer_text,)
    return (sample.question,) if sample.task in ("vqa", "grounding", "reasoning") and sample.question else ()


def same_text(text: str) -> str:
    """Equal for texts of the same words in the same order, whatever their case, spaces and punctuation."""
    return " ".join(words(text) or plain(text).split())


def near_text(text: str) -> str:
    """Equal also for texts of the same words in another order, articles left out."""
    return " ".join(sorted(set(words(text) or plain(text).split()) - _ARTICLES))


class Found(NamedTuple):
    """Whether something is in the training data as it is, and whether it is there at least nearly."""

    exact: bool
    near: bool


class Match(NamedTuple):
    """What of one sample was trained on: a picture of it, a text of it (None: it has none), both in one sample."""

    picture: Found
    text: Found | None
    both: Found | None


@dataclass
class Trained:
    """What training saw: the pictures' looks, and for every text the pixels (``Look.pixels``) it was about."""

    looks: list[Look] = field(default_factory=list)
    same: dict[str, set[bytes]] = field(default_factory=dict)
    near: dict[str, set[bytes]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)  # pictures that nobody can look at any more

    def add(self, samples: Iterable[Sample], looks: Mapping[str, Look]) -> None:
        """Samples, and the looks of their pictures, as far as they are known."""
        self.looks += looks.values()
        for sample in samples:
            pixels = {looks[key].pixels for key in sample.pictures if key in looks}
            for text in texts_of(sample):
                self.same.setdefault(same_text(text), set()).update(pixels)
                self.near.setdefault(near_text(text), set()).update(pixels)


def trained_on(
    folders: Sequence[Path],
    *,
    whole: Collection[Path] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """What training takes from some folders of samples, which leaves out a tenth; of those in ``whole``, everything.

    The looks of a folder's pictures are kept under ``cache``.
    """
    datasets = [_Learnt(folder, whole=folder in whole) for folder in folders]
    total, done = sum(len(dataset.keys) for dataset in datasets), 0
    trained = Trained()
    for dataset in datasets:
        looks = {}
        kept = _kept(dataset, cache)
        for key in dataset.keys:
            try:
                looks[key] = kept[key] if kept else look_at(dataset.files.picture(key))
            except UserError:  # a picture may have gone since: the others still say something
                trained.lost.append(f"{dataset.files.directory / key}")
            done += 1
            if progress is not None:
                progress(done, total)
        if cache is not None and not kept and len(looks) == len(dataset.keys):
            _keep(dataset, cache, looks)
        trained.add(dataset.samples, looks)
    return trained


class _Learnt:
    """What training took from a folder of samples, whether or not its pictures are still there."""

    def __init__(self, folder: Path, *, whole: bool) -> None:
        self.files = PictureFiles(folder)
        samples = [sample for file in sample_files(folder) for sample in read_samples(file)]
        learnt = [sample for sample in samples if whole or not kept_for_validation(sample)]
        self.samples = learnt or samples
        self.keys = picture_keys_of(self.samples)


def overlap(dataset: Dataset, trained: Trained, progress: Progress | None = None) -> list[Match]:
    """For every sample of a test, in its order, what of it was trained on."""
    gallery = Gallery(trained.looks)
    keys = picture_keys_of(dataset.samples)
    exact: dict[str, set[bytes]] = {}
    near: dict[str, set[bytes]] = {}
    for number, key in enumerate(keys, start=1):
        try:
            look = look_at(dataset.picture(key))
            near[key] = {trained.looks[place].pixels for place in gallery.alike(look)}
            exact[key] = near[key] & {look.pixels}
        except UserError:  # the requests about it will fail, and say so
            near[key] = exact[key] = set()
        if progress is not None:
            progress(number, len(keys))
    matches = []
    for sample in dataset.samples:
        same = set().union(*(exact[key] for key in sample.pictures))
        like = set().union(*(near[key] for key in sample.pictures))
        texts = texts_of(sample)
        told = [trained.same.get(same_text(text)) for text in texts]
        nearly = [trained.near.get(near_text(text)) for text in texts]
        about, nearly_about = ({one for some in sets if some for one in some} for sets in (told, nearly))
        matches.append(
            Match(
                Found(bool(same), bool(like)),
                Found(any(some is not None for some in told), any(some is not None for some in nearly))
                if texts
                else None,
                Found(bool(same & about), bool(like & nearly_about)) if texts else None,
            )
        )
    return matches


def marked(samples: Sequence[Sample], matches: Sequence[Match]) -> list[Sample]:
    """The samples, each with the slice it is in by its picture's having been trained on, at least nearly."""
    return [
        replace(sample, facts={**(sample.facts or {}), OVERLAP: SEEN if match.picture.near else NEW})
        for sample, match in zip(samples, matches, strict=True)
    ]


# ------------------------------------------------------------ the looks that are kept


def _place(dataset: _Learnt, cache: Path) -> Path:
    stamps = [[key, *dataset.files.stamp(key)] for key in dataset.keys]
    return cache / f"{fingerprint(stamps)[:16]}.npz"


def _kept(dataset: _Learnt, cache: Path | None) -> dict[str, Look]:
    """The looks of a folder's pictures as they were kept, if all are there and none has changed since; else none."""
    if cache is None or not all(key in dataset.files for key in dataset.keys):
        return {}
    if not (place := _place(dataset, cache)).is_file():
        return {}
    with np.load(place, allow_pickle=False) as kept:
        rows = zip(kept["pixels"], kept["bits"], kept["small"], strict=True)
        looks = [Look(pixels.tobytes(), int(bits), small) for pixels, bits, small in rows]
    return dict(zip(dataset.keys, looks, strict=True))


def _keep(dataset: _Learnt, cache: Path, looks: Mapping[str, Look]) -> None:
    buffer = io.BytesIO()
    some = list(looks.values())
    np.savez(
        buffer,
        pixels=np.array([np.frombuffer(look.pixels, dtype=np.uint8) for look in some]),
        bits=np.array([look.bits for look in some], dtype=np.uint64),
        small=np.array([look.small for look in some]),
    )
    cache.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(_place(dataset, cache), buffer.getvalue())
