"""How long a command took over several starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bifocal.commands import times as module
from bifocal.commands.times import Times


def test_the_starts_add_up_even_where_one_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 100.0, 103.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), Times(tmp_path / "times.json").of("train"):
        raise KeyboardInterrupt
    again = Times(tmp_path / "times.json")
    with again.of("train"):
        pass
    assert again.seconds == Times(tmp_path / "times.json").seconds == {"train": 8.0}


def test_what_a_killed_start_did_not_write_down_can_be_said(tmp_path: Path) -> None:
    times = Times(tmp_path / "times.json")
    times.at_least("train", 7.0)
    times.at_least("train", 3.0)
    assert times.seconds == {"train": 7.0}
