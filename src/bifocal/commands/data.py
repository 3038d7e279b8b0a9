"""`bifocal data scenes` and `data import`: scenes, published formats and tables as folders that ``--data`` reads."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from bifocal.artifacts import write_directory
from bifocal.config import UserError
from bifocal.data.formats import FORMATS, open_document, read_samples_of, rows
from bifocal.data.sample import Sample, write_samples
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.training.progress import Progress

TASKS = ("captioning", "vqa", "grounding", "reasoning", "zero-shot", "retrieval", "text-to-image")


# ------------------------------------------------------------ scenes


def export_scenes(out: Path, *, split: str, count: int, settings: WorldSettings) -> None:
    """Write ``count`` samples of every task with their pictures: one JSONL a task, PNG files under ``pictures/``."""
    refuse_full(out)
    world = World(settings)
    out.mkdir(parents=True, exist_ok=True)
    with Progress("scenes", total=len(TASKS)) as progress:
        for number, task in enumerate(TASKS, start=1):
            dataset = SceneDataset(world, split, task, count)
            samples = []
            for sample in dataset.samples:
                names = tuple(f"pictures/{key.replace('/', '-')}.png" for key in sample.pictures)
                for key, name in zip(sample.pictures, names, strict=True):
                    path = out / name
                    path.parent.mkdir(exist_ok=True)
                    if not path.exists():
                        Image.fromarray(world.picture(key)).save(path)
                # one scene may serve several tasks, and an id is unique in its folder
                samples.append(replace(sample, id=f"{task}/{sample.id}", pictures=names))
            write_samples(out / f"{task}.jsonl", samples)
            progress.update(number)
    print(f"wrote {len(TASKS) * count} samples to {out}")


def refuse_full(out: Path) -> None:
    """Refuse a directory that holds something."""
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise UserError(f"{out} is not empty: choose another --out")


# ------------------------------------------------------------ import


class Pictures:
    """Finds pictures under a directory by the names that annotations have for them.

    A name is a path below the directory or, since the sets are laid out in many ways, the name of a file that is there
    only once, at any depth. COCO's pictures of 2014 are found under their names of 2017, which lack the first part.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"There is no directory {root} of pictures; name it with --images.")
        self.root = root
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str, sample: str) -> Path:
        """The file; raises UserError, naming the sample, where there is none or more than one."""
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f'The picture "{name}" of sample "{sample}" lies outside {self.root}.')
        if path.is_file():
            return path
        for wanted in (path.name, re.sub(r"^COCO_[a-z]+\d+_", "", path.name)):
            files = self._named().get(wanted, [])
            if len(files) > 1:
                raise UserError(
                    f'The picture "{name}" of sample "{sample}" is {len(files)} times under {self.root}.'
                )
            if files:
                return files[0]
        raise UserError(f'The picture "{name}" of sample "{sample}" is not under {self.root}; see --images.')

    def _named(self) -> dict[str, list[Path]]:
        if self._by_name is None:
            self._by_name = {}
            for folder, _, files in os.walk(self.root):
                for file in files:
                    self._by_name.setdefault(file, []).append(Path(folder) / file)
        return self._by_name


def import_data(
    form: str,
    files: Sequence[Path],
    out: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    count: int | None = None,
) -> None:
    """Turn files of a published format, or a table, into a folder that ``--data`` reads.

    Pictures are linked into the folder where the disk can do that, and copied elsewhere. The folder appears whole or
    not at all.
    """
    if not files:
        raise UserError(f"data import {form} needs {FORMATS[form].files}")
    refuse_full(out)
    samples = read_samples_of(form, files)
    if split is not None:
        samples = of_split(samples, split)
    samples = samples[:count]
    first = files[0] if files[0].is_dir() else files[0].parent
    pictures = Pictures(images or first)
    found: dict[str, Path] = {}
    for sample in samples:
        for key in sample.pictures:
            if key not in found:
                found[key] = pictures.find(key, sample.id)
    names = {key: f"pictures/{path.relative_to(pictures.root).as_posix()}" for key, path in found.items()}
    if out.is_dir():
        out.rmdir()  # it is empty, and the new one takes its place
    with (
        write_directory(out, manifest=False) as work,
        Progress(f"import {form}", total=len(found)) as progress,
    ):
        for number, (key, path) in enumerate(found.items(), start=1):
            link_or_copy(path, work / names[key])
            progress.update(number)
        write_samples(
            work / "samples.jsonl",
            (replace(sample, pictures=tuple(names[key] for key in sample.pictures)) for sample in samples),
        )
    print(f"wrote {len(samples)} samples about {len(found)} pictures to {out}")
    if FORMATS[form] in (rows.TABLE, rows.FOLDER):
        unused = rows.unused_columns([open_document(path) for path in files])
        if unused:
            print(f"nothing was made of the columns {', '.join(unused)}")


def of_split(samples: Iterable[Sample], split: str) -> list[Sample]:
    """Those of a split; raises UserError with the splits that there are."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(str((sample.facts or {}).get("split") or ""), []).append(sample)
    if split not in groups:
        known = ", ".join(sorted(name for name in groups if name)) or "none"
        raise UserError(f"There is no split {split}; the files name {known}.")
    return groups[split]


def link_or_copy(source: Path, target: Path) -> None:
    """The same file at a second place: a hard link, which takes no space, or a copy on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(source.resolve(), target)
        return
    shutil.copyfile(source, target)
