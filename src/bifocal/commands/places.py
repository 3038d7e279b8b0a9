"""Where the predictions about a folder lie: in a place of its own, so that no folder's replace another's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bifocal import artifacts
from bifocal.config import fingerprint
from bifocal.evaluation.results import prediction_folder

MARK = "data.json"  # the file of a place that says whose it is


def place_of(directory: Path, model: str, data: Path, contents: str) -> str:
    """The place of a folder below the predictions of a model: its name, with a fingerprint where that is another's.

    A folder is known again by its path or, where it was moved, by ``contents``, the fingerprint of what of it is asked.
    """
    home = prediction_folder(directory, model)
    where = str(data.resolve())
    name = re.sub(r"[^\w.-]+", "-", data.resolve().name) or "data"
    known: dict[str, dict[str, Any]] = {
        path.parent.name: artifacts.read_json(path) for path in sorted(home.glob(f"*/{MARK}"))
    }
    alike = [place for place in known if re.fullmatch(rf"{re.escape(name)}(-[0-9a-f]{{8}})?", place)]
    own = [place for place in known if known[place]["directory"] == where]
    moved = [place for place in alike if contents in known[place]["contents"]]
    free = name if name not in known else f"{name}-{fingerprint(where)[:8]}"
    place = [*own, *moved, free][0]
    before = known.get(place, {"contents": []})
    about = {"directory": where, "contents": list(dict.fromkeys([*before["contents"], contents]))}
    if about != before:
        artifacts.atomic_write_json(home / place / MARK, about)
    return place
