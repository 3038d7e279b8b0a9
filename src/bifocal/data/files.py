"""Somebody's files: text, JSON, JSON lines and tables, every piece with the place where it stands.

Whatever cannot be read ends in one sentence that names the file and the line.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bifocal.artifacts import Entry, lines_of, parsed
from bifocal.config import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_STEPS = re.compile(r"(\d+)\.\.(\d+)")


class HeldPictures(Protocol):
    """Pictures that a file of annotations holds itself, by name."""

    def __contains__(self, name: str) -> bool: ...
    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class Document:
    """A file as JSON: one ``value``, or, where the file is JSON lines or a table, the ``lines``.

    Into ``left_out`` its reader writes what it made nothing of, and why.
    """

    path: Path
    value: Any = None
    lines: Sequence[Entry] | None = None
    pictures: HeldPictures | None = None
    left_out: list[str] = field(default_factory=list, compare=False)

    def entries(self) -> list[Entry]:
        """The lines, or the entries of the list that the file is; an object alone is a file of one line."""
        if self.lines is not None:
            return list(self.lines)
        if isinstance(self.value, dict):
            return [Entry(f"Line 1 of {self.path}", self.value)]
        return numbered(self.path, self.value)

    @property
    def first(self) -> Any:
        """The first line or entry, to recognise a format by; None where there is none."""
        whole = [line.value for line in self.lines[:1]] if self.lines is not None else self.value
        return whole if isinstance(whole, dict) else whole[0] if isinstance(whole, list) and whole else None


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Put the place in front of what is said to be wrong there."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {str(error).rstrip('.')}.") from error


def numbered(path: Path, values: Any, what: str = "entry") -> list[Entry]:
    """The entries of a list with their numbers, counted from 1: "Entry 3 of results.json"."""
    if not isinstance(values, list):
        raise UserError(f"{path} has no list of {'entries' if what == 'entry' else what + 's'}.")
    return [Entry(f"{what.capitalize()} {number} of {path}", value) for number, value in enumerate(values, 1)]


def expanded(paths: Sequence[str | Path]) -> list[Path]:
    """The files that these paths stand for, in order: one that is there for itself, others as patterns.

    ``{000..127}`` and ``{a,b}`` are written out as a shell does it, ``*``, ``?`` and ``[]`` are those that are there.
    Raises UserError for a pattern that no file fits.
    """
    found: list[Path] = []
    for path in paths:
        for name in [str(path)] if Path(path).exists() else _written_out(str(path)):
            some = [name] if Path(name).exists() or not glob.has_magic(name) else sorted(glob.glob(name))
            if not some:
                raise UserError(f"There is no file that fits {name}.")
            found += map(Path, some)
    return found


def _written_out(pattern: str) -> list[str]:
    """A pattern with its braces written out; braces around anything else are letters."""
    for braces in _BRACES.finditer(pattern):
        steps = _STEPS.fullmatch(braces.group(1))
        if steps is not None:
            first, last = steps.groups()
            choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        elif "," in braces.group(1):
            choices = braces.group(1).split(",")
        else:
            continue
        rests = _written_out(pattern[braces.end() :])
        return [pattern[: braces.start()] + choice + rest for choice in choices for rest in rests]
    return [pattern]


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; raises UserError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file, without the mark that some editors put first."""
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"Line {line} of {path} is not UTF-8 text; save the file as UTF-8.") from None


def read_document(path: str | Path) -> Document:
    """A JSON file, or a file of JSON lines whatever it is called: the first line alone is JSON, and is not all."""
    content = read_text(path)
    if not content.strip():
        raise UserError(f"{path} is empty.")
    try:
        return Document(Path(path), json.loads(content))
    except json.JSONDecodeError as error:
        first, *rest = content.strip().split("\n", 1)
        if rest and _is_json(first):
            return Document(Path(path), lines=[parsed(line) for line in lines_of(path)])
        raise UserError(
            f"Line {error.lineno} of {path} is not JSON: {error.msg} at column {error.colno}."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets nested too deep
        raise UserError(f"{path} is not JSON that can be read: {error}.") from None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def read_table(path: str | Path) -> list[Entry]:
    """The rows of a CSV file (TSV by its name), each as a dictionary by the names in the first row.

    A cell may hold line breaks in quotes, as spreadsheets write them. Raises UserError for a row with more or fewer
    cells than there are names, and for names that are empty or come twice.
    """
    content = read_text(path)
    delimiter = "\t" if Path(path).suffix.lower() in (".tsv", ".tab") else ","
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows: list[Entry] = []
    names: list[str] = []
    try:
        for cells in reader:
            where = f"Line {reader.line_num} of {path}"
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if len(names) == 1 and ";" in names[0]:
                    raise UserError(f"{where}: the columns are divided by semicolons; save it with commas.")
                if len(set(names)) < len(names) or "" in names:
                    raise UserError(
                        f"{where}: a name of a column is empty or comes twice ({', '.join(names)})."
                    )
                continue
            if len(cells) != len(names):
                raise UserError(f"{where} has {len(cells)} cells, and there are {len(names)} columns.")
            rows.append(Entry(where, dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"Line {reader.line_num} of {path} is no row of a table: {error}.") from None
    if not rows:
        raise UserError(f"{path} has names of columns and no rows." if names else f"{path} is empty.")
    return rows
