"""A directory of pictures with their samples as JSON lines: the plainest data set of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bifocal.config import UserError
from bifocal.data.pictures import read_picture
from bifocal.data.sample import Sample, read_samples


class FolderDataset:
    """A directory with ``samples.jsonl`` (or a ``<task>.jsonl`` for each task) and picture files.

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
        samples = [sample for file in files for sample in read_samples(file)]
        self.samples: Sequence[Sample] = [sample for sample in samples if task is None or sample.task == task]
        if not self.samples:
            wanted = f'samples of the task "{task}"' if task else "samples"
            raise UserError(f"There are no {wanted} in {', '.join(str(file) for file in files)}.")
        self._check()

    def picture(self, key: str) -> np.ndarray:
        """The pixels of a picture by its file name: (H, W, 3) uint8 RGB."""
        return read_picture(self._path(key))

    def _path(self, key: str) -> Path:
        path = self.directory / key
        if not path.resolve().is_relative_to(self.directory.resolve()):
            raise UserError(
                f'The picture "{key}" lies outside {self.directory}; pictures are named relative to it.'
            )
        return path

    def _check(self) -> None:
        ids: set[str] = set()
        known: set[str] = set()
        for sample in self.samples:
            if sample.id in ids:
                raise UserError(f'The id "{sample.id}" comes twice in {self.directory}; ids must be unique.')
            ids.add(sample.id)
            for key in sample.pictures:
                if key not in known:
                    if not self._path(key).is_file():
                        raise UserError(
                            f'The picture "{key}" of sample "{sample.id}" is not in {self.directory}.'
                        )
                    known.add(key)


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
