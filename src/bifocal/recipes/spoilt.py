"""Pictures of a data set that cannot be read: another stands for each, they are counted and written down."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from pathlib import Path

from bifocal import artifacts, distributed
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
        self.mended: set[str] = set()  # of these, what can be read by now
        self.file: Path | None = None
        self.prefix = ""

    def noted_in(self, file: Path, prefix: str, reads: Callable[[str], bool], *, begun: bool) -> set[str]:
        """Write into this file from now on, with what stands before each key; what it holds is known.

        What an earlier attempt noted is looked at again, and what can be read by now is returned. It is no longer
        noted, but where the run has ``begun``: then it is passed over as before, or the run would go on otherwise than
        it began. Every rank must call it. Raises ``UserError`` where more than one in a hundred still cannot be read.
        """
        self.file, self.prefix = file, prefix
        self._read()
        noted = sorted(self.keys)
        self.mended = set(distributed.first_rank_does(lambda _: [key for key in noted if reads(key)]))
        if not begun and self.mended:
            distributed.first_rank_does(lambda _: self._strike())
            self.keys -= self.mended
        self._judge()
        return self.mended

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
        self._judge()

    def any_of(self, keys: Collection[str]) -> bool:
        """Whether one of these is known to be unreadable."""
        return not self.keys.isdisjoint(keys)

    def _judge(self) -> None:
        unreadable = self.keys - self.mended
        if len(unreadable) > MOST_SPOILT * self.pictures:
            raise UserError(
                f"{len(unreadable)} of {self.pictures} pictures cannot be read, which is more than "
                f"{MOST_SPOILT:.0%}: mend or remove those that {self.file} names, such as {min(unreadable)}"
            )

    def _strike(self) -> None:
        """Take what is mended out of the file."""
        assert self.file is not None
        gone = {self.prefix + key for key in self.mended}
        rows = artifacts.read_json_lines(self.file, allow_partial_last=True)
        left = "".join(artifacts.json_line(row) for row in rows if row["key"] not in gone)
        artifacts.atomic_write_text(self.file, left)

    def _read(self) -> None:
        if self.file is None or not self.file.exists():
            return
        noted = [row["key"] for row in artifacts.read_json_lines(self.file, allow_partial_last=True)]
        self.keys |= {key.removeprefix(self.prefix) for key in noted if key.startswith(self.prefix)}
