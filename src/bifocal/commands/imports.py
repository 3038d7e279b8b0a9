"""`bifocal data import`: published formats and tables as folders that ``--data`` reads."""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bifocal.artifacts import refuse_full, write_directory
from bifocal.config import UserError
from bifocal.data.files import Document, expanded
from bifocal.data.formats import FORMATS, open_documents, parquet, rows, webdataset
from bifocal.data.sample import write_samples
from bifocal.data.splits import of_split
from bifocal.training.progress import Progress

_REASONS = 10  # of what was left out, that are told


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

    Files of several splits need a ``split``, or "all". Pictures are linked into the folder where the disk can do that,
    and copied elsewhere. The folder appears whole or not at all.
    """
    if not files:
        raise UserError(f"data import {form} needs {FORMATS[form].files}")
    if count is not None and count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    refuse_full(out)
    files = expanded(files)
    documents = open_documents(form, files)
    samples = of_split(FORMATS[form].samples(documents), split)[:count]
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
    left_out = [reason for document in documents for reason in document.left_out]
    if left_out:
        more = "; ..." if len(left_out) > _REASONS else ""
        print(f"left out {len(left_out)}: {'; '.join(left_out[:_REASONS])}{more}")
    if FORMATS[form] in (rows.TABLE, rows.FOLDER, parquet.FORMAT, webdataset.FORMAT):
        unused = rows.unused_columns(documents)
        if unused:
            print(f"nothing was made of the columns {', '.join(unused)}")


class Pictures:
    """Pictures by the names that annotations have for them: in the files themselves, or under a directory.

    A name is a path below the directory or, since the sets are laid out in many ways, the name of a file at any depth,
    which may be there several times if it is the same picture. Links to folders are followed. COCO's pictures of 2014
    are found under their names of 2017, which lack the first part.
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
        below = os.path.relpath(os.path.join(os.path.abspath(self.root), key), os.path.abspath(self.root))
        if below.split(os.sep)[0] == os.pardir:
            raise UserError(f'The picture "{key}" of sample "{sample}" lies outside {self.root}.')
        if any(key in held for held in self._held):
            return Path(below).as_posix()
        self._found[key] = self._find(key, below, sample)
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

    def _find(self, key: str, below: str, sample: str) -> Path:
        path = self.root / below
        if path.is_file():
            return path
        for wanted in (path.name, re.sub(r"^COCO_[a-z]+\d+_", "", path.name)):
            files = sorted(self._named().get(wanted, []), key=lambda file: (len(file.parts), file))
            if not all(_same(files[0], other) for other in files[1:]):
                raise UserError(
                    f'The picture "{key}" of sample "{sample}" is {len(files)} times under {self.root}: '
                    "files of one name that differ"
                )
            if files:
                return files[0]
        raise UserError(f'The picture "{key}" of sample "{sample}" is not under {self.root}; see --images.')

    def _named(self) -> dict[str, list[Path]]:
        if self._by_name is None:
            self._by_name = {}
            seen: set[tuple[int, int]] = set()
            for folder, folders, files in os.walk(self.root, followlinks=True):
                about = os.stat(folder)
                if (about.st_dev, about.st_ino) in seen:  # a link into what was walked through already
                    folders.clear()
                    continue
                seen.add((about.st_dev, about.st_ino))
                for file in files:
                    self._by_name.setdefault(file, []).append(Path(folder) / file)
        return self._by_name


def _same(one: Path, other: Path) -> bool:
    """Whether two files are one, as the pictures of a folder that was imported before are, or have the same content."""
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
