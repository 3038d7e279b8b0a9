"""Reading a value out of somebody's JSON: what it must be, or one sentence that says what it is instead.

The sentences begin in the middle ('"answer" is missing'): whoever knows the file and the line puts them in front (see
``files.located``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from bifocal.config import UserError

_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}

_HALF = re.compile("[\ud800-\udfff]")  # JSON can spell one half of a surrogate pair, and UTF-8 cannot


def expect(value: Any, kind: type, what: str) -> Any:
    """The value, if it is of this kind; truth values are no numbers, and whole numbers are numbers."""
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) and kind is not bool:
        raise UserError(f"{what} is not {_NAMES[kind]} but {shown(value)}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{what} is not a finite number but {value}")
    if kind is str and (half := _HALF.search(value)):
        raise UserError(
            f"{what} holds U+{ord(half.group()):04X}, which is half a character without the other"
        )
    return value


def shown(value: Any) -> str:
    """What a value is, for a message: short things as they stand, long ones by their kind."""
    if value is None:
        return "null"
    kind = bool if isinstance(value, bool) else type(value)
    text = repr(value)
    name = _NAMES.get(kind, kind.__name__)
    return f"{name} ({text})" if len(text) <= 40 and kind not in (dict, list) else name


def required(record: Mapping[str, Any], key: str) -> Any:
    """The value of a key that must be there."""
    if key not in record:
        raise UserError(f'"{key}" is missing')
    return record[key]


def text(record: Mapping[str, Any], key: str) -> str:
    """A text."""
    return str(expect(required(record, key), str, f'"{key}"'))


def integer(record: Mapping[str, Any], key: str) -> int:
    """A whole number."""
    return int(expect(required(record, key), int, f'"{key}"'))


def number(record: Mapping[str, Any], key: str) -> float:
    """A finite number."""
    return float(expect(required(record, key), float, f'"{key}"'))


def items(record: Mapping[str, Any], key: str) -> list[Any]:
    """A list."""
    return list(expect(required(record, key), list, f'"{key}"'))


def texts(record: Mapping[str, Any], key: str) -> list[str]:
    """A list of texts."""
    return [str(expect(value, str, f'an entry of "{key}"')) for value in items(record, key)]


def numbers(record: Mapping[str, Any], key: str, count: int) -> list[float]:
    """A list of so many finite numbers."""
    values = [float(expect(value, float, f'an entry of "{key}"')) for value in items(record, key)]
    if len(values) != count:
        raise UserError(f'"{key}" has {len(values)} numbers, not {count}')
    return values


def part(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object inside the object."""
    return dict(expect(required(record, key), dict, f'"{key}"'))


def optional_part(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object inside the object; empty where it is missing or null."""
    return part(record, key) if record.get(key) is not None else {}
