"""Pictures of a data set that cannot be read: another stands for each, they are counted and written down."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from bifocal import artifacts
from bifocal.config import UserError

SPOILT = "spoilt.jsonl"  # a run's file of them
MOST_SPOILT = 0.01  # of the pictures


class Spoilt:
    """What is known to be unreadable of so many ``pictures``.

    Whoever finds one adds a line to the run's file, be it a rank or a worker process: so the file has them all, and all
    runs of a resumed training count together.
    """

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self.keys: set[str] = set()
        self.file: Path | None = None
        self.prefix = ""

    def noted_in(self, file: Path, prefix: str = "") -> None:
        """Write into this file from now on, with what stands before each key; what it holds is known."""
        self.file, self.prefix = file, prefix
        self._read()

    def add(self, key: str, reason: str) -> None:
        """Raises ``UserError`` above one in a hundred, and for the first one where there is no run to note it in."""
        if key in self.keys:
            return
        if self.file is None:
            raise UserError(reason)
        self._read()
        if key not in self.keys:
            artifacts.append_json_line(self.file, {"key": self.prefix + key, "reason": reason})
            print(f"warning: {reason} Another picture stands for it.", file=sys.stderr, flush=True)
            self.keys.add(key)
        if len(self.keys) > MOST_SPOILT * self.pictures:
            raise UserError(
                f"{len(self.keys)} of {self.pictures} pictures cannot be read, which is more than "
                f"{MOST_SPOILT:.0%}: mend or remove those that {self.file} names, such as {min(self.keys)}"
            )

    def any_of(self, keys: Collection[str]) -> bool:
        """Whether one of these is known to be unreadable."""
        return not self.keys.isdisjoint(keys)

    def _read(self) -> None:
        if self.file is None or not self.file.exists():
            return
        noted = [row["key"] for row in artifacts.read_json_lines(self.file, allow_partial_last=True)]
        self.keys |= {key.removeprefix(self.prefix) for key in noted if key.startswith(self.prefix)}
