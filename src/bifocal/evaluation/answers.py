"""Answers kept as they are given, one batch a line, so that an evaluation that was killed goes on where it was."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bifocal import distributed
from bifocal.artifacts import append_json_line, cut_half_line, read_json_lines
from bifocal.config import UserError

# One answer, JSON-able: "id", and what its task keeps of it, or, where there is none, "failure" (the reason).
Given = dict[str, Any]

# What of an earlier evaluation is no longer so, in the words of a message.
_CHANGED = {
    "model": "of another model, or of this one in another precision or on another device",
    "data": "to other questions or about other pictures",
    "settings": "given under other settings",
}


class OtherAnswers(UserError):
    """Answers are there that would be lost: those of an evaluation that did not end, to something else than this."""


def is_whole(answers: Sequence[Given] | None) -> bool:
    """Whether a batch was answered to the last question: what failed is to be asked again."""
    return answers is not None and not any("failure" in answer for answer in answers)


class AnswerStore:
    """A directory with a file for each rank: first what was asked of whom, then a line for each batch of answers.

    ``about`` has the keys model, data and settings. ``given`` are the answers found there, by the number of the batch.
    Every rank must open it. Answers to something else are refused with ``OtherAnswers`` where they are those of an
    evaluation that did not end, which would be lost; those of one that did end are replaced, and a sentence says so.

    With ``restart`` everything that is there is thrown away.
    """

    def __init__(self, place: Path, about: Mapping[str, Any], batches: int, *, restart: bool = False) -> None:
        self.place = place
        self.about = {**about, "batches": batches}
        self.given: dict[int, list[Given]] = {}
        if distributed.is_main():
            self._open(restart)
        self.given = distributed.object_from_first_rank(self.given)

    def keep(self, batch: int, answers: Sequence[Given]) -> None:
        """Write down the answers of a batch; from here on they outlast the process."""
        path = self.place / f"rank-{distributed.rank()}.jsonl"
        if (
            not path.is_file() or not path.stat().st_size
        ):  # a process may be killed before its first line is whole
            append_json_line(path, {"about": self.about})
        append_json_line(path, {"batch": batch, "answers": list(answers)})

    def _open(self, restart: bool) -> None:
        files = sorted(self.place.glob("rank-*.jsonl"))
        before = None if restart else self._read(files)
        if before == self.about:
            return
        if before is not None:
            self._let_go(before)
        for path in files:
            path.unlink()
        self.given = {}

    def _read(self, files: Sequence[Path]) -> dict[str, Any] | None:
        """Take the answers that are there into ``given``; returns what was asked of whom, None where nothing was."""
        before: dict[str, Any] | None = None
        for path in files:
            if cut_half_line(path):
                print(f"bifocal: '{path}' ended in a half-written line, which was cut off", file=sys.stderr)
            first, *lines = read_json_lines(path) or [None]
            if first is None:  # killed before anything was written down
                continue
            try:
                before = dict(first["about"])
                self._add(lines)
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"'{path}' does not hold answers as bifocal keeps them: remove it, or give --restart"
                ) from None
        return before

    def _add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            # a batch comes twice where what had failed was asked again, perhaps by another rank
            if not is_whole(self.given.get(line["batch"])):
                self.given[line["batch"]] = line["answers"]

    def _let_go(self, before: Mapping[str, Any]) -> None:
        """Say why the answers found are not used; raises UserError where their evaluation did not end."""
        why = " and ".join(words for name, words in _CHANGED.items() if before.get(name) != self.about[name])
        if len(self.given) < before.get("batches", 0):
            count = sum(len(answers) for answers in self.given.values())
            raise OtherAnswers(
                f"'{self.place}' holds the {count} answers of an evaluation that did not end, and they are {why}: "
                "end that one, or give --restart to throw them away and ask everything anew"
            )
        print(f"bifocal: the answers in '{self.place}' are {why}: asking everything anew", file=sys.stderr)
