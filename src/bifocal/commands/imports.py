"""`bifocal data import`: published formats and tables as folders that ``--data`` reads."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bifocal.artifacts import write_directory
from bifocal.commands.data import refuse_full
from bifocal.config import UserError
from bifocal.data.files import Document
from bifocal.data.formats import FORMATS, open_documents, parquet, rows
from bifocal.data.sample import Sample, write_samples
from bifocal.training.progress import Progress


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
    documents = open_documents(form, files)
    samples = FORMATS[form].samples(documents)
    if split is not None:
        samples = of_split(samples, split)
    samples = samples[:count]
    silent = [sample.id for sample in samples if sample.task == "vqa" and not sample.question]
    if silent:
        raise UserError(
            f'{len(silent)} questions have no words, such as "{silent[0]}": give the file of questions too'
        )
    unanswered = [sample.id for sample in samples if not sample.answer]
    if 0 < len(unanswered) < len(samples):
        raise UserError(
            f'{len(unanswered)} of the {len(samples)} samples have no answer, such as "{unanswered[0]}": '
            "the files of a split have answers to all of its questions, or to none where they are not published"
        )
    pictures = Pictures(documents, images or (files[0] if files[0].is_dir() else files[0].parent))
    names: dict[str, str] = {}
    for sample in samples:
        for key in sample.pictures:
            if key not in names:
                names[key] = f"pictures/{pictures.name_of(key, sample.id)}"
    if out.is_dir():
        out.rmdir()  # it is empty, and the new one takes its place
    with (
        write_directory(out, manifest=False) as work,
        Progress(f"import {form}", total=len(names)) as progress,
    ):
        for number, (key, name) in enumerate(names.items(), start=1):
            pictures.put(key, work / name)
            progress.update(number)
        write_samples(
            work / "samples.jsonl",
            (replace(sample, pictures=tuple(names[key] for key in sample.pictures)) for sample in samples),
        )
    print(f"wrote {len(samples)} samples about {len(names)} pictures to {out}")
    if unanswered:
        print("they have no answers: a model can be asked, but nothing be learnt or scored by them")
    if FORMATS[form] in (rows.TABLE, rows.FOLDER, parquet.FORMAT):
        unused = rows.unused_columns(documents)
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


class Pictures:
    """Pictures by the names that annotations have for them: in the files themselves, or under a directory.

    A name is a path below the directory or, since the sets are laid out in many ways, the name of a file that is there
    only once, at any depth. COCO's pictures of 2014 are found under their names of 2017, which lack the first part.
    """

    def __init__(self, documents: Sequence[Document], root: Path) -> None:
        self._held = [document.pictures for document in documents if document.pictures is not None]
        if not self._held and not root.is_dir():
            raise UserError(f"There is no directory {root} of pictures; name it with --images.")
        self.root = root
        self._found: dict[str, Path] = {}
        self._by_name: dict[str, list[Path]] | None = None

    def name_of(self, key: str, sample: str) -> str:
        """What a picture is to be called; raises UserError, naming the sample, where there is none or several."""
        if any(key in held for held in self._held):
            return key
        self._found[key] = self._find(key, sample)
        return self._found[key].relative_to(self.root).as_posix()

    def put(self, key: str, target: Path) -> None:
        """The same picture at a second place: a hard link, which takes no space, or a copy on another disk."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # two names for one picture
            return
        for held in self._held:
            if key in held:
                target.write_bytes(held.read(key))
                return
        source = self._found[key]
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
        shutil.copyfile(source, target)

    def _find(self, key: str, sample: str) -> Path:
        path = self.root / key
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f'The picture "{key}" of sample "{sample}" lies outside {self.root}.')
        if path.is_file():
            return path
        for wanted in (path.name, re.sub(r"^COCO_[a-z]+\d+_", "", path.name)):
            files = self._named().get(wanted, [])
            if len(files) > 1:
                raise UserError(
                    f'The picture "{key}" of sample "{sample}" is {len(files)} times under {self.root}.'
                )
            if files:
                return files[0]
        raise UserError(f'The picture "{key}" of sample "{sample}" is not under {self.root}; see --images.')

    def _named(self) -> dict[str, list[Path]]:
        if self._by_name is None:
            self._by_name = {}
            for folder, _, files in os.walk(self.root):
                for file in files:
                    self._by_name.setdefault(file, []).append(Path(folder) / file)
        return self._by_name
