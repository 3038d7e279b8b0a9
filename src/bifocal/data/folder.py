"""A directory of pictures with their samples as JSON lines: the plainest data set of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bifocal.config import UserError, fingerprint
from bifocal.data.files import read_bytes
from bifocal.data.fingerprints import data_fingerprint
from bifocal.data.pictures import read_picture
from bifocal.data.sample import Sample, read_samples
from bifocal.data.shards import SHARDS, Shards


class PictureFiles:
    """The pictures of a folder by their names: files in it or, where the folder is packed, parts of its shards."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.shards = Shards(self.directory) if (self.directory / SHARDS).is_file() else None

    def __contains__(self, key: str) -> bool:
        return key in self.shards if self.shards is not None else self._path(key).is_file()

    def read(self, key: str) -> bytes:
        """The bytes of a picture's file; raises ``UserError`` where there is none."""
        if self.shards is None:
            return read_bytes(self._path(key))
        if key not in self.shards:
            raise UserError(f"There is no picture {key} in the shards of {self.directory}.")
        return self.shards.read(key)

    def picture(self, key: str) -> np.ndarray:
        """The pixels of a picture: (H, W, 3) uint8 RGB."""
        if self.shards is None:
            return read_picture(self._path(key))
        return read_picture(self.read(key), f"{self.directory}/{key}")

    def stamp(self, key: str) -> tuple[int | str, int]:
        """What changes when the picture does: size and time of its file, or its place in a shard."""
        if self.shards is not None:
            return self.shards.place(key)
        return file_stamp(self._path(key))

    def size(self, key: str) -> int:
        """The number of bytes of a picture's file."""
        return self._path(key).stat().st_size if self.shards is None else self.shards.size(key)

    def damaged(self) -> list[tuple[set[str], str]]:
        """The pictures of each shard that is not what was written, and a sentence about it."""
        return [] if self.shards is None else self.shards.damaged()

    def _path(self, key: str) -> Path:
        path = self.directory / key
        if not path.resolve().is_relative_to(self.directory.resolve()):
            raise UserError(
                f'The picture "{key}" lies outside {self.directory}; pictures are named relative to it.'
            )
        return path


class FolderDataset:
    """A directory with ``samples.jsonl`` (or a ``<task>.jsonl`` for each task) and pictures, as files or in shards.

    The pictures of a sample are file names in the directory or in its subfolders. ``task`` keeps the samples
    of one task; ``split`` only gives the data set its name in results.

    Raises ``UserError`` for a directory without samples, a line that is no sample, an id that comes twice, or
    a picture that is not there or lies outside the directory: all before any training starts.
    """

    def __init__(self, directory: str | Path, task: str | None = None, split: str = "test") -> None:
        self.directory = Path(directory)
        self.name = self.directory.resolve().name
        self.split = split
        files = sample_files(self.directory, task)
        self.files = PictureFiles(self.directory)
        samples = [sample for file in files for sample in read_samples(file)]
        self.samples: Sequence[Sample] = [sample for sample in samples if task is None or sample.task == task]
        if not self.samples:
            wanted = f'samples of the task "{task}"' if task else "samples"
            raise UserError(f"There are no {wanted} in {', '.join(str(file) for file in files)}.")
        self._check()

    def picture(self, key: str) -> np.ndarray:
        """The pixels of a picture by its file name: (H, W, 3) uint8 RGB."""
        return self.files.picture(key)

    def stamp(self, key: str) -> tuple[int | str, int]:
        """What changes when the picture does (see ``PictureFiles.stamp``)."""
        return self.files.stamp(key)

    def mark(self, key: str) -> tuple[int]:
        """The number of bytes of a picture, which a copy has too."""
        return (self.files.size(key),)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that is said in the samples, and of the names and sizes of their pictures.

        It is that of the packed folder too, and of a copy of either: no times are part of it.
        """
        return data_fingerprint(self.samples, self.mark)

    def _check(self) -> None:
        ids: set[str] = set()
        known: set[str] = set()
        for sample in self.samples:
            if sample.id in ids:
                raise UserError(f'The id "{sample.id}" comes twice in {self.directory}; ids must be unique.')
            ids.add(sample.id)
            for key in sample.pictures:
                if key not in known:
                    if key not in self.files:
                        raise UserError(
                            f'The picture "{key}" of sample "{sample.id}" is not in {self.directory}.'
                        )
                    known.add(key)


def pictures_fingerprint(keys: Sequence[str], files: PictureFiles) -> str:
    """Names these pictures by their names and sizes: a copy of them, packed or not, has the same one."""
    return fingerprint([(key, files.size(key)) for key in keys])


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def kept_for_validation(sample: Sample) -> bool:
    """Whether training leaves a sample out: what is about a picture of the tenth that is held out, by the hash of its
    name, also where it is beside others; and a tenth of what has no picture, by that of its id.
    """
    return any(int(fingerprint([name])[:8], 16) % 10 == 0 for name in sample.pictures or [sample.id])


def sample_files(directory: Path, task: str | None = None) -> list[Path]:
    """The files of samples in a directory; raises ``UserError`` where there is none."""
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}; it should hold samples.jsonl and the pictures.")
    together = directory / "samples.jsonl"
    if together.is_file():
        return [together]
    if task is not None and (directory / f"{task}.jsonl").is_file():
        return [directory / f"{task}.jsonl"]
    files = sorted(directory.glob("*.jsonl"))
    if not files:
        raise UserError(f"There is no samples.jsonl in {directory}, and no other .jsonl file of samples.")
    return files
