"""What a person sees while something runs: a bar with loss, rate and time left, or plain lines in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from bifocal import distributed

LINE_SECONDS = 15.0  # how often a line is printed where there is no terminal


class Progress:
    """Counts from ``start`` to ``total``; everything goes to standard error."""

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self.title, self.total, self.start = title, total, start
        self.quiet = not distributed.is_main()
        self.terminal = sys.stderr.isatty() and not self.quiet
        self.began = self.last_line = time.perf_counter()
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self.terminal,
        )

    def __enter__(self) -> Progress:
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.total, completed=self.start, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(
        self,
        done: int,
        *,
        loss: float | None = None,
        rate: float | None = None,
        waiting: float | None = None,
    ) -> None:
        """``done`` of ``total`` are finished; ``rate`` is in samples a second, ``waiting`` the share of time."""
        note = "" if loss is None else f"loss {loss:.4f}"
        if rate is not None:
            note += f"  {rate:.0f} samples/s"
        if waiting is not None:
            note += f"  {waiting:.0%} waiting for data"
        self.bar.update(self.task, completed=done, note=note)
        now = time.perf_counter()
        if self.terminal or self.quiet or (now - self.last_line < LINE_SECONDS and done < self.total):
            return
        self.last_line = now
        left = (now - self.began) / max(1, done - self.start) * (self.total - done)
        print(f"{self.title}: {done}/{self.total}  {note}  {left:.0f} s left", file=sys.stderr, flush=True)

    def warn(self, sentence: str) -> None:
        """Say something that should not be missed, beside the bar."""
        if not self.quiet:
            self.bar.console.print(f"warning: {self.title}, {sentence}", markup=False, highlight=False)


@contextlib.contextmanager
def counted(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for what is called with (done, total), begun at the first call: only then the total is known."""
    with contextlib.ExitStack() as stack:
        bars: list[Progress] = []

        def update(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress(title, total=total)))
            bars[0].update(done)

        yield update
