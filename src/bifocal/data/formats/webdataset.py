"""WebDataset tars: members of one name and several endings are one sample (github.com/webdataset/webdataset).

| member | what becomes of it |
| --- | --- |
| ``KEY.jpg``, ``.png``, ``.webp``, ``.gif``, ``.bmp`` | its picture; ``KEY.0.png``, ``KEY.1.png`` are several |
| ``KEY.txt`` | a caption |
| ``KEY.cls`` | a label, as it stands there |
| ``KEY.json`` | the columns of ``rows``, except those that name pictures |
| ``KEY.question.txt``, ``KEY.answer.txt`` ... | a column of ``rows`` |

A shard that ``bifocal data pack`` wrote gives the samples that it was made of.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from bifocal.artifacts import Entry, parsed
from bifocal.config import UserError
from bifocal.data.files import Document, located
from bifocal.data.formats import rows
from bifocal.data.formats.base import Format, gathered, has_keys
from bifocal.data.records import expect, items, texts
from bifocal.data.sample import Sample

_PICTURE = re.compile(r"(?:(?:\d+|image\d*|left|right)\.)?(?:jpe?g|png|webp|gif|bmp)")
_MEANING = {"txt": "caption", "cls": "label"}
_WHOLE = (
    "caption",
    "text",
    "answer",
)  # columns whose bars are letters here, as nobody divided anything by them
_BLOCK = 512  # bytes of a header; a tar ends with blocks of nothing


def open_tar(path: Path) -> Document:
    """The samples of a tar, each picture by its name; the pictures stay in the file until they are asked for.

    Raises ``UserError`` for a file that is no tar, is damaged or cut off, and for members that are not what their
    endings say.
    """
    try:
        with path.open("rb") as file:
            groups = _groups(path, _members(path, file))
            pictures = TarPictures(path)
            left_out: list[str] = []
            entries = []
            for key, group in groups.items():
                where = f"Sample {key} of {path}"
                with located(where):
                    row = _row(_Member(path, file, key, group), pictures, left_out)
                if row is not None:
                    entries.append(Entry(where, row))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    return Document(path, lines=entries, pictures=pictures, left_out=left_out)


class TarPictures:
    """The pictures of one tar by name, read where they lie."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}  # picture -> first byte, bytes

    def add(self, name: str, member: tarfile.TarInfo) -> None:
        """Call a member so; the first of a name stands."""
        self._places.setdefault(name, (member.offset_data, member.size))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def read(self, name: str) -> bytes:
        """The bytes of a picture."""
        start, size = self._places[name]
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(size)


# ------------------------------------------------------------ members


class _Member:
    """The members of one sample by their endings, and their contents."""

    def __init__(self, path: Path, file: BinaryIO, key: str, group: Mapping[str, tarfile.TarInfo]) -> None:
        self.path, self.file, self.key, self.group = path, file, key, group

    def line(self, ending: str) -> Entry:
        """The bytes of a member, and which it is."""
        member = self.group[ending]
        self.file.seek(member.offset_data)
        return Entry(f"{member.name} of {self.path}", self.file.read(member.size))

    def text(self, ending: str) -> str:
        """A member as text."""
        where, data = self.line(ending)
        try:
            return str(data.decode("utf-8-sig")).strip()
        except UnicodeDecodeError:
            raise UserError(f"{where} is not UTF-8 text") from None


def _members(path: Path, file: BinaryIO) -> list[tarfile.TarInfo]:
    """The files in a tar; raises UserError where it does not end as a tar ends."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = [member for member in tar if member.isfile()]
            end = int(tar.offset)
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{path} is no tar that can be read, or is cut off ({error}).") from None
    # the library takes a damaged header for the end
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise UserError(f"{path} is damaged or cut off behind its byte {end}.")
    return members


def _groups(path: Path, members: Sequence[tarfile.TarInfo]) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members by what stands before the first dot of their names, then by what stands behind it."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        name = member.name.removeprefix("./")
        folder, _, file = name.rpartition("/")
        key, dot, ending = file.partition(".")
        if not key or not dot:  # hidden files, and those without an ending, belong to no sample
            continue
        group = groups.setdefault(f"{folder}/{key}" if folder else key, {})
        if ending.lower() in group:
            raise UserError(f"{path} has the member {name} twice.")
        group[ending.lower()] = member
    return groups


def _row(
    member: _Member, pictures: TarPictures, left_out: list[str]
) -> dict[str, Any] | list[dict[str, Any]] | None:
    """A sample as a row of a table, or the samples of one of our own shards; None, and why, where it is neither."""
    about: dict[str, Any] = {}
    if "json" in member.group:
        line = member.line("json")
        about = expect(parsed(line).value, dict, line.where)
    if has_keys(about, "pictures", "samples"):
        return _packed(member, about, pictures)
    name = f"{member.path.stem}/{member.key}"
    shown = [ending for ending in member.group if _PICTURE.fullmatch(ending)]
    row: dict[str, Any] = {
        column: value for column, value in about.items() if not rows.PICTURE.fullmatch(column)
    }
    row.setdefault("id", name)
    row["image"] = [f"{name}.{ending}" for ending in shown]
    for ending in member.group:
        column = _MEANING.get(ending, ending.removesuffix(".txt"))
        if column in rows.COLUMNS:
            row[column] = member.text(ending)
        elif ending not in (*shown, "json"):
            row.setdefault(ending, None)  # nothing is made of it, which is said
    if not shown or not any(row.get(column) for column in rows.TEXTS):
        left_out.append(f"{name} (it has no {'words' if shown else 'picture'})")
        return None
    for ending in shown:
        pictures.add(f"{name}.{ending}", member.group[ending])
    return row | {column: [row[column]] for column in _WHOLE if isinstance(row.get(column), str)}


def _packed(member: _Member, about: Mapping[str, Any], pictures: TarPictures) -> list[dict[str, Any]]:
    """The samples of a record of ours, whose pictures stand beside it in the order of their names."""
    numbers = {ending.partition(".")[0]: ending for ending in member.group}
    for place, name in enumerate(texts(about, "pictures")):
        if str(place) not in numbers:
            raise UserError(f'the picture "{name}" is missing')
        pictures.add(name, member.group[numbers[str(place)]])
    return [expect(sample, dict, "a sample") for sample in items(about, "samples")]


# ------------------------------------------------------------ samples


def recognises(document: Document) -> bool:
    """A tar."""
    return isinstance(document.pictures, TarPictures)


def samples(documents: Sequence[Document]) -> list[Sample]:
    """The samples of all tars; one name for two pictures is refused, as one would be shown for the other."""
    held: dict[str, tuple[Path, TarPictures]] = {}
    found: list[Sample] = []
    for document in documents:
        assert isinstance(document.pictures, TarPictures)
        for name in document.pictures:
            path, first = held.setdefault(name, (document.path, document.pictures))
            if first is not document.pictures and first.read(name) != document.pictures.read(name):
                raise UserError(
                    f"The picture {name} of {path} is another in {document.path}: import them one by one."
                )
        for where, value in document.entries():
            with located(where):
                if isinstance(value, list):
                    found += [Sample.from_json(sample) for sample in value]
                else:
                    found += rows.samples_of_row(value, "")
    return gathered(found, documents)


FORMAT = Format("webdataset", "", "tars in the layout of WebDataset", recognises, samples)
