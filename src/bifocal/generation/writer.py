"""From tokens to text that may be shown: whole characters, and nothing that may still turn out to be a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Writer:
    """The text of one answer as it grows. ``stopped`` once one of the stop texts stood in it; it ends before that."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, tuple(stops)
        self.tokens: list[int] = []
        self.text = ""  # what was shown so far
        self.stopped = False

    def add(self, token: int) -> str:
        """One token more -> what can be shown now and could not before."""
        self.tokens.append(token)
        return self._show(self.decode(self.tokens), last=False)

    def end(self) -> str:
        """There are no more tokens -> what was held back."""
        return "" if self.stopped else self._show(self.decode(self.tokens), last=True)

    def _show(self, whole: str, last: bool) -> str:
        whole, self.stopped = cut_off(whole, self.stops)
        if not self.stopped and not last:
            whole = whole[: len(whole) - self._unsure(whole)]
        new = whole[len(self.text) :]
        self.text += new
        return new

    def _unsure(self, whole: str) -> int:
        """How many letters at the end may change or go: half a character, or the beginning of a stop text."""
        sure = whole.rstrip("\ufffd")
        begun = (
            length
            for stop in self.stops
            for length in range(min(len(stop) - 1, len(sure)), 0, -1)
            if sure.endswith(stop[:length])
        )
        return len(whole) - len(sure) + max(begun, default=0)


def cut_off(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first stop text in it, and whether there is one."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)
