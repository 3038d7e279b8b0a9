"""Evaluation sets of a user's own pictures that need no file of samples, or one made for another task.

Class folders, as ImageNet and torchvision's ``ImageFolder`` lie, are samples of zero-shot classification; captions of
any task are samples of retrieval, all captions of a picture together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bifocal.config import UserError
from bifocal.data.folder import FolderDataset, file_stamp
from bifocal.data.pictures import SUFFIXES, read_picture
from bifocal.data.sample import Message, Picture, Sample

CAPTIONED = ("retrieval", "captioning")  # tasks whose right answers are captions


def picture_files(directory: Path) -> list[str]:
    """Every picture file in a folder and its subfolders, as sorted paths relative to it."""
    files = (path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in files)


class ClassFolders:
    """A directory with one subfolder a class and the class's pictures inside.

    A class is called as its folder, with spaces for underscores, or as ``names`` calls the folder. Raises ``UserError``
    for a directory without such folders, and for a folder that ``names`` leaves out.
    """

    def __init__(
        self, directory: str | Path, names: Mapping[str, str] | None = None, split: str = "test"
    ) -> None:
        self.directory = Path(directory)
        self.name = self.directory.resolve().name
        self.split = split
        if not self.directory.is_dir():
            raise UserError(
                f"There is no directory {self.directory}; it should hold a folder for each class."
            )
        keys = [key for key in picture_files(self.directory) if "/" in key]
        if not keys:
            raise UserError(
                f"{self.directory} holds neither samples.jsonl nor a folder of pictures for each class."
            )
        folders = list(dict.fromkeys(key.split("/")[0] for key in keys))
        unknown = [folder for folder in folders if names and folder not in names]
        if unknown:
            raise UserError(
                f"The folder {unknown[0]} of {self.directory} is given no name by the file of classes."
            )
        self.labels = {folder: names[folder] if names else folder.replace("_", " ") for folder in folders}
        self.samples: Sequence[Sample] = [self._sample(key) for key in keys]

    def _sample(self, key: str) -> Sample:
        label = self.labels[key.split("/")[0]]
        messages = (Message("user", (Picture(0),)), Message("assistant", (label,)))
        return Sample(key, "zero-shot", "all", (key,), messages, (label,))

    def picture(self, key: str) -> np.ndarray:
        """The pixels of a picture by its path in the directory: (H, W, 3) uint8 RGB."""
        return read_picture(self.directory / key)

    def stamp(self, key: str) -> tuple[int, int]:
        """What changes when the picture does: size and time of its file."""
        return file_stamp(self.directory / key)

    def mark(self, key: str) -> tuple[int]:
        """The number of bytes of a picture, which a copy has too."""
        return file_stamp(self.directory / key)[:1]


class CaptionedFolder(FolderDataset):
    """The pictures of a folder with all their captions, one sample a picture.

    Samples of retrieval are taken where there are any, else those of captioning; those about one picture are put
    together, each wording once. Raises ``UserError`` where no sample has a caption.
    """

    def __init__(self, directory: str | Path, split: str = "test") -> None:
        super().__init__(directory, None, split)
        for task in CAPTIONED:
            samples = [s for s in self.samples if s.task == task and len(s.pictures) == 1]
            if samples:
                break
        else:
            raise UserError(
                f"No sample in {self.directory} has a caption: there is none of {' or '.join(CAPTIONED)}."
            )
        captions: dict[str, list[str]] = {}
        first: dict[str, Sample] = {}
        for sample in samples:
            key = sample.pictures[0]
            first.setdefault(key, sample)
            said = sample.references or ("".join(p for p in sample.answer if isinstance(p, str)).strip(),)
            captions.setdefault(key, []).extend(said)
        self.samples = [
            Sample(
                sample.id,
                "retrieval",
                sample.slice,
                (key,),
                sample.messages,
                tuple(dict.fromkeys(captions[key])),
                sample.facts,
            )
            for key, sample in first.items()
        ]


def zero_shot_folder(
    directory: str | Path, names: Mapping[str, str], split: str
) -> FolderDataset | ClassFolders:
    """A folder's samples of zero-shot classification, or its class folders where it has no file of samples."""
    if any(Path(directory).glob("*.jsonl")):
        return FolderDataset(directory, "zero-shot", split)
    return ClassFolders(directory, names or None, split)
