"""How long the parts of a long command took, over all the starts that it needed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from bifocal import artifacts


class Times:
    """The seconds of each part, kept in a file from one start to the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = artifacts.read_json(path) if path.is_file() else {}

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What is done inside belongs to a part, which may have been begun before, and may be stopped."""
        before, began = self.seconds.get(part, 0.0), time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = before + time.perf_counter() - began
            artifacts.atomic_write_json(self.path, self.seconds)

    def at_least(self, part: str, seconds: float) -> None:
        """What else is known of a part: a start that was killed could not write down how long it took."""
        self.seconds[part] = max(seconds, self.seconds.get(part, 0.0))
