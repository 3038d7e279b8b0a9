"""Sentences that a class name is put into before CLIP reads it, and class names from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bifocal.config import UserError
from bifocal.data.scenes.nouns import article_for

# A name alone says less than a sentence of the kind that captions are; several sentences are averaged (Radford et
# al. 2021, section 3.1.4). {} and {c} stand for the name, {a} for the name with its article.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "drawings": ("{a}", "a picture of {a}", "a drawing of {a}"),
    "photos": (
        "a photo of {a}.",
        "a close-up photo of {a}.",
        "a photo of {a} in daylight.",
        "a dark photo of {a}.",
        "a blurry photo of {a}.",
        "a photo of one {c}.",
        "a photo of many {c}.",
    ),
    "name": ("{c}",),
}
DEFAULT = "drawings"
_PLACE = re.compile(r"\{[^{}]*\}")


def fill_template(template: str, label: str) -> str:
    """ "a picture of {a}", "owl" -> "a picture of an owl"."""
    filled = {"{a}": f"{article_for(label.lower())} {label}", "{c}": label, "{}": label}
    return _PLACE.sub(lambda place: filled.get(place.group(), place.group()), template)


def read_templates(source: str) -> tuple[str, ...]:
    """A list of our own by its name, or the lines of a file (or its JSON list).

    Raises ``UserError`` for a name or file that is not there, and for a line in which no name has a place.
    """
    if source in TEMPLATES:
        return TEMPLATES[source]
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"there are no templates {source!r}: name one of {', '.join(TEMPLATES)}, or a file with one a line"
        )
    lines = [line for line in _entries(path) if line]
    for number, line in enumerate(lines, start=1):
        places = _PLACE.findall(line)
        if not places or not set(places) <= {"{}", "{a}", "{c}"}:
            raise UserError(
                f"template {number} of {path}, {line!r}, has no place for the name: write {{}} or {{c}} where it "
                "stands, {a} where it stands with its article"
            )
    if not lines:
        raise UserError(f"{path} holds no templates: write one a line, such as: a photo of {{a}}.")
    return tuple(lines)


def read_classes(path: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The names of a file to choose from, in its order, and which of them each folder stands for.

    The file holds one name a line, or a JSON list of them; a JSON object gives folders their names and may give
    several folders one. Raises ``UserError`` for a name that comes twice in a list, and for fewer than two names.
    """
    folders: Mapping[str, str] = {}
    if path.suffix == ".json":
        data = _json(path)
        if isinstance(data, dict):
            folders = {str(folder): name for folder, name in data.items()}
            data = list(dict.fromkeys(folders.values()))
        names: Sequence[str] = data if isinstance(data, list) else []
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise UserError(
                f"{path} is neither a JSON list of names nor an object of folders with their names"
            )
    else:
        names = _entries(path)
    names = [name.strip() for name in names if name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"the name {twice[0]!r} comes twice in {path}; names to choose from must differ")
    if len(names) < 2:
        raise UserError(f"{path} holds {len(names)} names, and a choice needs at least two: write one a line")
    return tuple(names), {folder: name.strip() for folder, name in folders.items()}


def _entries(path: Path) -> Sequence[str]:
    if path.suffix == ".json":
        data = _json(path)
        if not isinstance(data, list) or not all(isinstance(entry, str) for entry in data):
            raise UserError(f"{path} is no JSON list of texts")
        return [entry.strip() for entry in data]
    return [line.strip() for line in _text(path).splitlines()]


def _json(path: Path) -> object:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
