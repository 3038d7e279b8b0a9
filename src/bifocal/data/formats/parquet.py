"""Parquet files that hold their pictures, as hubs of data sets keep them; the columns are named as in ``rows``.

A picture is a column of bytes, of a structure with ``bytes`` in it, or of lists of either (``images``). A picture that
many rows repeat is one picture: it is named by its content.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bifocal.artifacts import Entry
from bifocal.config import UserError
from bifocal.data.files import Document, located
from bifocal.data.formats import rows
from bifocal.data.formats.base import Format
from bifocal.data.pictures import format_of

_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}


def open_parquet(path: Path) -> Document:
    """The rows of a file, each picture replaced by its name; the pictures stay in the file until they are asked for.

    Raises ``UserError`` where pyarrow is missing, for a file that is damaged, and for bytes that are no picture.
    """
    pictures = ParquetPictures(path)
    return Document(path, lines=pictures.entries(), pictures=pictures)


class _Place(NamedTuple):
    """Where a picture lies: its group of rows, its row in it, its column, and its place in a list there."""

    group: int
    row: int
    column: str
    number: int | None = None


class ParquetPictures:
    """The pictures of one file by name. Those of one group of rows are kept at a time, so ask for them in order."""

    def __init__(self, path: Path) -> None:
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise UserError(f"{path} needs the package pyarrow: pip install 'bifocal-vlm[parquet]'") from None
        try:
            self._file: Any = parquet.ParquetFile(path)
        except Exception as error:  # the library raises errors of its own and of the system
            raise UserError(f"{path} is no Parquet file that can be read: {_reason(error)}.") from None
        self._path = path
        self._places: dict[str, _Place] = {}
        self._kept: tuple[int, list[dict[str, Any]]] = (-1, [])

    def entries(self) -> list[Entry]:
        """All rows with the names of their pictures."""
        entries: list[Entry] = []
        for group in range(self._file.num_row_groups):
            for row, record in enumerate(self._group(group)):
                where = f"Row {len(entries) + 1} of {self._path}"
                with located(where):
                    value = {
                        name: self._named(cell, _Place(group, row, name)) for name, cell in record.items()
                    }
                entries.append(Entry(where, value))
        return entries

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> bytes:
        """The bytes of a picture."""
        place = self._places[name]
        cell = self._group(place.group)[place.row][place.column]
        data = _bytes_of(cell if place.number is None else cell[place.number])
        assert data is not None
        return data

    def _named(self, cell: Any, place: _Place) -> Any:
        if isinstance(cell, list) and cell and _bytes_of(cell[0]) is not None:
            return [self._named(one, place._replace(number=number)) for number, one in enumerate(cell)]
        data = _bytes_of(cell)
        if data is None:
            return cell
        suffix = _SUFFIXES[format_of(data, f'"{place.column}"')]
        name = hashlib.sha256(data).hexdigest()[:24] + suffix
        self._places.setdefault(name, place)
        return name

    def _group(self, group: int) -> list[dict[str, Any]]:
        if self._kept[0] != group:
            try:
                self._kept = (group, self._file.read_row_group(group).to_pylist())
            except Exception as error:
                raise UserError(f"{self._path} is damaged or cut off: {_reason(error)}.") from None
        return self._kept[1]


def _bytes_of(cell: Any) -> bytes | None:
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    return data if isinstance(data, bytes) else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:120] or type(error).__name__


FORMAT = Format("parquet", "", "a Parquet file with pictures in it", rows.recognises, rows.samples)
