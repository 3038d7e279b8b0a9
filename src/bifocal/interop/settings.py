"""Reading the configurations of other tools: what a file says, and whether it is of the kind that it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bifocal.config import UserError


def says(path: Path) -> dict[str, Any]:
    """What a JSON file says, and nothing where it cannot be read: whoever needs it then says why."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def setting(about: dict[str, Any], name: str, kind: type, default: Any, where: Path) -> Any:
    """``about[name]`` of a type, or the default where it is not written; ``UserError`` for one of another type."""
    value = about.get(name, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{where}: {name} should be of the kind {kind.__name__}, and is {value!r}")
    return value


def square(value: Any, where: Path) -> int:
    """The side of a picture or patch that is given as a number, or as two that are equal."""
    sides = value if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1 or not isinstance(sides[0], int):
        raise UserError(f"{where}: pictures and patches must be square, and one is {value!r}")
    return sides[0]
